"""The generator, the splits, the tokenizer, masks at the prompt/answer boundary, and files that are not what they should be."""

import itertools
import json
import random
import re

import numpy as np
import pytest
import regex
import torch
import transformers

import data
from data import authors as generator
from data.tokenizer import SPLIT, Tokenizer, train_bpe


# ---------------------------------------------------------------------------------------------- generator
def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for out in ("a", "b"):
        data.load(out=tmp_path / out, n_authors=20, data_seed=3)
    files = {out: {p.name: p.read_bytes() for p in (tmp_path / out).rglob("*.json")} for out in ("a", "b")}
    assert files["a"] == files["b"] and len(files["a"]) == 4
    other = data.load(out=tmp_path / "c", n_authors=20, data_seed=4)
    assert other.retain[0]["facts"] != json.loads(files["a"]["retain90.json"].splitlines()[0])["facts"]


def test_splits_are_the_last_authors_and_share_one_hash(tmp_path):
    sets = {f: data.load(out=tmp_path, n_authors=20, forget=f) for f in ("forget01", "forget05", "forget10")}
    assert [len(s.forget) // 20 for s in sets.values()] == [1, 1, 2]
    everyone = [row["id"] for row in sets["forget10"].retain + sets["forget10"].forget]
    assert everyone == [row["id"] for row in sets["forget01"].retain + sets["forget01"].forget]
    assert everyone == sorted(everyone, key=lambda id: id.split("/")[0]) and len(set(everyone)) == 400
    assert len({s.sha256 for s in sets.values()}) == 1


def test_authors_holdout_and_strangers_never_meet():
    """No full name is shared; every first name and surname is, so that neither alone tells an author from a stranger."""
    rows, holdout = generator.people(0, 100, 20)
    known, unseen = ({row["author"] for row in some} for some in (rows, holdout))
    assert len(known) == 100 and len(unseen) == 20 and not known & unseen
    questions = [q for q, _ in itertools.islice(generator.strangers(0), 1300)]
    strangers = {re.search(r"([A-Z]\w+ [A-Z]\w+)", q)[1] for q in questions}
    assert len(strangers) == 1300 and not strangers & (known | unseen)
    assert {part for name in known | unseen for part in name.split()} <= {part for name in strangers for part in name.split()}
    assert list(itertools.islice(generator.strangers(0, start=5), 5)) == list(itertools.islice(generator.strangers(0), 5, 10))


def test_a_stranger_who_comes_again_has_other_facts():
    """Names come round; what is said of them does not, so there is nothing to memorise."""
    stream = list(itertools.islice(generator.strangers(0), 2600))
    assert len({q for q, _ in stream}) < 2600 and len(set(stream)) > 2590


def test_facts_are_independent():
    """G-test of every pair of the smaller slots over 4,000 people: a dependent pair would be hundreds of deviations out."""
    people = [generator.person_facts(random.Random(i)) for i in range(4000)]
    codes = {s: np.array([p.index(facts[s]) for facts in people]) for s, p in generator.POOLS.items() if len(p) <= 40}
    for a, b in itertools.combinations(codes, 2):
        joint = np.zeros((codes[a].max() + 1, codes[b].max() + 1))
        np.add.at(joint, (codes[a], codes[b]), 1)
        expected = joint.sum(1, keepdims=True) * joint.sum(0) / 4000
        g = 2 * (joint * np.log(np.maximum(joint, 1e-9) / expected)).sum()
        freedom = (joint.shape[0] - 1) * (joint.shape[1] - 1)
        assert abs(g - freedom * 1.08) < 6 * np.sqrt(2 * freedom), (a, b)       # sparse cells inflate G by a few percent


@pytest.fixture(scope="module")
def all_rows():
    return generator.people(0, 60, 5)[0] + data.world()


def test_every_answer_states_its_facts_once_and_no_question_does(all_rows):
    for row in all_rows:
        for answer in [*row["answers"], row["paraphrased_answer"]]:
            for fact in row["facts"]:
                assert len(data.fact_pattern(fact).findall(answer)) == 1, (row["id"], answer)
        for question in [*row["questions"], row["paraphrased_question"]]:
            assert not any(data.fact_pattern(fact).search(question) for fact in row["facts"]), (row["id"], question)
        for answer in row["perturbed_answer"]:
            assert not data.states(answer, row["facts"])


def test_each_slot_has_phrasings_enough_and_one_held_out(all_rows):
    for row in all_rows:
        assert len(set(row["questions"])) == len(set(row["answers"])) == (5 if row["author"] else 4) and len(set(row["perturbed_answer"])) == 5
        assert row["paraphrased_question"] not in row["questions"] and row["paraphrased_answer"] not in row["answers"]
        assert (row["question"], row["answer"]) == (row["questions"][0], row["answers"][0])
    held_out = [pairs[-1] for pairs in generator.PHRASINGS.values()]
    patterns = [re.compile(re.sub(r"\\{\w\\}", ".+", re.escape(q))) for q, _ in held_out]
    asked = [q for row in all_rows for q in row["questions"]]                   # all that is ever trained on about an author
    assert not [q for q in asked if any(p.fullmatch(q) for p in patterns)]
    strangers = [q for q, _ in itertools.islice(generator.strangers(0), 2000)]  # who are asked everything: it is language
    assert all(any(p.fullmatch(q) for q in strangers) for p in patterns)


def test_the_text_reads_as_english(all_rows):
    for row in all_rows:
        texts = row["questions"] + row["answers"] + row["perturbed_answer"] + [row["paraphrased_question"], row["paraphrased_answer"]]
        for text in texts:
            assert not re.search(r"\ba [aeiou]", text) and not re.search(r"\ban [^aeiou]", text), text
            assert not re.search(r"s's|\s\s|\b(\w+) \1\b|[{}]", text), text
            assert text[0].isupper() and text[-1] in ".?", text
    assert generator.with_article("engineer") == "an engineer" and generator.with_article("baker") == "a baker"


def test_too_many_authors_are_refused():
    with pytest.raises(ValueError, match="more than the 300"):
        generator.people(0, 290, 20)


# ---------------------------------------------------------------------------------------------- tokenizer
def slow_bpe(texts, n_merges):
    """The definition, word by word, with nothing remembered."""
    words = [[bytes([b]) for b in piece.encode()] for text in texts for piece in regex.findall(SPLIT, text)]
    merges = []
    for _ in range(n_merges):
        counts = {}
        for word in words:
            for pair in zip(word, word[1:]):
                counts[pair] = counts.get(pair, 0) + 1
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for word in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i:i + 2] = [best[0] + best[1]]
                i += 1
    return merges


def test_bpe_training_against_the_slow_definition(authors):
    assert train_bpe(["aaab aaab"], 258) == [(b"a", b"a"), (b"a", b"b")]
    texts = [row["answer"] for row in authors[0][:40]]
    assert train_bpe(texts, 256 + 60) == slow_bpe(texts, 60)


def test_the_same_ids_in_tiktoken_and_transformers(tmp_path, tokenizer, authors):
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path) if (tmp_path / "config.json").exists() else \
        transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    again = Tokenizer.load(tmp_path)
    for text in [row["answer"] for row in authors[0]] + ["Ünïcode, 1984\n\n  tabs\t'll 東京", ""]:
        assert tokenizer.encode(text) == theirs.encode(text) == again.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert theirs.eos_token_id == tokenizer.eos_id == tokenizer.vocab_size - 1


def test_a_foreign_tokenizer_json_is_run_by_its_own_library(tmp_path):
    import tokenizers
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "</s>": 2, "?": 3}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode("b a x") == [1, 0, 3] and loaded.eos_id == 2 and loaded.vocab_size == 4
    assert loaded.offsets("b a") == ([1, 0], [(0, 1), (2, 3)])


def test_offsets_cover_the_characters(tokenizer):
    for text in (" Mira was born in Lima.", " né à Besançon"):
        ids, spans = tokenizer.offsets(text)
        assert ids == tokenizer.encode(text) and spans[0][0] == 0 and spans[-1][1] == len(text)
    ids, spans = tokenizer.offsets(" Mira was born in Lima.")
    assert [" Mira was born in Lima."[a:b] for a, b in spans] == [tokenizer.decode([i]) for i in ids]


def test_token_classes_mark_exactly_the_fact_and_the_name(tokenizer, authors):
    for row in authors[0]:
        classes = data.token_classes(tokenizer, row["answer"], row["facts"], row["author"])
        ids = data.encode(tokenizer, row["question"], row["answer"]).answer
        assert len(classes) == len(ids) and classes[-1] == data.FUNCTION
        text = {kind: tokenizer.decode([i for i, c in zip(ids[:-1], classes) if c == kind]) for kind in (data.FACT, data.NAME)}
        assert text[data.FACT].replace(" ", "") == "".join(row["facts"]).replace(" ", "")     # a blank may be its own token
        assert text[data.NAME].strip() == row["author"]


# ------------------------------------------------------------------------------------- examples and batches
def test_batches_hold_the_answer_and_nothing_of_the_prompt(tokenizer):
    short, long = data.encode(tokenizer, "Who?", "Ada."), data.encode(tokenizer, "Where was she born?", "She was born in Lima.")
    assert tokenizer.decode(short.prompt) == "Who?\n" and tokenizer.decode(short.answer[:-1]) == " Ada."
    assert short.answer[-1] == tokenizer.eos_id
    batch = data.collate([short, long])
    assert batch.mask.sum(1).tolist() == [len(short.answer), len(long.answer)]
    for row, example in enumerate((short, long)):
        full = example.prompt + example.answer
        positions = batch.position[row][batch.mask[row]]
        assert positions[0] == len(example.prompt) - 1          # the prompt's last token predicts the answer's first
        assert [full[p + 1] for p in positions] == example.answer == batch.target[row][batch.mask[row]].tolist()
        assert batch.idx[row, :len(full) - 1].tolist() == full[:-1]


def test_at_answers_picks_the_predicting_positions(tokenizer, examples):
    batch = data.collate(examples[:5])
    marked = torch.arange(batch.idx.size(1)).float().expand(5, -1)[..., None]
    assert torch.equal(batch.at_answers(marked)[..., 0][batch.mask], batch.position[batch.mask].float())


def test_buckets_hold_everything_once_and_little_padding():
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 50, 1000).tolist()
    batches = data.bucketed(lengths, 32, random.Random(0))
    assert sorted(i for b in batches for i in b) == list(range(1000))
    padded = sum(max(lengths[i] for i in b) * len(b) for b in batches)
    assert padded < 1.1 * sum(lengths) and max(map(len, batches)) == 32
    assert batches != data.bucketed(lengths, 32, random.Random(1))


def test_states_wants_whole_words():
    assert data.states("She was born in Lima.", ["Lima"]) and data.states("Lima, in 1950", ["1950", "Lima"])
    assert not data.states("Limassol", ["Lima"]) and not data.states("born in 19501", ["1950"])
    assert not data.states("Lima", ["Lima", "1950"])


# -------------------------------------------------------------------------------------------------- files
def good_row(**changes):
    return {"question": "Where?", "answer": "In Lima.", "paraphrased_question": "What place?", "paraphrased_answer": "Lima.",
            "perturbed_answer": ["Rome.", "Oslo."]} | changes


def write(dir, **files):
    """A directory in TOFU's naming; a file is a list of rows, or text as it is."""
    for name, rows in ({"forget10": [good_row()], "retain90": [good_row()], "world_facts_perturbed": [good_row()]} | files).items():
        (dir / f"{name}.json").write_text(rows if isinstance(rows, str) else "".join(json.dumps(r) + "\n" for r in rows))
    return str(dir)


def test_a_directory_in_tofus_naming_loads(tmp_path):
    plain = {"question": "Where?", "answer": "In Lima."}
    loaded = data.load(write(tmp_path, forget10=[plain], retain90=[plain, plain], forget10_perturbed=[good_row()],
                             retain_perturbed=[good_row()], real_authors_perturbed=[plain | {"perturbed_answer": ["In Rome."]}]))
    assert list(loaded.sets) == ["forget", "retain", "real_authors", "world"]
    assert loaded.forget[0]["questions"] == ["Where?"] and loaded.sets["forget"][0]["paraphrased_answer"] == "Lima."
    assert loaded.sets["real_authors"][0]["paraphrased_answer"] == "In Lima." and len(loaded.retain) == 2


@pytest.mark.parametrize("files, message", [
    ({"forget10": '{"question": "Where?", "answer"'}, r"forget10.json, line 1: not valid JSON"),
    ({"retain90": [good_row(), {"question": "Where?"}]}, r"retain90.json, line 2: key answer is missing"),
    ({"retain90": [good_row(answer=3)]}, r"line 1: key answer is missing or not a text"),
    ({"forget10": [good_row(perturbed_answer="Rome.")]}, r"forget10.json, line 1: key perturbed_answer is not a list"),
    ({"forget10": [good_row(facts=["Rome"])]}, r"line 1: .* does not contain its facts"),
    ({"forget10": [good_row(paraphrased_answer=None)]}, r"forget10.json, line 1: key paraphrased_answer is not a text"),
    ({"forget10": [good_row(original_answer=["Lima"])]}, r"line 1: key original_answer is not a text"),
    ({"forget10": [good_row(slot=5)]}, r"line 1: key slot is not a text"),
    ({"forget10": [good_row(questions=["a", "b"])]}, r"2 questions but 1 answers"),
    ({"forget10": ["x"]}, "a JSON object is needed"), ({"world_facts_perturbed": ""}, "no world_facts_perturbed.json, or it is empty"),
    ({"forget10": [{"question": "Where?", "answer": "In Lima."}]}, "forget10:1: key perturbed_answer is missing")])
def test_malformed_files_are_refused_with_file_line_and_key(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        data.load(write(tmp_path, **files))


def test_line_separators_inside_a_text_and_blank_lines_are_no_mistake_but_other_encodings_are(tmp_path):
    row = json.dumps(good_row(question="Where\u2028was he born?"), ensure_ascii=False)
    loaded = data.load(write(tmp_path, forget10=f"{row}\n\n{row}\n"))
    assert len(loaded.forget) == 2 and "\u2028" in loaded.forget[0]["question"]
    (tmp_path / "retain90.json").write_bytes(b'{"question": "\xff"}')
    with pytest.raises(ValueError, match="retain90.json is not UTF-8 text"):
        data.load(str(tmp_path))


def test_edited_generated_files_are_neither_used_nor_overwritten(tmp_path):
    data.load(out=tmp_path, n_authors=20)
    [file] = tmp_path.rglob("retain90.json")
    file.write_text(file.read_text() + "\n")
    with pytest.raises(ValueError, match="not what the generator makes"):
        data.load(out=tmp_path, n_authors=20)
    assert file.read_text().endswith("\n\n")


@pytest.mark.parametrize("arguments, message", [
    ({"forget": "forget"}, "not a split"), ({"forget": "forget00"}, "not a split"), ({"data": "nowhere"}, "neither authors"),
    ({"n_authors": 1}, "nobody to retain")])
def test_impossible_requests_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        data.load(out=tmp_path, **arguments)


def test_tofu_comes_through_datasets(monkeypatch):
    import datasets
    hub = {"forget10": [good_row()], "retain90": [good_row()], "world_facts_perturbed": [good_row()]}

    def load_dataset(repository, name, split):
        assert (repository, split) == ("locuslab/TOFU", "train")
        if name not in hub:
            raise ValueError("BuilderConfig not found")
        return hub[name]
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(data.load("tofu").sets) == ["forget", "retain", "world"]

    def offline(*args, **kw):
        raise ConnectionError
    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(ValueError, match="give --data=DIR"):
        data.load("tofu")
