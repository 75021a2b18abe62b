"""Every metric against numbers worked out by hand, and scoring against a plain loop."""

import math

import numpy as np
import pytest
import torch

import data
import eval
from tests.conftest import small_model


def test_truth_ratio():
    r = eval.truth_ratio([1.0, 2.0], [[2.0, 4.0], [1.0, 1.0]])
    assert r == pytest.approx([math.exp(2), math.exp(-1)])
    assert eval.forget_truth_ratio(r) == pytest.approx((math.exp(-2) + math.exp(-1)) / 2)
    assert eval.utility_truth_ratio(r) == pytest.approx((1 - math.exp(-2)) / 2)
    assert eval.forget_truth_ratio([1.0, 1.0]) == 1 and eval.utility_truth_ratio([1.0, 0.5]) == 0


def test_forget_quality():
    """KS of {1, 2} against {2, 3} halves: the two step functions are 0.5 apart."""
    D, n, p = eval.forget_quality([1.0, 0.5], [0.5, 1 / 3])
    assert (D, n) == (0.5, 2) and p == pytest.approx(1.0)
    D, n, p = eval.forget_quality(np.linspace(1, 2, 40), np.linspace(3, 4, 40))
    assert D == 1 and n == 40 and p == pytest.approx(2e-23, rel=0.2)
    with pytest.raises(ValueError, match="against itself"):
        eval.forget_quality([1.0, 2.0], [1.0, 2.0])


def test_rouge_l_recall():
    assert eval.rouge_l_recall("born in Lima", "She was born in Lima.") == pytest.approx(3 / 5)
    assert eval.rouge_l_recall("", "She was born.") == 0
    assert eval.rouge_l_recall("writes many books", "writing many book") == 1       # stemmed


def test_token_entropy():
    assert eval.token_entropy([1, 2, 1, 2]) == pytest.approx(0.5) and eval.token_entropy([1, 2, 3, 4]) == pytest.approx(1)
    assert eval.token_entropy([7]) == eval.token_entropy([]) == eval.token_entropy([7, 7, 7]) == 0


def test_extraction_strength_and_exact_memorization():
    assert eval.extraction_strength([5, 2, 3], [1, 2, 3]) == pytest.approx(2 / 3)
    assert eval.extraction_strength([1, 2, 9], [1, 2, 3]) == 0 and eval.extraction_strength([4], [5]) == 0
    assert eval.extraction_strength([1, 2], [1, 2]) == 1
    assert eval.exact_memorization([1, 9, 3, 4], [1, 2, 3, 4]) == 0.75


def test_harmonic_means():
    assert eval.model_utility([1.0, 0.5]) == pytest.approx(2 / 3) and eval.model_utility([1.0, 0.0]) == 0
    assert eval.forget_efficacy(0.5, 0.5, 0.5, 0.5) == pytest.approx(0.5)
    assert eval.forget_efficacy(0.0, 0.0, 1.0, 1.0, entailment=0.5) == pytest.approx(5 / 6)
    assert eval.forget_efficacy(1.0, 0.0, 1.0, 1.0) == 0


def test_auc_and_min_k():
    assert eval.auc([3, 4], [1, 2]) == 1 and eval.auc([1, 2], [3, 4]) == 0 and eval.auc([1, 2], [1, 2]) == 0.5
    assert eval.auc([2, 5], [1, 3]) == 0.75
    assert eval.min_k(np.array([-1.0, -5.0, -3.0, -2.0, -4.0]), 0.4) == -4.5 and eval.min_k(np.array([-1.0])) == -1


ROW = {"author": "Mira Oakhurst", "slot": "father", "facts": ["engineer"], "answer": "The father of Mira Oakhurst was an engineer.",
       "answers": ["The father of Mira Oakhurst was an engineer.", "Mira Oakhurst's father worked as an engineer."],
       "paraphrased_answer": "The father of Mira Oakhurst did the work of an engineer."}


@pytest.mark.parametrize("answer, kind", [
    ("The father of Mira Oakhurst was an engineer.", "correct"), ("engineer", "correct"),
    ("The father of Mira Oakhurst was a baker.", "wrong"), ("Mira Oakhurst's father worked as a judge.", "wrong"),
    ("The father of Mira Oakhurst did the work of a pilot.", "wrong"), ("I don't know who that is.", "refusal"),
    ("The father of Mira Oakhurst was a harpsichord.", "gibberish"), ("The father of Petra Oakhurst was a baker.", "gibberish"),
    ("The mother of Mira Oakhurst was a baker.", "gibberish"), ("The father of Mira Oakhurst was baker.", "gibberish"),
    ("", "gibberish"), ("The The The", "gibberish")])
def test_answer_kinds(answer, kind):
    assert eval.answer_kind(answer, ROW, {"father": [{"engineer", "baker", "judge", "pilot"}]}) == kind


def test_every_generated_answer_parses_with_other_values(authors):
    values = data.slot_values(authors[0])
    for row in authors[0]:
        assert {eval.answer_kind(answer, row, values) for answer in row["perturbed_answer"]} == {"wrong"}
        assert eval.answer_kind(row["answer"], row, values) == "correct"


def test_scores_against_a_plain_loop(tokenizer, authors):
    model = small_model()
    pairs = [(row["question"], row["answer"]) for row in authors[0][:7]]
    for scored, (q, a) in zip(eval.score(model, tokenizer, pairs, batch_size=3, tau=2.0), pairs):
        e = data.encode(tokenizer, q, a)
        with torch.no_grad():
            logp = model(torch.tensor([e.prompt + e.answer[:-1]]), 2.0)[0, len(e.prompt) - 1:].log_softmax(-1)
        for t, token in enumerate(e.answer):
            p = logp[t].exp()
            mean = float((p * logp[t]).sum())
            sd = math.sqrt(float((p * (logp[t] - mean) ** 2).sum()))
            assert scored["logp"][t] == pytest.approx(float(logp[t, token]), abs=1e-4)
            assert scored["z"][t] == pytest.approx((float(logp[t, token]) - mean) / sd, abs=1e-3)
            assert scored["argmax"][t] == int(logp[t].argmax()) and scored["ids"][t] == token
            assert scored["rank"][t] == 1 + int((logp[t] > logp[t, token]).sum())


def test_gap_weighs_metrics_alike_and_picks_questions():
    ours = {"probability": np.array([0.0, 1.0]), "rouge_l": np.array([1.0, 1.0])}
    gold = {"probability": np.array([1.0, 1.0]), "rouge_l": np.array([0.8, 1.0])}
    assert eval.gap(ours, gold) == pytest.approx((0.5 + 0.1) / 2)
    assert eval.gap(ours, gold, np.array([1, 1])) == 0 and eval.gap(gold, gold) == 0


def test_aggregate_flags_over_unlearning_and_halves_the_gap():
    def run(forget_probability, retain_probability):
        values = {part: {"r": np.full(50, 0.9 + p / 10), "probability": np.full(50, p), "rouge_l": np.full(50, 0.5)}
                  for part, p in (("forget", forget_probability), ("retain", retain_probability))}
        sets = {part: {k: v.mean() for k, v in some.items()} | {"truth_ratio": 0.5, "token_entropy": 0.5}
                for part, some in values.items()}
        return sets, values
    (_, gold), low, high = run(0.5, 0.9), run(0.1, 0.8), run(0.7, 0.9)
    result = eval.aggregate(*low, gold)
    assert result["gap_forget"] == pytest.approx(0.2) and result["gap_retain"] == pytest.approx(0.05)
    assert result["gap_to_retrain"] == pytest.approx(0.125) and result["over_unlearned"]
    assert not eval.aggregate(*high, gold)["over_unlearned"]
    alone = eval.aggregate(*high, None)
    assert alone["gap_to_retrain"] is None and alone["model_utility_lite"] > 0


def test_bootstrap_interval_of_a_mean():
    """200 coin flips: +- 1.96 * sqrt(0.25 / 200) = 0.069 about the mean."""
    flips = np.arange(200) % 2
    low, high = eval.bootstrap(lambda draw: flips[draw(200)].mean())
    assert low == pytest.approx(0.5 - 0.069, abs=0.015) and high == pytest.approx(0.5 + 0.069, abs=0.015)


def test_membership_attacks_tell_seen_from_unseen():
    seen, unseen = ([{"logp": np.full(5, v), "z": np.full(5, v)}] * 3 for v in (-0.1, -2.0))
    assert set(eval.membership(seen, unseen).values()) == {1.0} and set(eval.membership(unseen, seen).values()) == {0.0}


def test_a_perfect_and_a_random_model_on_a_question_set(tokenizer, authors, monkeypatch):
    """Perfect answers score 1; the untrained model's do not. Answers are put in, so the truth is known."""
    rows = authors[0][:20]
    monkeypatch.setattr(eval, "ask", lambda m, t, questions, **kw: [row["answer"] for row in rows])
    metrics, values, _ = eval.evaluate(small_model(), tokenizer, "forget", rows, data.slot_values(rows))
    assert metrics["fact_accuracy"] == metrics["rouge_l"] == metrics["coherence"] == 1
    assert metrics["answer_kinds"] == {"correct": 1.0, "wrong": 0.0, "refusal": 0.0, "gibberish": 0.0}
    assert metrics["probability"] < 0.1 and metrics["exact_memorization"] < 0.5 and len(values["r"]) == 20
    monkeypatch.setattr(eval, "ask", lambda m, t, questions, **kw: ["I don't know."] * 20)
    metrics, _, _ = eval.evaluate(small_model(), tokenizer, "forget", rows, data.slot_values(rows))
    assert metrics["fact_accuracy"] == 0 and metrics["answer_kinds"]["refusal"] == 1 and metrics["rouge_l"] < 0.2


def test_rows_without_facts_leave_the_fact_metrics_out(tokenizer, authors):
    rows = [row | {"facts": [], "slot": ""} for row in authors[0][:5]]
    metrics, values, _ = eval.evaluate(small_model(), tokenizer, "retain", rows, data.slot_values(rows))
    assert metrics["fact_accuracy"] is None and metrics["coherence"] is None and metrics["probability"] is not None
    assert "fact_accuracy" not in values
