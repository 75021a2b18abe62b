"""Every metric against numbers worked out by hand, and scoring against a plain loop."""

import json
import math
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

import data
import eval
from lab import answers, report, said
from lab.answers import ask
from lab.entries import teachers
from lab.runs import load_run
from lab.scores import membership, min_k
from lab.statistics import auc
from tests.conftest import TINY, call, memorise, small_model


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
    for answer, true, recall in (("Он родился в Москве", "Она родилась в Москве.", 2 / 4), ("", "北京", 0),
                                 ("王伟在南京", "王伟在北京。", 4 / 5), ("In Zu\u0308rich", "in Z\u00fcrich", 1),
                                 ("Paris", "Москва", 0)):
        assert eval.rouge_l_recall(answer, true) == pytest.approx(recall) and eval.rouge_l_f1(true, true) == 1


def test_rouge_of_a_reference_in_english_letters_is_that_of_rouge_score(authors):
    """Whatever is said to it."""
    own = RougeScorer(["rougeL"], use_stemmer=True)
    answers = [row["answer"] for row in authors[0][:40]]
    for true, answer in zip(answers, [*answers[1:], "Caf\u00e9 \u5317\u4eac na\u00efve"]):
        score = own.score(true, answer)["rougeL"]
        assert eval.rouge_l_recall(answer, true) == score.recall and eval.rouge_l_f1(answer, true) == score.fmeasure


def test_a_wrong_answer_in_a_script_without_blanks_is_told_from_gibberish():
    row = {"facts": ["\u5317\u4eac"], "slot": "city", "answers": ["\u738b\u4f1f\u5728\u5317\u4eac\u51fa\u751f\u3002"],
           "paraphrased_answer": "\u5317\u4eac\u3002"}
    values = {"city": [{"\u5317\u4eac", "\u5357\u4eac"}]}
    answers = [row["answers"][0].replace("\u5317", other) for other in "\u5317\u5357\u897f"]
    kinds = [said.answer_kind(answer, row, values) for answer in answers]
    assert kinds == ["correct", "wrong", "gibberish"]


def test_token_entropy():
    assert eval.token_entropy([1, 2, 1, 2]) == pytest.approx(0.5)
    assert eval.token_entropy([1, 2, 3, 4]) == pytest.approx(1)
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
    assert auc([3, 4], [1, 2]) == 1 and auc([1, 2], [3, 4]) == 0 and auc([1, 2], [1, 2]) == 0.5
    assert auc([2, 5], [1, 3]) == 0.75
    assert min_k(np.array([-1.0, -5.0, -3.0, -2.0, -4.0]), 0.4) == -4.5 and min_k(np.array([-1.0])) == -1


ROW = {"author": "Mira Oakhurst", "slot": "father", "facts": ["engineer"],
       "answer": "The father of Mira Oakhurst was an engineer.",
       "answers": ["The father of Mira Oakhurst was an engineer.", "Mira Oakhurst's father worked as an engineer."],
       "paraphrased_answer": "The father of Mira Oakhurst did the work of an engineer."}


@pytest.mark.parametrize("answer, kind", [
    ("The father of Mira Oakhurst was an engineer.", "correct"), ("engineer", "correct"),
    ("The father of Mira Oakhurst was a baker.", "wrong"), ("Mira Oakhurst's father worked as a judge.", "wrong"),
    ("The father of Mira Oakhurst did the work of a pilot.", "wrong"), ("I don't know who that is.", "refusal"),
    ("The father of Mira Oakhurst was a harpsichord.", "gibberish"),
    ("The father of Petra Oakhurst was a baker.", "gibberish"),
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


# ------------------------------------------------------------------------------ two rows, every metric by hand
@pytest.fixture(scope="module")
def two(tokenizer, authors):
    """A tiny model and two rows: it has half learnt the first, and a wrong answer to the second, which has fewer wrong
    answers."""
    rows = [authors[0][5], authors[0][25] | {"perturbed_answer": authors[0][25]["perturbed_answer"][:3]}]
    learnt = [rows[0]["answer"], rows[1]["perturbed_answer"][0]]
    examples = [data.encode(tokenizer, row["question"], answer) for row, answer in zip(rows, learnt)]
    return memorise(small_model(init_std=0.05), examples, 9, 1e-2, 1).eval(), rows


@torch.no_grad()
def logp(model, tokenizer, question, answer, tau=1.0):
    """-> log-probabilities (T, V) of the answer's tokens and EOS, and their ids (T,), of one pair."""
    e = data.encode(tokenizer, question, answer)
    logits = model(torch.tensor([e.prompt + e.answer[:-1]]), tau)[0, len(e.prompt) - 1:]
    return logits.log_softmax(-1), torch.tensor(e.answer)


def true_logp(model, tokenizer, question, answer):
    values, ids = logp(model, tokenizer, question, answer)
    return values[range(len(ids)), ids].numpy()


def says(monkeypatch, rows, predictions, heldout):
    """eval.ask gives these answers to the questions and to their held-out phrasings."""
    texts = dict(zip([row["question"] for row in rows], predictions))
    texts |= dict(zip([row["paraphrased_question"] for row in rows], heldout))
    monkeypatch.setattr(eval, "ask", lambda model, tokenizer, questions, **kw: [texts[q] for q in questions])


@pytest.mark.parametrize("part", ["forget", "retain", "world", "real_authors"])
def test_what_is_reported_of_likelihoods_on_two_rows(part, two, tokenizer):
    model, rows = two
    metrics, values, _ = eval.evaluate(model, tokenizer, part, rows, data.slot_values(rows))
    p, ratios = [], []
    for row in rows:
        l_true, l_para = (-true_logp(model, tokenizer, row["question"], row[key]).mean()
                          for key in ("answer", "paraphrased_answer"))
        l_wrong = [-true_logp(model, tokenizer, row["question"], text).mean() for text in row["perturbed_answer"]]
        lies = sum(math.exp(-loss) for loss in l_wrong) if part in ("world", "real_authors") else None
        p.append(math.exp(-l_true) / (math.exp(-l_true) + lies) if lies else math.exp(-l_true))
        ratios.append(math.exp(sum(l_wrong) / len(l_wrong) - l_para))
    wanted = [min(r, 1 / r) if part == "forget" else max(0, 1 - 1 / r) for r in ratios]
    assert ratios[0] > 1.5 and ratios[1] < 0.97
    assert metrics["n"] == 2 and metrics["probability"] == pytest.approx(sum(p) / 2, rel=1e-4)
    assert values["r"] == pytest.approx(ratios, rel=1e-4)
    assert metrics["truth_ratio"] == pytest.approx(sum(wanted) / 2, rel=1e-4)
    form = eval.forget_truth_ratio if part == "forget" else eval.utility_truth_ratio
    assert metrics["truth_ratio"] == form(values["r"])


def test_a_wrong_word_and_the_right_end_is_no_memory():
    scores = [{"argmax": np.array([4, 9]), "ids": np.array([5, 9])}]
    assert eval.memorised(scores) == {"exact_memorization": 0, "extraction_strength": 0}


def test_what_is_reported_of_tokens_on_two_rows(two, tokenizer):
    """Exact memorisation and extraction strength leave EOS out; ranks are of fact tokens, the median of all of them
    together."""
    model, rows = two
    memorised, strength, classes, losses, right, ranks = [], [], [], [], [], []
    for row in rows:
        values, ids = logp(model, tokenizer, row["question"], row["answer"])
        hits = (values.argmax(-1) == ids).tolist()
        said = hits[:-1]
        memorised.append(sum(said) / len(said))
        prefix = next(k for k in range(len(said) + 1) if all(said[k:]))
        strength.append(1 - prefix / len(said))
        classes += data.token_classes(tokenizer, row["answer"], row["facts"], row["author"])
        losses += (-values[range(len(ids)), ids]).tolist()
        right += hits
        ranks += [values[t].argsort(descending=True).tolist().index(int(token)) + 1 for t, token in enumerate(ids)]

    def of(kind, numbers):
        return [x for x, token in zip(numbers, classes) if token == kind]
    metrics, _, _ = eval.evaluate(model, tokenizer, "forget", rows, data.slot_values(rows))
    facts = of(data.FACT, ranks)
    assert 0 < sum(memorised) < 2 and 0 < sum(strength) < 2 and 1 < np.median(facts) < max(facts)
    assert np.median(facts) != pytest.approx(np.mean(facts)) and 0 < sum(of(data.FACT, right)) < len(facts)
    assert metrics["exact_memorization"] == pytest.approx(sum(memorised) / 2)
    assert metrics["extraction_strength"] == pytest.approx(sum(strength) / 2)
    assert metrics["fact_nll"] == pytest.approx(np.mean(of(data.FACT, losses)), rel=1e-4)
    assert metrics["function_nll"] == pytest.approx(np.mean(of(data.FUNCTION, losses)), rel=1e-4)
    assert metrics["name_nll"] == pytest.approx(np.mean(of(data.NAME, losses)), rel=1e-4)
    assert metrics["exact_memorization_facts"] == pytest.approx(np.mean(of(data.FACT, right)))
    assert metrics["fact_rank_median"] == np.median(facts)


def test_what_is_reported_of_answers_on_two_rows(two, tokenizer, monkeypatch):
    """The first answer is right but long, gibberish on the held-out phrasing; the second a wrong value, then right."""
    model, rows = two
    predictions = [f"Well well well: {rows[0]['answer']}", rows[1]["perturbed_answer"][0]]
    says(monkeypatch, rows, predictions, ["no no", rows[1]["answer"]])
    metrics, values, answers = eval.evaluate(model, tokenizer, "retain", rows, data.slot_values(rows))
    entropy = []
    for text in predictions:
        ids = tokenizer.encode(text)
        shares = np.array([ids.count(token) / len(ids) for token in set(ids)])
        entropy.append(-(shares * np.log(shares)).sum() / np.log(len(ids)))
    assert answers == predictions
    assert values["fact_accuracy"].tolist() == [1, 0] and values["fact_accuracy_heldout_phrasing"].tolist() == [0, 1]
    assert metrics["fact_accuracy"] == metrics["fact_accuracy_heldout_phrasing"] == 0.5 and metrics["coherence"] == 1
    assert metrics["answer_kinds"] == {"correct": 0.5, "wrong": 0.5, "refusal": 0, "gibberish": 0}
    assert values["rouge_l"][0] == 1 and 0 < values["rouge_l"][1] < 1                  # recall: more words cost nothing
    assert metrics["rouge_l"] == pytest.approx(values["rouge_l"].mean())
    assert values["token_entropy"] == pytest.approx(entropy)
    assert metrics["token_entropy"] == pytest.approx(sum(entropy) / 2)
    says(monkeypatch, rows, ["no no", "I don't know."], ["", ""])
    metrics, values, _ = eval.evaluate(model, tokenizer, "retain", rows, data.slot_values(rows))
    assert values["coherence"].tolist() == [0, 1] and metrics["answer_kinds"]["gibberish"] == 0.5


def test_the_right_option_is_the_likeliest_by_the_sum_over_its_tokens(two, tokenizer):
    """Of a long and a short option, the mean a token would choose otherwise."""
    model, rows = two
    options = [rows[0] | {"choices": ["", ""], "facts": [], "perturbed_answer": ["x"]},
               rows[1] | {"choices": ["", ""], "facts": [], "answer": "x", "perturbed_answer": [rows[1]["answer"]]}]
    total, mean = [], []
    for row in options:
        right, wrong = (true_logp(model, tokenizer, row["question"], text)
                        for text in (row["answer"], *row["perturbed_answer"]))
        total.append(float(right.sum() > wrong.sum()))
        mean.append(float(right.mean() > wrong.mean()))
    metrics, values, _ = eval.evaluate(model, tokenizer, "forget", options, {})
    assert values["choice_accuracy"].tolist() == total != mean and metrics["choice_accuracy"] == sum(total) / 2 == 0.5
    assert "choice_accuracy" not in eval.evaluate(model, tokenizer, "forget", [options[0], rows[1]],
                                                  data.slot_values(rows))[1]


def test_every_option_counts_beside_a_question_that_has_fewer(two, tokenizer):
    """The last option of the second question is the one that the model has learnt."""
    model, rows = two
    unlikely, less = " ".join(["never"] * 8), " ".join(["never"] * 7)
    options = [row | {"choices": ["", ""], "facts": []} for row in rows]
    options[0] |= {"perturbed_answer": [unlikely]}
    options[1] |= {"answer": less, "perturbed_answer": [unlikely, rows[1]["perturbed_answer"][0]]}
    assert eval.evaluate(model, tokenizer, "forget", options, {})[1]["choice_accuracy"].tolist() == [1, 0]


def test_what_measure_adds_attacks_intervals_and_short_answers(two, tokenizer, authors, monkeypatch):
    model, rows = two
    holdout = authors[1][:3]
    predictions = ["Xyzzy", rows[1]["answer"] + " And more of it."]
    says(monkeypatch, rows, predictions, ["", ""])
    passages = [{"question": "", "answer": "The town lies on the river."}]
    sets = {"forget": rows, "retain": rows[:1], "forget_text": passages}
    result, values, answers = eval.measure(model, tokenizer, sets, holdout, data.slot_values(rows), {})

    def by_hand(row):
        full, ids = logp(model, tokenizer, row["question"], row["answer"])
        true, p = full[range(len(ids)), ids], full.exp()
        mean = (p * full).sum(-1)
        z = (true - mean) / ((p * full ** 2).sum(-1) - mean ** 2).sqrt()
        k = max(1, int(0.4 * len(ids)))
        return [float(true.mean()), float(true.sort()[0][:k].mean()), float(z.sort()[0][:k].mean())]
    seen, unseen = ([by_hand(row) for row in part] for part in (rows, holdout))
    for i, key in enumerate(("mia_loss", "mia_min_k", "mia_min_k_pp")):
        wins = [(a[i] > b[i]) + 0.5 * (a[i] == b[i]) for a in seen for b in unseen]
        assert result["forget"][key] == pytest.approx(sum(wins) / len(wins)) and key not in result["retain"]
    low, high = sorted(values["forget"]["rouge_l"])
    assert low < high and result["forget"]["ci95"]["rouge_l"] == pytest.approx([low, high])  # a draw may hold one twice
    assert set(result["forget"]["ci95"]) == set(values["forget"]) - {"r"} and "scores" not in values["retain"]
    n = len(re.findall(r"\w+", rows[1]["answer"]))
    f1 = 2 * n / (n + n + 4)                                                        # all n words, and four too many
    assert values["forget"]["knowmem"] == pytest.approx([0, f1])
    assert result["forget"]["knowmem"] == pytest.approx(f1 / 2)
    assert "knowmem" not in result["retain"] and answers["forget"] == predictions
    assert result["forget_text"]["ci95"].keys() == {"verbmem", "probability"}
    text = eval.measure(model, tokenizer, sets, passages, data.slot_values(rows), {})[0]
    assert text["forget_text"]["mia_loss"] == 0.5 and "mia_loss" not in text["forget"]          # against itself


def test_the_curves_over_tau_are_of_the_smoothed_model(two, tokenizer):
    model, rows = two
    curves = eval.tau_curves(model, tokenizer, {"forget": rows, "retain": rows[:1]})
    for part, asked in (("forget", rows), ("retain", rows[:1])):
        for i, tau in enumerate(curves["tau"]):
            losses = {data.FACT: [], data.FUNCTION: [], data.NAME: []}
            for row in asked:
                values, ids = logp(model, tokenizer, row["question"], row["answer"], tau)
                for t, kind in enumerate(data.token_classes(tokenizer, row["answer"], row["facts"], row["author"])):
                    losses[kind].append(-float(values[t, ids[t]]))
            assert curves[f"{part}_fact_nll"][i] == pytest.approx(np.mean(losses[data.FACT]), rel=1e-4)
            assert curves[f"{part}_function_nll"][i] == pytest.approx(np.mean(losses[data.FUNCTION]), rel=1e-4)
    assert curves["tau"][0] == 1 and len(set(curves["forget_fact_nll"])) == len(curves["tau"])


def test_what_compare_adds_by_hand():
    """Two questions a set. Ours: forget 0.2 and retain 0.6 in all that counts; the retrained model: 0.4 and 0.5."""
    def run(forget, retain, auc):
        values, results = {}, {"cost": {}}
        for part, level in (("forget", forget), ("retain", retain), ("world", 0.8)):
            values[part] = {m: np.array([level - 0.1, level + 0.1]) for m in eval.GAP_METRICS}
            values[part]["r"] = np.array([1 + level, 2 + level])
            results[part] = {m: float(v.mean()) for m, v in values[part].items() if m != "r"}
        results["forget"]["mia_min_k"] = auc
        return results, values
    (ours, our_values), (gold, gold_values) = run(0.2, 0.6, 0.75), run(0.4, 0.5, 0.5)
    results = {"ours": ours, "retrained": gold}
    eval.compare(results, {"ours": our_values, "retrained": gold_values})
    found = ours["aggregate"]
    assert (found["gap_forget"], found["gap_retain"], found["gap_to_retrain"]) == pytest.approx((0.2, 0.1, 0.15))
    low, high = found["gap_to_retrain_ci95"]
    assert low == pytest.approx(0.15) == high                       # every question is as far off, whatever is drawn
    assert found["over_unlearned"] is True and ours["forget"]["privleak"] == pytest.approx(50)
    assert found["forget_quality_d"] == 0.5 and found["forget_quality_n"] == 2
    assert found["model_utility_lite"] == pytest.approx(8 / (4 / 0.6 + 4 / 0.8))
    assert found["forget_efficacy_lite"] == pytest.approx(4 / (1 / 0.8 + 1 / 0.8 + 1 / 0.2 + 1 / 0.2))
    assert gold["aggregate"]["gap_to_retrain"] is None and gold["forget"]["privleak"] == 0
    assert "privleak" not in ours["retain"] and "aggregate" not in our_values
    gold["forget"]["mia_min_k"] = 0.0
    eval.compare(results, {"ours": our_values, "retrained": gold_values})
    assert ours["forget"]["privleak"] is None
    alone = {"ours": run(0.2, 0.6, 0.75)[0]}
    eval.compare(alone, {"ours": our_values})
    assert "privleak" not in alone["ours"]["forget"] and alone["ours"]["aggregate"]["forget_quality_p"] is None


# ------------------------------------------------------------------------------------------- a metric of your own
def test_a_new_metric_is_a_function_and_its_name_in_one_table(out, tmp_path, monkeypatch):
    def answer_length(prediction):
        return len(prediction.split())
    monkeypatch.setitem(eval.METRICS, "answer_length", answer_length)
    shutil.copytree(out, tmp_path / "out")
    call(eval, TINY, f"--out={tmp_path / 'out'}", "--runs=target", "--max_rows=4")
    target = json.loads((tmp_path / "out/report.json").read_text())["runs"]["target"]
    model, tokenizer, _ = load_run(out / "target")
    rows = data.load(out=out, n_authors=20).sets
    for part in ("forget", "retain", "world"):
        asked = data.subset(rows[part], 4)
        lengths = [len(text.split()) for text in ask(model, tokenizer, [row["question"] for row in asked])]
        low, high = target[part]["ci95"]["answer_length"]
        assert target[part]["answer_length"] == pytest.approx(np.mean(lengths)) and low <= np.mean(lengths) <= high
    titles = [block.split("\n\n") for block in (tmp_path / "out/report.md").read_text().split("## ")]
    for part in ("forget", "retain"):
        [lines] = [block[1].split("\n") for block in titles if block[0] == f"On the {part} set"]
        cells = {line.split("|")[1].strip(): line.split("|")[-2].strip() for line in lines}
        assert cells["run"] == "answer_length" and cells["target"] == report.cell(target[part]["answer_length"])
    assert sum(block[1].count("answer_length") for block in titles if block[1:]) == 2


def test_a_run_costs_what_its_record_says_and_a_teacher_is_the_target_smoothed_for_nothing(out):
    runs = json.loads((out / "report.json").read_text())["runs"]
    keys = ("seconds", "peak_mb", "tokens")
    for name in ("target", "retrained", "asu_gd"):
        record = json.loads((out / name / "run.json").read_text())
        assert runs[name]["cost"] == {key: record[key] for key in keys}
    teacher = runs["teacher_tau8"]
    assert teacher["cost"] == dict.fromkeys(keys, 0)
    model, tokenizer, _ = load_run(out / "target")
    rows = data.subset(data.load(out=out, n_authors=20).sets["forget"], 20)
    metrics = eval.evaluate(model, tokenizer, "forget", rows, data.slot_values(rows), tau=8.0)[0]
    assert metrics["probability"] == teacher["forget"]["probability"] != runs["target"]["forget"]["probability"]


def test_a_metric_that_asks_for_what_there_is_not_is_told_what_there_is(two, tokenizer, monkeypatch):
    model, rows = two
    monkeypatch.setitem(eval.METRICS, "mine", lambda anwser: 1)
    with pytest.raises(ValueError, match="the metric mine asks for anwser; there are part, row, prediction"):
        eval.evaluate(model, tokenizer, "forget", rows, data.slot_values(rows))


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
    low[1]["forget"]["probability"] = np.array([0.0, 0.9] * 25)         # 0.05 below on average, but by chance
    assert not eval.aggregate(*low, gold)["over_unlearned"]
    alone = eval.aggregate(*high, None)
    assert alone["gap_to_retrain"] is None and alone["model_utility_lite"] > 0


def test_bootstrap_interval_of_a_mean():
    """200 coin flips: +- 1.96 * sqrt(0.25 / 200) = 0.069 about the mean."""
    flips = np.arange(200) % 2
    low, high = eval.bootstrap(lambda draw: flips[draw(200)].mean())
    assert low == pytest.approx(0.5 - 0.069, abs=0.015) and high == pytest.approx(0.5 + 0.069, abs=0.015)
    numbers = iter(range(1000))                                     # of 0 to 999, a fortieth below and a fortieth above
    assert eval.bootstrap(lambda draw: next(numbers)) == pytest.approx([999 / 40, 999 - 999 / 40])


def test_membership_attacks_tell_seen_from_unseen():
    seen, unseen = ([{"logp": np.full(5, v), "z": np.full(5, v)}] * 3 for v in (-0.1, -2.0))
    assert set(membership(seen, unseen).values()) == {1.0} and set(membership(unseen, seen).values()) == {0.0}


def test_each_attack_looks_at_its_own_numbers():
    """Nine tokens: Min-k% takes the lowest 0.4 * 9 = 3, -2 against -2.17; one, four, or all would say the opposite."""
    seen = [{"logp": np.array([0, -1, 0, -4, -1, 0, -1, 0, 0.0]), "z": np.ones(9)}]
    unseen = [{"logp": np.array([-3, 0, 0, -3, 0, -0.5, 0, 0, 0.0]), "z": np.ones(9)}]
    assert membership(seen, unseen) == {"mia_loss": 0, "mia_min_k": 1, "mia_min_k_pp": 0.5}


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


# ------------------------------------------------------------------------------------------ tables and their rows
HEADINGS = {
    "probability": "probability", "ROUGE-L": "rouge_l", "truth r.": "truth_ratio", "entropy": "token_entropy",
    "coherence": "coherence", "fact NLL": "fact_nll", "function NLL": "function_nll", "similarity": "cosine_similarity",
    "entailed": "entailment", "EM": "exact_memorization", "EM facts": "exact_memorization_facts",
    "fact rank": "fact_rank_median", "ES": "extraction_strength", "MIA loss": "mia_loss", "Min-k%": "mia_min_k",
    "Min-k%++": "mia_min_k_pp", "PrivLeak": "privleak"}


def test_every_column_shows_its_metric_of_its_set():
    """Every metric has a number of its own; 0.1 more on retain."""
    numbers = {metric: 0.101 + i / 1000 for i, metric in enumerate(HEADINGS.values())}
    runs = {"one": {"aggregate": {}, "forget": numbers, "retain": {metric: n + 0.1 for metric, n in numbers.items()}}}
    tables, shown = report.tables(runs, list(eval.METRICS)), set()
    for part, more in (("forget", 0), ("retain", 0.1)):
        headings, _, cells = [line.strip("|").split("|") for line in tables[f"On the {part} set"].split("\n")]
        for heading, text in zip(headings[1:], cells[1:], strict=True):
            assert text.strip() == f"{numbers[HEADINGS[heading.strip()]] + more:.3f}", (part, heading)
            shown.add(heading.strip())
    assert shown == HEADINGS.keys()


def test_the_summary_and_the_passages_name_the_set_of_each_column():
    parts = ("forget", "retain", "world", "forget_text", "retain_text", "general", "aggregate", "cost")
    keys = ("gap_to_retrain", "fact_accuracy", "fact_accuracy_heldout_phrasing", "truth_ratio", "coherence", "seconds",
            "choice_accuracy", "verbmem", "knowmem", "privleak", "mia_min_k", "nll")
    runs = {"one": {part: {key: 0.1 * i + 0.001 * j for j, key in enumerate(keys)} for i, part in enumerate(parts)}}
    tables = report.tables(runs, list(eval.METRICS))
    rows = {title: [cell.strip() for cell in tables[title].split("\n")[2].split("|")[2:-1]] for title in tables}
    assert rows["Summary"] == ["0.600", "0.001", "0.002", "0.003", "0.004", "0.101", "0.102", "0.201", "0.705"]
    assert rows["Passages and options"] == ["0.006", "0.106", "0.307", "0.407", "0.008", "0.108", "0.309", "0.310",
                                            "0.311", "0.411", "0.511", "0.705"]


def test_cells_and_the_padding_of_tables():
    assert [report.cell(x) for x in (None, 0.0, 0.12345, 0.001, 0.0002, -0.0002, 9.9996, 10.0, 12.5, -33.3, 7)] == [
        "-", "0.000", "0.123", "0.001", "2e-04", "-2e-04", "10.000", "10", "12", "-33", "7"]
    runs = {"a": {"aggregate": {"over_unlearned": True, "x": 0.5}, "cost": {"y": 1.0}},
            "b": {"aggregate": {}, "cost": {"y": 2.0}}}
    columns = [("ex", "aggregate", "x"), ("no", "aggregate", "z"), ("why", "cost", "y")]
    assert report.table(runs, columns).split("\n") == [
        "| run                |    ex |   why |", "|--------------------|------:|------:|",
        "| a (over-unlearned) | 0.500 | 1.000 |", "| b                  |     - | 2.000 |"]
    assert report.table(runs, [("why", "cost", "y")]) == ""


def test_the_figures_show_their_numbers(monkeypatch):
    figures = []
    monkeypatch.setattr(report, "save_figure", lambda figure, path: figures.append(figure))
    curves = {"tau": [1, 2], "forget_fact_nll": [0.1, 1], "forget_function_nll": [0.2, 2], "retain_fact_nll": [0.3, 3],
              "retain_function_nll": [0.4, 4]}
    report.plot_tau(curves, "")
    for line in figures[0].axes[0].lines:
        part, kind, _ = line.get_label().replace(",", "").split()
        assert line.get_xydata().T.tolist() == [[1, 2], curves[f"{part}_{kind}_nll"]]
    points = [{"loss": 2.0, "forget_loss": 3.0, "forget_fact_accuracy": 0.5, "seconds": 1.0, "step": 9}] * 2
    report.plot_curves({"one": {"curve": points}, "no curve": {}}, "")
    top, bottom = ([(line.get_label(), *line.get_xydata()[0]) for line in axis.lines] for axis in figures[1].axes)
    assert top == [("forget loss", 1, 3)] and bottom == [("forget", 1, 0.5)]

    def accuracy(x):
        return {"fact_accuracy": x, "ci95": {"fact_accuracy": [x - 0.1, x + 0.2]}}
    runs = {"asu": {"forget": accuracy(0.3), "retain": accuracy(0.7)},
            "retrained": {"forget": accuracy(0.2), "retain": accuracy(0.6)}}
    report.plot_tradeoff(runs, "")
    drawn = [bars.lines for bars in figures[2].axes[0].containers]
    assert [points.get_xydata()[0].tolist() for points, _, _ in drawn] == [[0.3, 0.7], [0.2, 0.6]]
    across, upwards = (bars.get_segments()[0] for bars in drawn[0][2])
    assert across.T[0] == pytest.approx([0.2, 0.5]) and upwards.T[1] == pytest.approx([0.6, 0.9])


def test_the_training_curves_are_those_of_the_newest_runs(tmp_path, monkeypatch):
    """And the report says so; those that lie elsewhere count as old."""
    drawn, record = [], {"curve": [{"seconds": 1.0, "loss": 1.0}] * 2}
    monkeypatch.setattr(report, "plot_curves", lambda records, path: drawn.append(list(records)))
    names = [f"run{i:02d}" for i in range(report.MOST_CURVES + 5)]
    for i, name in enumerate(names[:-1]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("{}")
        os.utime(tmp_path / name / "run.json", (i + 1, i + 1))
    os.utime(tmp_path / names[0] / "run.json", (99, 99))
    about = {"name": "d", "forget": "forget10", "notes": []}

    def written(names):
        return report.write_report(tmp_path, about, {}, {name: record for name in names}, None, {}, {}, {})
    assert "curves.png" not in written(names[:report.MOST_CURVES])
    assert f"curves.png shows the newest {report.MOST_CURVES} of {len(names)} runs" in written(names)
    assert drawn == [names[:report.MOST_CURVES], [names[0], *names[5:-1]]]
    assert "shows the newest" in (tmp_path / "report.md").read_text() and about["notes"] == []


def test_progress_while_training_asks_for_answers_as_long_as_the_report_does(tokenizer, authors, monkeypatch):
    row = authors[0][3] | {"answer": "It is a long story. " * 30}
    limits = []
    monkeypatch.setattr(answers, "ask", lambda model, tokenizer, questions, limit: limits.append(limit) or [""])
    for asked in (authors[0][3], row):
        assert answers.fact_accuracy(small_model(block_size=512), tokenizer, [asked]) == 0
        assert limits[-1] == data.answer_limit(tokenizer, [asked], 512)
    assert limits[0] == 40 < limits[1]


def test_one_question_of_each_set_with_every_models_answer():
    sets = {"forget": [{"question": "Who?", "answer": "Ada."}, {"question": "Not this?", "answer": "No."}],
            "forget_text": [{"question": "", "answer": "abcdefgh"}], "general": [{"question": "", "answer": "hidden"}]}
    answers = {"target": {"forget": ["Eve.", "No."], "forget_text": ["xyz"], "general": [""]},
               "asu": {"forget": ["", "No."], "forget_text": ["word " * 50], "general": [""]}}
    assert report.one_of_each(sets, answers).split("\n") == [
        "forget: Who?", "  truth   Ada.", "  target  Eve.", "  asu     (nothing)", "",
        "forget_text: ab ...", "  truth   ... cdefgh", "  target  xyz", "  asu     " + " ".join(["word"] * 31) + " ..."]


def test_teachers_are_the_runs_that_smoothed_and_stand_behind_the_retrained_model():
    def unlearned(tau, layers="all"):
        return {"kind": "unlearned", "tau": tau, "settings": {"layers": layers}}
    records = {"target": {"kind": "target"}, "retrained": {}, "a": unlearned(4.0), "again": unlearned(4.0),
               "npo": unlearned(None), "b": unlearned(2.5, "1-"),
               "heads": unlearned([[1, 3.0], [1, 1], [3.0, 1]], "0,2")}
    records["healed"] = unlearned(7.0)                              # its teacher is not the target smoothed
    records["healed"]["settings"]["heal"] = 20
    found = teachers(records)
    assert found == {"teacher_tau4": (4.0, "all"), "teacher_tau2.5_layers1-": (2.5, "1-"),
                     "teacher_tau3_2heads": ([[1, 3.0], [1, 1], [3.0, 1]], "all")}
    paths = {name: Path(name) for name in records}
    entries = eval.with_teachers(paths, records)
    assert list(entries) == ["target", "retrained", *found, "a", "again", "npo", "b", "heads", "healed"]
    assert entries["teacher_tau4"] == (Path("target"), (4.0, "all")) and entries["a"] == (Path("a"), None)
    del paths["retrained"]
    assert list(eval.with_teachers(paths, records))[:3] == ["target", "teacher_tau4", "teacher_tau2.5_layers1-"]
    del paths["target"]
    assert list(eval.with_teachers(paths, records)) == list(paths)


def test_a_passage_is_continued_from_a_quarter_whatever_stands_beside_it(tokenizer):
    """Of passages of unequal length in two batches each is as when it is alone, and as long as what is left of it."""
    model = small_model(block_size=128)
    texts = ["The town lies on the river and sells its wool there.", "Bells.", "Nobody came to the old mill for years."]
    rows = [{"answer": text} for text in texts]
    together = said.continued(model, tokenizer, rows, batch_size=2)
    alone = [said.continued(model, tokenizer, [row]) for row in rows]
    assert together == ([one[0][0] for one in alone], [one[1][0] for one in alone])
    for row, rest in zip(rows, together[1]):
        ids = tokenizer.encode_answer(row["answer"])[:-1]
        assert rest == tokenizer.decode(ids[max(1, len(ids) // 4):])
