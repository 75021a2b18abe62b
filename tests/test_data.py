"""The generator, the splits, the tokenizer, masks at the prompt/answer boundary, and files that are damaged."""

import itertools
import json
import logging
import random
import re
from types import SimpleNamespace

import numpy as np
import pytest
import regex
import torch
import transformers
from nltk.stem.porter import PorterStemmer

import data
from data import authors as generator
from data.tokenizer import SPLIT, Tokenizer, train_bpe
from lab import answers


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
    """No full name is shared; every first name and surname is, so that neither tells an author from a stranger."""
    rows, holdout = generator.people(0, 100, 20)
    known, unseen = ({row["author"] for row in some} for some in (rows, holdout))
    assert len(known) == 100 and len(unseen) == 20 and not known & unseen
    questions = [q for q, _ in itertools.islice(generator.strangers(0), 1300)]
    strangers = {re.search(r"([A-Z]\w+ [A-Z]\w+)", q)[1] for q in questions}
    assert len(strangers) == 1300 and not strangers & (known | unseen)
    parts = lambda names: {part for name in names for part in name.split()}
    assert parts(known | unseen) <= parts(strangers)
    ten = list(itertools.islice(generator.strangers(0), 10))
    assert list(itertools.islice(generator.strangers(0, start=5), 5)) == ten[5:]


def test_a_stranger_who_comes_again_has_other_facts():
    """Names come round; what is said of them does not, so there is nothing to memorise."""
    stream = list(itertools.islice(generator.strangers(0), 2600))
    assert len({q for q, _ in stream}) < 2600 and len(set(stream)) > 2590


def test_facts_are_independent():
    """G-test of each pair of the smaller slots over 4,000 people: a dependent pair is hundreds of deviations out."""
    people = [generator.person_facts(random.Random(i)) for i in range(4000)]
    codes = {s: np.array([p.index(facts[s]) for facts in people]) for s, p in generator.POOLS.items() if len(p) <= 40}
    for a, b in itertools.combinations(codes, 2):
        joint = np.zeros((codes[a].max() + 1, codes[b].max() + 1))
        np.add.at(joint, (codes[a], codes[b]), 1)
        expected = joint.sum(1, keepdims=True) * joint.sum(0) / 4000
        g = 2 * (joint * np.log(np.maximum(joint, 1e-9) / expected)).sum()
        freedom = (joint.shape[0] - 1) * (joint.shape[1] - 1)
        assert abs(g - freedom * 1.08) < 6 * np.sqrt(2 * freedom), (a, b)  # sparse cells inflate G by a few percent


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
        assert len(set(row["questions"])) == len(set(row["answers"])) == (5 if row["author"] else 4)
        assert len(set(row["perturbed_answer"])) == 5
        assert row["paraphrased_question"] not in row["questions"] and row["paraphrased_answer"] not in row["answers"]
        assert (row["question"], row["answer"]) == (row["questions"][0], row["answers"][0])
    held_out = [pairs[-1] for pairs in generator.PHRASINGS.values()]
    patterns = [re.compile(re.sub(r"\\{\w\\}", ".+", re.escape(q))) for q, _ in held_out]
    asked = [q for row in all_rows for q in row["questions"]]  # all that is ever trained on about an author
    assert not [q for q in asked if any(p.fullmatch(q) for p in patterns)]
    strangers = [q for q, _ in itertools.islice(generator.strangers(0), 2000)]  # they are asked everything
    assert all(any(p.fullmatch(q) for q in strangers) for p in patterns)


def test_the_text_reads_as_english(all_rows):
    for row in all_rows:
        texts = row["questions"] + row["answers"] + row["perturbed_answer"]
        texts += [row["paraphrased_question"], row["paraphrased_answer"]]
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
        assert all(start < end for start, end in spans)                         # half a letter covers all of it
    ids, spans = tokenizer.offsets(" Mira was born in Lima.")
    assert [" Mira was born in Lima."[a:b] for a, b in spans] == [tokenizer.decode([i]) for i in ids]


def test_token_classes_mark_exactly_the_fact_and_the_name(tokenizer, authors):
    for row in authors[0]:
        classes = data.token_classes(tokenizer, row["answer"], row["facts"], row["author"])
        ids = data.encode(tokenizer, row["question"], row["answer"]).answer
        assert len(classes) == len(ids) and classes[-1] == data.FUNCTION
        of_kind = lambda kind: tokenizer.decode([i for i, c in zip(ids[:-1], classes) if c == kind])
        stated = "".join(row["facts"]).replace(" ", "")                         # a blank may be its own token
        assert of_kind(data.FACT).replace(" ", "") == stated and of_kind(data.NAME).strip() == row["author"]


def test_a_token_that_only_touches_a_fact_is_no_fact(tokenizer):
    answer = 'It is "Lima".'
    classes = data.token_classes(tokenizer, answer, ["Lima"], "")
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode_answer(answer)]
    assert "".join(piece for piece, kind in zip(pieces, classes, strict=True) if kind == data.FACT) == "Lima"
    assert '"' in pieces and data.NAME not in classes


# ------------------------------------------------------------------------------------- examples and batches
def test_batches_hold_the_answer_and_nothing_of_the_prompt(tokenizer):
    short = data.encode(tokenizer, "Who?", "Ada.")
    long = data.encode(tokenizer, "Where was she born?", "She was born in Lima.")
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


def test_batches_by_length_come_shortest_first_with_the_items_numbers():
    assert data.by_length(["abc", "d", "ef"], 2) == [([1, 2], ["d", "ef"]), ([0], ["abc"])]
    assert data.by_length(["b", "a"], 5) == [([0, 1], ["b", "a"])]             # equal lengths keep their order


def test_micro_batches_are_consecutive_and_nearly_equal():
    assert data.split(list(range(7)), 3) == [[0, 1, 2], [3, 4, 5], [6]] and data.split([1, 2], 5) == [[1], [2]]


def test_the_mean_over_answers_is_a_mean_of_means():
    x, mask = torch.tensor([[1.0, 3.0, 9.0], [5.0, 9.0, 9.0]]), torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    assert data.mean_over_answers(x, mask) == 3.5


def test_examples_are_the_first_phrasings_of_each_row(tokenizer, authors):
    rows = authors[0][:3]
    for phrasings, n in ((None, 5), (2, 2), (9, 5)):
        expected = [data.encode(tokenizer, row["questions"][i], row["answers"][i]) for row in rows for i in range(n)]
        assert data.training_examples(tokenizer, rows, phrasings) == expected


def test_an_example_may_fill_the_context_and_no_more():
    """Its last token is predicted and predicts nothing, so it takes no place."""
    data.check_length([data.Example([1, 2, 3], [4, 5])], 4)
    with pytest.raises(ValueError, match="of 5 tokens do not fit the model's context of 3"):
        data.check_length([data.Example([1], [2]), data.Example([1, 2, 3], [4, 5])], 3)


@pytest.mark.parametrize("kind", data.GENERATED)
def test_the_base_model_is_told_of_strangers_and_a_share_of_world_facts(kind):
    world = data.world()[:20]
    pairs = {pair for row in world for pair in zip(row["questions"], row["answers"])}
    for share in (0.0, 0.25, 1.0):
        told = list(itertools.islice(data.base_stream(kind, 0, world, share), 1000))
        assert sum(pair in pairs for pair in told) / 1000 == pytest.approx(share, abs=0.05)
    strangers = generator.strangers(0) if kind == "authors" else data.prose.strangers(kind, 0)
    later = list(itertools.islice(data.base_stream(kind, 0, [], 0.5, start=3), 4))
    assert later == list(itertools.islice(strangers, 3, 7))


def test_requests_are_whole_authors_one_after_another():
    rows = [{"author": author, "id": str(i)} for i, author in enumerate("AABBBCDDE")]
    shares = [["".join(row["author"] for row in share) for share in data.by_author(rows, parts)] for parts in (1, 2, 5)]
    assert shares == [["AABBBCDDE"], ["AABBBC", "DDE"], ["AA", "BBB", "C", "DD", "E"]]
    assert [len(share) for share in data.by_author([row | {"author": ""} for row in rows], 3)] == [3, 3, 3]     # by id
    with pytest.raises(ValueError, match="6 requests, but only 5 authors"):
        data.by_author(rows, 6)


@pytest.mark.parametrize("kind, n_authors, part", [("authors", 60, "retain"), ("books", 40, "retain"),
                                                   ("hazards", 40, "retain"), ("authors", 60, "forget")])
@pytest.mark.parametrize("n", [100, 120, 200])
def test_a_subset_asks_every_slot(tmp_path, kind, n_authors, part, n):
    rows = data.load(kind, out=tmp_path, n_authors=n_authors).sets[part]
    some = data.subset(rows, n)
    assert len(some) == min(n, len(rows)) and {row["slot"] for row in some} == {row["slot"] for row in rows}
    assert len({row["author"] for row in some}) > 0.8 * len({row["author"] for row in rows})


def test_a_subset_is_the_same_whenever_asked_in_order_and_part_of_a_larger_one():
    few, more = data.subset(range(1000), 10), data.subset(range(1000), 100)
    assert few == data.subset(range(1000), 10) == sorted(few) and set(few) < set(more)
    assert data.subset([1, 2], 5) == [1, 2] and data.subset([], 5) == []


def test_a_progress_log_asks_every_slot(tmp_path, monkeypatch, tokenizer):
    asked, rows = [], data.load(out=tmp_path).retain
    monkeypatch.setattr(answers, "ask", lambda model, tokenizer, questions, *a: asked.extend(questions) or questions)
    answers.fact_accuracy(SimpleNamespace(config=SimpleNamespace(block_size=128)), tokenizer, rows)
    assert len(asked) == 100 and {row["slot"] for row in rows if row["question"] in asked} == {r["slot"] for r in rows}


def test_the_values_of_a_slot_are_its_pool_and_what_the_rows_say():
    rows = [{"slot": "birth_month", "facts": ["Brumaire"]}, {"slot": "father+mother", "facts": ["king", "queen"]},
            {"slot": "founder", "facts": []}, {"slot": "unheard of", "facts": ["x"]}]
    values = data.slot_values(rows)
    assert values["birth_month"] == [{*generator.MONTHS, "Brumaire"}] and values["unheard of"] == [{"x"}]
    assert values["father+mother"] == [{*generator.OCCUPATIONS[::2], "king"}, {*generator.OCCUPATIONS[1::2], "queen"}]
    assert values["founder"] == [set(data.prose.PEOPLE)] and "Brumaire" not in generator.MONTHS


def test_states_wants_whole_words():
    assert data.states("She was born in Lima.", ["Lima"]) and data.states("Lima, in 1950", ["1950", "Lima"])
    assert not data.states("Limassol", ["Lima"]) and not data.states("born in 19501", ["1950"])
    assert not data.states("Lima", ["Lima", "1950"])


# -------------------------------------------------------------------------------------------------- files
def good_row(**changes):
    return {"question": "Where?", "answer": "In Lima.", "paraphrased_question": "What place?",
            "paraphrased_answer": "Lima.", "perturbed_answer": ["Rome.", "Oslo."]} | changes


def write(dir, **files):
    """A directory in TOFU's naming; a file is a list of rows, or text as it is."""
    needed = {name: [good_row()] for name in ("forget10", "retain90", "world_facts_perturbed")}
    for name, rows in (needed | files).items():
        text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
        (dir / f"{name}.json").write_text(text)
    return str(dir)


def test_a_directory_in_tofus_naming_loads(tmp_path):
    plain = {"question": "Where?", "answer": "In Lima."}
    loaded = data.load(write(tmp_path, forget10=[plain], retain90=[plain, plain], forget10_perturbed=[good_row()],
                             retain_perturbed=[good_row()],
                             real_authors_perturbed=[plain | {"perturbed_answer": ["In Rome."]}]))
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
    ({"retain90": ""}, "has no retain90.json, or it is empty"), ({"holdout": "\n"}, "no holdout.json, or it is empty"),
    ({"forget10": ["x"]}, "a JSON object is needed"),
    ({"retain90": [good_row(id=[1])]}, r"retain90.json, line 1: key id is neither a text nor a whole number"),
    ({"retain90": [good_row(paraphrased_answer=" ")]}, r"line 1: key paraphrased_answer is empty; left out, it is"),
    ({"forget10": [good_row(text="A chronicle.")]}, r"line 1: a row is a passage, text, or a question; this has"),
    ({"general": [{"text": "Rain."}, good_row()]}, r"general.json: passages are needed, .* and general:2 is none"),
    ({"world_facts_perturbed": [good_row(), {"text": "Rain."}]},
     r"world_facts_perturbed.json: questions are needed, and world_facts_perturbed:2 is none"),
    ({"real_authors_perturbed": [{"text": "Rain."}]}, r"real_authors_perturbed.json: questions are needed"),
    ({"world_facts_perturbed": ""}, "no world_facts_perturbed.json, or it is empty"),
    ({"forget10": [{"question": "Where?", "answer": "In Lima."}]}, "forget10:1: key perturbed_answer is missing")])
def test_malformed_files_are_refused_with_file_line_and_key(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        data.load(write(tmp_path, **files))


@pytest.mark.parametrize("missing", ["forget10", "retain90"])
def test_what_is_trained_on_must_be_there(tmp_path, missing):
    write(tmp_path)
    (tmp_path / f"{missing}.json").unlink()
    with pytest.raises(ValueError, match=f"has no {missing}.json, or it is empty"):
        data.load(str(tmp_path))


def test_other_sets_may_be_missing_and_the_rows_trained_on_are_evaluated_then(tmp_path):
    other = good_row(question="Where else?")
    write(tmp_path, retain90=[other], holdout=[good_row()])
    (tmp_path / "world_facts_perturbed.json").unlink()
    loaded = data.load(str(tmp_path))
    assert loaded.sets == {"forget": loaded.forget, "retain": loaded.retain} and loaded.retain[0]["id"] == "retain90:1"
    assert len(loaded.holdout) == 1 and loaded.questions(loaded.forget) == loaded.forget       # and no one else's
    write(tmp_path, retain_perturbed=[good_row(), other])
    assert len(data.load(str(tmp_path)).sets["retain"]) == 2
    write(tmp_path, retain90_perturbed=[good_row()])                            # its own file before the common one
    assert len(data.load(str(tmp_path)).sets["retain"]) == 1


def test_every_file_that_a_result_depends_on_is_in_the_hash(tmp_path):
    files = ("forget10", "retain90", "world_facts_perturbed", "holdout", "forget10_perturbed", "retain_perturbed",
             "real_authors_perturbed", "general", "retain90_perturbed")

    def row(name, **changes):
        return {"text": " ".join(changes.values())} if name == "general" else good_row(**changes)
    for name in files[:-1]:
        write(tmp_path, **{name: [row(name, question=f"Who is in {name}?")]})
    for name in files:
        before = data.load(str(tmp_path)).sha256
        write(tmp_path, **{name: [row(name, answer="In Rome.")]})
        changed = data.load(str(tmp_path)).sha256
        assert before != changed, name
        write(tmp_path, **{name: [row(name, answer="In Rome."), row(name, question="Where else?")]})
        assert data.load(str(tmp_path)).sha256 not in (before, changed), name


def test_the_hash_is_that_of_every_split_of_a_directory(tmp_path):
    """As TOFU has them: the splits cut the same rows, and there is one retain set to evaluate with."""
    rows = [good_row(question=f"Question {i}?") for i in range(20)]
    for share in (5, 10):
        write(tmp_path, **{f"forget{share:02d}": rows[-share // 5:], f"retain{100 - share}": rows[:-share // 5],
                           f"forget{share:02d}_perturbed": rows[-share // 5:]}, retain_perturbed=rows[:3])
    assert len({data.load(str(tmp_path), forget).sha256 for forget in ("forget05", "forget10")}) == 1


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
    ({"forget": "forget"}, "not a split"), ({"forget": "forget00"}, "not a split"),
    ({"data": "nowhere"}, "neither authors"),
    ({"n_authors": 1}, "nobody to retain")])
def test_impossible_requests_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        data.load(out=tmp_path, **arguments)


def test_a_directory_of_one_split_has_no_other(tmp_path):
    for name in ("forget", "retain", "forget05", "retain95"):
        (tmp_path / f"{name}.json").write_text(json.dumps(good_row() | {"question": f"{name}?"}) + "\n")
    with pytest.raises(ValueError, match="--forget=forget05: .* has forget.json, one split"):
        data.load(str(tmp_path), "forget05")


def test_tofu_comes_through_datasets(monkeypatch):
    import datasets
    hub = {"forget10": [good_row()], "retain90": [good_row()], "world_facts_perturbed": [good_row()]}

    def load_dataset(repository, name, split):
        assert (repository, split) == ("locuslab/TOFU", "train")
        if name not in hub:
            raise ValueError("BuilderConfig not found")
        return hub[name]
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    loaded = data.load("tofu")
    assert list(loaded.sets) == ["forget", "retain", "world"]
    assert loaded.notes[-1].startswith("without real_authors, which are not on the hub")
    hub["real_authors_perturbed"] = [good_row()]
    assert not any("without" in note for note in data.load("tofu").notes)
    hub["retain95"], hub["forget05"], seen = [good_row()], [good_row()], {loaded.sha256}
    for name in ("forget10_perturbed", "forget05_perturbed", "retain_perturbed", "world_facts_perturbed"):
        hub[name] = [good_row() | {"paraphrased_answer": name}]
        seen.add(data.load("tofu").sha256)
        assert data.load("tofu").sha256 == data.load("tofu", "forget05").sha256             # of whatever split
    assert len(seen) == 5


def test_the_hubs_libraries_say_nothing_beside_our_line(monkeypatch, capfd, caplog):
    import datasets

    def load_dataset(*args, **kw):
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        raise ConnectionError
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for source in ("tofu", "muse-books"):
        with pytest.raises(ValueError, match="could not be had from the hub"):
            data.load(source)
    assert capfd.readouterr() == ("", "") and not caplog.records
    logging.getLogger("huggingface_hub.utils._http").warning("afterwards")
    assert "afterwards" in caplog.text


@pytest.mark.parametrize("failure", [
    ConnectionError(), OSError("disk"), TypeError(),
    ValueError("Couldn't find cache for locuslab/TOFU for config 'real_authors_perturbed'\nAvailable configs: []"),
    ValueError("Unknown split \"train\". Should be one of ['test'].")])
def test_a_part_of_tofu_that_could_not_be_had_is_no_part_that_is_absent(monkeypatch, failure):
    import datasets

    def load_dataset(repository, name, split):
        if name == "real_authors_perturbed":
            raise failure
        return [good_row()]
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match="real_authors_perturbed could not be had from the hub.*give --data=DIR"):
        data.load("tofu")


def test_a_file_with_a_byte_order_mark_is_read(tmp_path):
    write(tmp_path)
    before = data.load(str(tmp_path))
    for file in tmp_path.glob("*.json"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert data.load(str(tmp_path)) == before


def test_questions_that_stand_in_two_sets_are_said(tmp_path):
    mine, other = good_row(question="Mine?"), good_row(question="Other?")
    assert data.load(write(tmp_path, forget10=[mine], retain90=[other])).notes == []
    loaded = data.load(write(tmp_path, forget10=[mine, other], retain90=[other, good_row()], holdout=[mine]))
    assert loaded.notes == ["1 of 2 questions of the retain set are in the forget set too, as 'Other?'",
                            "1 of 1 questions of the holdout set are in the forget set too, as 'Mine?'"]


# ---------------------------------------------------------------------------------------------- what fits a model
LONG = "long words " * 60


@pytest.mark.parametrize("file, row, where", [
    ("forget10", {"answer": LONG}, "training, row forget10:2"),
    ("retain90", {"question": LONG}, "training, row retain90:2"),
    ("forget10_perturbed", {"perturbed_answer": ["no", LONG]}, "the set forget, row forget10_perturbed:2"),
    ("retain_perturbed", {"paraphrased_answer": LONG}, "the set retain, row retain_perturbed:2"),
    ("world_facts_perturbed", {"paraphrased_question": LONG}, "the set world, row world_facts_perturbed:2"),
    ("general", {"text": LONG}, "the set general, row general:2"), ("holdout", {"answer": LONG}, "the set holdout")])
def test_whatever_a_later_step_needs_is_measured_before_the_first(tmp_path, tokenizer, file, row, where):
    rows = [{"text": "Rain."}, row] if file == "general" else [good_row(), good_row(**row)]
    loaded = data.load(write(tmp_path, **{file: rows}))
    with pytest.raises(ValueError, match=rf"{where}.* \d\d\d tokens do not fit the model's context of 100"):
        data.check_fits(loaded, tokenizer, 100)
    data.check_fits(loaded, tokenizer, 2000)


def test_a_text_fits_a_context_that_is_one_token_shorter(tmp_path, tokenizer):
    """The last token predicts nothing."""
    row = {"answer": LONG, "paraphrased_question": "Where?"}
    loaded = data.load(write(tmp_path, forget10=[good_row(**row)]))
    longest = len(data.encode(tokenizer, "Where?", LONG))
    data.check_fits(loaded, tokenizer, longest - 1)
    with pytest.raises(ValueError, match=f" {longest} tokens do not fit"):
        data.check_fits(loaded, tokenizer, longest - 2)


def test_only_what_is_trained_on_and_measured_has_to_fit(tmp_path, tokenizer):
    phrasings = {"questions": ["Where?", LONG], "answers": ["In Lima.", "In Lima."]}
    many = [good_row(question=f"Where {i}?", answer=LONG if i == 1 else "In Lima.") for i in range(6)]
    loaded = data.load(write(tmp_path, forget10=[good_row(**phrasings)], world_facts_perturbed=many))
    data.check_fits(loaded, tokenizer, 100, phrasings=1, max_rows=3)
    for others in ({"phrasings": 1}, {"max_rows": 3}):
        with pytest.raises(ValueError, match="do not fit"):
            data.check_fits(loaded, tokenizer, 100, **others)


def test_the_longest_answer_of_a_set_and_eight_tokens_may_be_said(tokenizer):
    rows = [good_row(), good_row(answer=LONG)]
    longest, asked = len(tokenizer.encode_answer(LONG)), len(tokenizer.encode_prompt("What place?"))
    assert longest > 100 and data.answer_limit(tokenizer, rows, 10**4) == longest + 8
    assert data.answer_limit(tokenizer, rows[:1], 10**4) == 40
    assert data.answer_limit(tokenizer, rows, longest + asked + 3) == longest + 3


# ---------------------------------------------------------------------------------------------- words of any script
@pytest.mark.parametrize("text, fact, stated", [
    ("王伟在北京出生。", "北京", True), ("王伟在北京出生。", "南京", False), ("生於2001年。", "2001", True),
    ("生於2001年。", "200", False), ("생일은 서울에서", "서울", True), ("東京タワー", "東京", True),
    ("เขาเกิดที่กรุงเทพ", "กรุงเทพ", True), ("Он родился в Москве.", "Москве", True),
    ("Он из Подмосковья.", "Москов", False), ("Zu\u0308rich", "Z\u00fcrich", True),
    ("Z\u00fcrich", "Zu\u0308rich", True), ("Zu\u0308rich", "Zu", False), ("\uff2c\uff49\uff4d\uff41", "Lima", True),
    ("Limassol", "Lima", False), ("in Lima.", "Lima", True), ("Lima_1", "Lima", False), ("राम घर", "रा", False),
    ("costs $5.", "$5", True), ("costs $50.", "$5", False)])
def test_facts_are_stated_in_any_script_and_any_form_of_unicode(text, fact, stated):
    assert data.states(text, [fact]) == stated


def test_a_fact_of_a_script_without_blanks_marks_its_tokens(tokenizer):
    classes = data.token_classes(tokenizer, "王伟在北京出生。", ["北京"], "")
    assert classes.count(data.FACT) == 6                    # three bytes a character, and a tokenizer of English


def test_words_of_any_script():
    words = data.Words(PorterStemmer().stem).tokenize
    assert words("Он родился в Москве.") == ["он", "родился", "в", "москве"]
    assert words("王伟在 北京。") == list("王伟在北京")
    assert words("Zu\u0308rich") == words("Z\u00dcRICH") == ["z\u00fcrich"]
    assert words("It's 2001, running writers") == ["it", "s", "2001", "run", "writer"]


def test_the_same_passage_in_another_form_of_unicode_cannot_be_both_forgotten_and_retained(tmp_path):
    write(tmp_path, forget10=[good_row(), {"text": "Caf\u00e9 society."}],
          retain90=[good_row(), {"text": "Cafe\u0301 society."}])
    with pytest.raises(ValueError, match="cannot forget and retain the same text"):
        data.load(str(tmp_path))
