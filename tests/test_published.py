"""eval.py against the log that others publish of a retrained model: TOFU's and open-unlearning's forms, made here."""

import json

import numpy as np
import pytest

import data
import eval
from lab.answers import ask
from lab.published import as_questions, from_log, read_log, same_questions
from lab.runs import load_run
from tests.conftest import TINY, call, refused

FILES = {"forget": "eval_log_forget.json", "retain": "eval_log.json", "world": "eval_real_world_wo_options.json"}


@pytest.fixture(scope="module")
def logs(out, tmp_path_factory):
    """What both would log of OUT/retrained, on all questions to forget and the first 7 of the others -> their paths"""
    model, tokenizer, _ = load_run(out / "retrained")
    place, tofu, open_unlearning = tmp_path_factory.mktemp("logs"), {}, {}
    for part, rows in data.load(out=out, n_authors=20).sets.items():
        limit = data.answer_limit(tokenizer, data.subset(rows, 10), 128)        # what eval.py lets it say
        rows = rows if part == "forget" else rows[:7]

        def losses(answers):
            return eval.nll(eval.score(model, tokenizer, [(row["question"], a) for row, a in zip(rows, answers)]))
        true, para = (losses([row[key] for row in rows]) for key in ("answer", "paraphrased_answer"))
        wrong = np.stack([losses([row["perturbed_answer"][k] for row in rows]) for k in range(5)], 1)
        said = ask(model, tokenizer, [row["question"] for row in rows], limit)
        rouge = [eval.rouge_l_recall(text, row["answer"]) for text, row in zip(said, rows)]
        texts = [[f"[INST] {row['question']} [/INST]", text, f" {row['answer']} "] for text, row in zip(said, rows)]
        columns = {"avg_gt_loss": true, "gt_loss": true * 9, "avg_paraphrased_loss": para, "truth_ratio": true,
                   "average_perturb_loss": wrong, "rougeL_recall": rouge, "generated_text": texts}
        tofu[FILES[part]] = {key: dict(enumerate(np.asarray(v).tolist())) for key, v in columns.items()}

        def logged(name, values):
            prefix = "wf" if part == "world" else part
            open_unlearning[f"{prefix}_{name}"] = {"agg_value": 0.5, "value_by_index": dict(enumerate(values))}
        logged("Q_A_Prob", [{"prob": float(np.exp(-x)), "avg_loss": float(x)} for x in true])
        logged("Q_A_PERT_Prob", [{"prob": np.exp(-x).tolist(), "avg_loss": x.tolist()} for x in wrong])
        logged("Q_A_ROUGE", [{"rouge1_recall": 0.0, "rougeL_recall": r, "rougeL_f1": 0.0, "input": texts[i][0],
                              "ground_truth": row["answer"], "generation": said[i]}
                             for i, (row, r) in enumerate(zip(rows, rouge))])
        if part != "world":
            logged("Q_A_PARA_Prob", [{"prob": float(np.exp(-x)), "avg_loss": float(x)} for x in para])
            logged("truth_ratio", [{"score": float(np.exp(p - w.mean()))} for p, w in zip(para, wrong)])
    for name, log in (("eval_log_aggregated.json", tofu), ("TOFU_EVAL.json", open_unlearning),
                      ("eval_log_forget.json", tofu["eval_log_forget.json"])):
        (place / name).write_text(json.dumps(log, indent=4))
    return place


@pytest.fixture(scope="module")
def report(out, logs, tmp_path_factory):
    """report(...) -> the report of eval.py --runs=OUT/asu_gd with these flags, kept, for each is asked for twice"""
    reports = {}

    def of(name):
        if name not in reports:
            place = tmp_path_factory.mktemp("report")
            retrained = out / "retrained" if name == "retrained" else logs / name
            call(eval, TINY, f"--out={place}", f"--runs={out / 'asu_gd'}", f"--retrained={retrained}", "--max_rows=10")
            reports[name] = json.loads((place / "report.json").read_text())
        return reports[name]
    return of


LOGS = "eval_log_aggregated.json", "TOFU_EVAL.json"


@pytest.mark.parametrize("name", LOGS)
def test_a_log_says_what_the_model_that_it_is_of_would_have_said(report, name):
    """Each number that both have is the same; retain and world are compared on the rows that the log holds."""
    own, logged = (report(which)["runs"] for which in ("retrained", name))
    for key in ("forget_quality_d", "forget_quality_n", "forget_quality_p"):
        assert logged["asu_gd"]["aggregate"][key] == pytest.approx(own["asu_gd"]["aggregate"][key], rel=1e-6), key
    metrics = ("probability", "rouge_l", "truth_ratio", "token_entropy", "fact_accuracy", "coherence")
    for key in metrics:
        assert logged["retrained"]["forget"][key] == pytest.approx(own["retrained"]["forget"][key], rel=1e-5), key
    gap = np.mean([abs(own["asu_gd"]["forget"][m] - own["retrained"]["forget"][m]) for m in metrics])
    aggregate = logged["asu_gd"]["aggregate"]
    assert aggregate["gap_forget"] == pytest.approx(gap, abs=1e-6) and gap > 0
    assert aggregate["gap_to_retrain"] == pytest.approx((aggregate["gap_forget"] + aggregate["gap_retain"]) / 2)
    low, high = aggregate["gap_to_retrain_ci95"]
    assert low <= high and aggregate["over_unlearned"] in (True, False)


@pytest.mark.parametrize("name", LOGS)
def test_what_a_log_lacks_is_said_and_what_it_has_stands_in_the_report(report, name):
    done = report(name)
    assert done["data"]["questions"] == {"forget": 10, "retain": 7, "world": 7}
    [note] = [note for note in done["data"]["notes"] if "the log" in note and "gap is of" in note]
    assert "probability, rouge_l, truth_ratio, fact_accuracy, token_entropy, coherence on forget" in note
    assert "fact_accuracy_heldout_phrasing" not in note and "without PrivLeak" in note
    [rows] = [note for note in done["data"]["notes"] if note.startswith("retain: ")]
    assert rows.startswith("retain: 7 questions are measured, of those that ")
    gold = done["runs"]["retrained"]
    assert gold["aggregate"]["gap_to_retrain"] is None and gold["cost"] == {} and "privleak" not in gold["forget"]


def test_the_log_of_the_forget_set_alone_gives_forget_quality_and_no_gap(report):
    done = report("eval_log_forget.json")
    aggregate = done["runs"]["asu_gd"]["aggregate"]
    other = report("eval_log_aggregated.json")["runs"]["asu_gd"]["aggregate"]
    assert aggregate["forget_quality_p"] == other["forget_quality_p"] and aggregate["gap_to_retrain"] is None
    assert aggregate["gap_forget"] == other["gap_forget"] and "gap_retain" not in aggregate
    assert done["data"]["questions"]["retain"] == 10
    assert any("so there is no gap to retrain over both" in note for note in done["data"]["notes"])


def questions_of(log):
    row = {"question": "Who?", "answer": "Ada.", "facts": [], "slot": ""}
    sets, logged, _ = same_questions(log, "x", {"forget": [row] * 2}, 9)
    return from_log(logged, sets, None, {}, eval.apply, eval.METRICS)[0]["forget"]


def test_by_hand(tmp_path):
    """r = exp(mean wrong - paraphrase), from losses or from a truth ratio 1/r; ROUGE as it was logged."""
    tofu = {"avg_gt_loss": {"0": 0.0, "1": np.log(4)}, "avg_paraphrased_loss": {"0": 1.0, "1": 2.0},
            "average_perturb_loss": {"0": [1.0, 3.0], "1": [2.0, 2.0]}, "rougeL_recall": {"0": 1.0, "1": 0.5}}
    (tmp_path / "eval_log_forget.json").write_text(json.dumps(tofu))
    found = questions_of(read_log(tmp_path / "eval_log_forget.json"))
    assert found["probability"] == pytest.approx(0.625) and found["rouge_l"] == 0.75
    assert found["truth_ratio"] == pytest.approx((np.exp(-1) + 1) / 2) and "token_entropy" not in found
    entries = {"forget_Truth_Ratio": [{"score": 0.5}, {"score": 4.0}], "forget_Q_A_Prob": [{"avg_loss": 0.0}] * 2}
    log = {key: {"value_by_index": dict(enumerate(values))} for key, values in entries.items()}
    (tmp_path / "TOFU_EVAL.json").write_text(json.dumps(log))
    found = questions_of(read_log(tmp_path / "TOFU_EVAL.json"))
    assert found["truth_ratio"] == pytest.approx((0.5 + 0.25) / 2) and found["probability"] == 1
    assert "rouge_l" not in found


def test_a_published_answer_about_facts_is_of_a_kind(tokenizer, authors):
    row = authors[0][5]
    log = [{"prediction": row["answer"], "nll": 1.0, "para_nll": 1.0, "pert_nll": [800.0, 900.0]}]
    [question] = as_questions(log, "world", [row], tokenizer, data.slot_values([row]))
    assert question["kind"] == "correct" and question["tokens"] == tokenizer.encode(row["answer"])
    [other] = as_questions([{"inverse_r": 4.0}], "forget", [row], tokenizer, {})
    assert other["r"] == 0.25 and other["nll"] is other["prediction"] is other["kind"] is other["tokens"] is None
    assert np.isfinite(question["r"]) and question["pert_nll"].tolist() == [800.0, 900.0]


def damaged(change):
    """The log of TOFU's forget set by hand, changed."""
    log = {"avg_gt_loss": {"0": 1.0}, "avg_paraphrased_loss": {"0": 1.0}, "average_perturb_loss": {"0": [1.0]},
           "rougeL_recall": {"0": 1.0}, "generated_text": {"0": ["q", "a", "t"]}}
    change(log)
    return log


@pytest.mark.parametrize("content, message", [
    ("[1]", "a JSON object is needed, this is list"), ("{", "is not valid JSON"), ("{}", "is not the log of a"),
    ('{"forget_quality": {"agg_value": 0.9}, "model_utility": {"agg_value": 0.5}}', "is not the log of a retrained"),
    ('{"forget_Q_A_Prob": {"agg_value": 0.9}}', "is not the log of a retrained model"),
    ('{"forget_Q_A_Prob": 3}', "forget_q_a_prob is not an object"),
    ('{"forget_Q_A_Prob": {"value_by_index": {"0": {"avg_loss": "1"}}}}', "question 0: nll is '1', not a number"),
    ('{"forget_Q_A_Prob": {"value_by_index": {"x": {"avg_loss": 1}}}}', "value_by_index is not an object from"),
    (damaged(lambda log: log["avg_gt_loss"].update({"0": float("nan")})), "question 0: nll is nan, not a number"),
    (damaged(lambda log: log["avg_gt_loss"].update({"0": -1.0})), "question 0: nll is -1.0, not a number"),
    (damaged(lambda log: log["average_perturb_loss"].update({"0": 1.0})), "pert_nll is 1.0, not a list of numbers"),
    (damaged(lambda log: log["average_perturb_loss"].update({"0": []})), "pert_nll is [], not a list of numbers"),
    (damaged(lambda log: log.update(avg_paraphrased_loss=[1.0])), "avg_paraphrased_loss is not an object from"),
    (damaged(lambda log: log["generated_text"].update({"0": ["q", 1, "t"]})), "prediction is 1, not a text"),
    (damaged(lambda log: log["avg_gt_loss"].update({"9" * 30: 1.0})), "avg_gt_loss is not an object from question")])
def test_a_file_that_is_no_log_or_a_damaged_one_gets_one_line(out, tmp_path, capsys, content, message):
    file = tmp_path / "eval_log_forget.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    error = refused(capsys, eval, TINY, f"--out={out}", f"--retrained={file}")
    assert message in error and str(file) in error


def test_a_log_of_another_split_is_refused(out, logs, tmp_path, capsys):
    log = json.loads((logs / "eval_log_aggregated.json").read_text())
    texts = log["eval_log_forget.json"]["generated_text"]
    for number in list(texts)[:3]:                              # a few may read otherwise: tokens that do not decode
        texts[number][2] = "Something else."
    (tmp_path / "few.json").write_text(json.dumps(log))
    sets = data.load(out=out, n_authors=20).sets
    assert len(same_questions(read_log(tmp_path / "few.json"), "x", sets, 40)[1]["forget"]) == 40
    for number in texts:
        texts[number][2] = texts[str((int(number) + 1) % 40)][2]
    (tmp_path / "many.json").write_text(json.dumps(log))
    error = refused(capsys, eval, TINY, f"--out={out}", f"--retrained={tmp_path / 'many.json'}")
    first = data.subset(range(40), 20)[0]                       # of those that are measured
    assert f"forget, question {first}: its true answer is" in error and "of another split or other data" in error
    error = refused(capsys, eval, TINY, "--n_authors=10", f"--out={tmp_path}", f"--runs={out / 'base'}",
                    f"--retrained={logs / 'TOFU_EVAL.json'}")
    assert "forget has question 39, but --data has 20 there" in error
    (tmp_path / "mine.json").write_text((logs / "eval_log_forget.json").read_text())
    error = refused(capsys, eval, TINY, f"--out={out}", f"--retrained={tmp_path / 'mine.json'}")
    assert "which set this is of, its name should say" in error


def test_another_directory_can_stand_for_the_retrained_model(report, out):
    """The fixture names OUT/retrained so; one that is neither file nor model is refused."""
    assert report("retrained")["runs"]["asu_gd"]["aggregate"]["gap_to_retrain"] > 0
    assert eval.find_runs(out, None, str(out / "base"))["retrained"] == out / "base"
    assert "retrained" not in eval.find_runs(out, "target", __file__)
