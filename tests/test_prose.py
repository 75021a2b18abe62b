"""Passages and options: the generated books and hazards, what a passage is in training, and the metrics of both."""

import collections
import itertools
import json

import numpy as np
import pytest
import torch

import data
import eval
from data import prose
from tests.conftest import small_model

KINDS = list(prose.WORLDS)


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


def test_the_same_seed_gives_the_same_bytes_and_thing_i_does_not_depend_on_their_number(kind):
    assert prose.things(kind, 0, 10) == prose.things(kind, 0, 10) != prose.things(kind, 1, 10)
    few, many = prose.things(kind, 0, 5), prose.things(kind, 0, 10)
    assert few[0] == many[0][:len(few[0])] and few[1] == many[1][:len(few[1])] and few[2] == many[2]


def test_learnt_held_out_and_strangers_never_share_a_name_or_a_passage(kind):
    passages, _, holdout = prose.things(kind, 0, 40)
    learnt, unseen = ({row["author"] for row in rows} for rows in (passages, holdout))
    passages = [row for row in passages if "text" in row]
    assert len(learnt) == 40 and len(unseen) == prose.N_HOLDOUT and not learnt & unseen
    told = list(itertools.islice(prose.strangers(kind, 0), 400))
    assert not any(name in text.replace(".", " ").split() for _, text in told for name in learnt | unseen)
    texts = [row["text"] for row in passages + holdout]
    assert len(set(texts)) == len(texts)
    assert list(itertools.islice(prose.strangers(kind, 0, start=5), 5)) == told[5:10]


def test_every_passage_states_its_facts_and_every_question_has_one_right_answer(kind):
    passages, questions, _ = prose.things(kind, 0, 40)
    facts = collections.defaultdict(set)
    for row in (row for row in passages if "text" in row):
        facts[row["author"]] |= set(row["facts"])
        assert data.states(row["text"], row["facts"]), row
    for row in questions:
        assert set(row["facts"]) <= facts[row["author"]]
        assert data.states(row["answer"], row["facts"])
        assert len({row["answer"], *row["perturbed_answer"]}) == 1 + prose.WORLDS[kind].n_wrong
        assert not data.states(row["question"], row["facts"])
        assert not any(data.states(text, row["facts"]) for text in row["perturbed_answer"]), row


def test_the_splits_are_whole_books_and_both_halves_of_the_hazards(tmp_path):
    books = data.load("books", "forget10", tmp_path, n_authors=20)
    assert len({row["author"] for row in books.forget}) == 2 and len(books.forget) == 2 * (3 + 15)
    assert len(books.retain) == 18 * (3 + 15)
    assert {row["author"] for row in books.sets["forget"]} == {row["author"] for row in books.forget}
    assert books.sets["forget_text"] == [row for row in books.forget if not row["question"]]
    assert all(not row["question"] for row in books.holdout)
    assert not {row["author"] for row in books.sets["retain"]} & {row["author"] for row in books.forget}
    hazards = data.load("hazards", "forget50", tmp_path, n_authors=20)
    assert [len({row["author"] for row in rows}) for rows in (hazards.forget, hazards.retain)] == [10, 10]
    assert all(len(row["choices"]) == 4 for part in ("forget", "retain") for row in hazards.sets[part])
    assert hazards.questions(hazards.forget) == hazards.sets["forget"]
    assert hazards.questions(hazards.retain[:6]) == hazards.sets["retain"][:8]                 # of one substance
    assert books.questions(books.retain) == [row for row in books.retain if row["question"]]


def test_a_passage_is_learnt_from_its_first_token_to_its_end(tokenizer):
    text = "The river runs by."
    example = data.encode(tokenizer, "", text)
    assert example.prompt == [tokenizer.eos_id] and example.answer == tokenizer.encode(f" {text}") + [tokenizer.eos_id]
    batch = data.collate([example])
    assert batch.mask.all() and batch.target.size(1) == batch.idx.size(1)


def folder(path, **files):
    for name, rows in files.items():
        (path / f"{name}.json").write_text("\n".join(json.dumps(row) for row in rows))
    return path


CHOICE = {"question": "Which one?", "choices": ["one", "two", "three", "four"], "answer": 2}


def test_published_options_and_a_split_of_its_own(tmp_path):
    rows = data.load(folder(tmp_path, forget=[{"text": "a b c", "author": "A"}], retain=[{"text": "d e f"}],
                            forget_perturbed=[CHOICE], retain_perturbed=[CHOICE],
                            general=[{"text": "Water is wet."}]))
    assert rows.sets["forget"][0]["answer"] == "three"
    assert rows.sets["forget"][0]["perturbed_answer"] == ["one", "two", "four"]
    assert rows.forget[0]["answer"] == "a b c" and rows.sets["general"][0]["question"] == ""
    assert set(rows.sets) == {"forget", "retain", "forget_text", "retain_text", "general"}


@pytest.mark.parametrize("files, message", [
    ({"forget": [{"text": "a b"}], "retain": [{"text": "a b"}]}, "the passage forget:1 of forget is in retain too"),
    ({"forget": [{"text": "a b"}], "retain": []}, "has no retain.json, or it is empty"),
    ({"forget": [{"text": "a"}], "retain": [{"text": "b"}]},
     "no questions to evaluate forget with; forget_perturbed.json"),
    ({"forget": [{"question": "", "answer": "x"}], "retain": [CHOICE]}, "line 1: key question is missing"),
    ({"forget": [{"text": " "}], "retain": [{"text": "a"}]}, "forget.json, line 1: key text is not a text, or empty"),
    ({"forget": [{"text": ["a"]}], "retain": [{"text": "a"}]}, "key text is not a text"),
    ({"forget": [CHOICE | {"choices": ["one", "two", "two"]}], "retain": [CHOICE]},
     "line 1: two of the choices are equal"),
    ({"forget": [CHOICE | {"answer": 4}], "retain": [CHOICE]}, "key answer is 4, but the choices are numbered 0 to 3"),
    ({"forget": [CHOICE | {"answer": "five"}], "retain": [CHOICE]}, "neither one of the choices nor its number"),
    ({"forget": [CHOICE | {"choices": "abc"}], "retain": [CHOICE]}, "key choices is not a list"),
    ({"forget": [CHOICE | {"choices": ["one"]}], "retain": [CHOICE]}, "at least two texts")])
def test_what_is_wrong_with_a_passage_or_a_question_is_said(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        data.load(folder(tmp_path, **files))


def test_choices_by_hand():
    right, wrong = [-1.0, -3.0, -2.0], [[-2.0, -5.0], [-2.0, -9.0], [-2.0, -4.0]]
    assert [eval.choice_accuracy(*pair) for pair in zip(right, wrong)] == [1, 0, 0]             # a tie is not known
    assert eval.total([{"logp": np.array([-1.0, -0.5])}, {"logp": np.array([-2.0])}]).tolist() == [-1.5, -2.0]


def test_rouge_f1_by_hand():
    """Longest common subsequence "the river" of 2 words: recall 2/4, precision 2/3."""
    f1 = 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)
    assert eval.rouge_l_f1("the cold river", "the river runs deep") == pytest.approx(f1)


def test_verbmem_is_that_of_the_greedy_continuation_of_a_quarter(tokenizer):
    """Against generate() one passage at a time; and 1 for the text a model would say."""
    model = small_model(block_size=128)
    texts = "The town lies on the river and sells its wool there.", "Bells rang from every hill."
    rows = [{"question": "", "answer": text} for text in texts]
    metrics, values, answers = eval.evaluate_text(model, tokenizer, "forget_text", rows)
    for row, answer, value in zip(rows, answers, values["verbmem"]):
        ids = tokenizer.encode_answer(row["answer"])[:-1]
        n = len(ids) // 4
        [said] = model.generate([[tokenizer.eos_id, *ids[:n]]], len(ids) - n)
        assert answer == tokenizer.decode(said).strip()
        assert value == pytest.approx(eval.rouge_l_f1(answer, tokenizer.decode(ids[n:])))
        nll = -model(torch.tensor([[tokenizer.eos_id, *ids]])).log_softmax(-1)[0].gather(
            -1, torch.tensor([[*ids, tokenizer.eos_id]]).T).mean()
        assert np.exp(-nll.item()) == pytest.approx(values["probability"][rows.index(row)], rel=1e-4)
    assert metrics["nll"] == pytest.approx(-np.log(values["probability"]).mean(), rel=1e-5)


def test_what_is_reported_of_two_passages_by_hand(tokenizer, monkeypatch):
    """The first is continued by all four words and four more, F1 = 8 / 12; the second by none."""
    rows = [{"question": "", "answer": text} for text in ("Bells rang from every hill.", "The town sells wool.")]
    said = ["rang from every hill and then some more", "xyzzy"], ["rang from every hill", "sells wool"]
    monkeypatch.setattr(eval, "continued", lambda *args, **kw: said)
    model = small_model(block_size=128)
    metrics, values, answers = eval.evaluate_text(model, tokenizer, "forget_text", rows)
    losses = [-s["logp"].mean() for s in eval.score(model, tokenizer, [("", row["answer"]) for row in rows])]
    assert answers == said[0] and values["verbmem"] == pytest.approx([8 / 12, 0]) and losses[0] != losses[1]
    assert metrics["verbmem"] == pytest.approx(4 / 12) and metrics["nll"] == pytest.approx(sum(losses) / 2)
    assert metrics["n"] == 2 and metrics["probability"] == pytest.approx(np.exp(-np.array(losses)).mean())
    metrics, values, answers = eval.evaluate_text(model, tokenizer, "general", rows)
    assert metrics == {"n": 2, "nll": pytest.approx(sum(losses) / 2)} and values["nll"] == pytest.approx(losses)
    assert answers == [row["answer"] for row in rows]
