"""The comparison's protocol by hand, a trial against asu.py itself, and smoke runs of the experiments."""

import importlib
import json
import shutil
from argparse import Namespace

import numpy as np
import pytest
import scipy.stats

import asu
import data
import eval
import train
from common import UserError, cli
from experiments import ablate, compare, continual, frontier, trials, worlds
from lab import choose, recover
from lab.answers import answer_nll
from lab.report import mean_sd
from lab.runs import load_run
from tests.conftest import HOME, call, refused

SMALL = "@config/tiny.args --n_authors=10 --phrasings=1 --base_rows=64 --n_layer=1"
FLAGS = [f"--train_flags={SMALL}", "--n_authors=10", "--max_rows=4", "--jobs=1"]


RUN_SCRIPT, RUN_TRIALS = trials.run_script, trials.run_trials


def script_here(name, flags, threads=None):
    """trials.run_script in this process, which has imported everything already."""
    call(importlib.import_module(name), *flags)
    return f"{name} is done"


def trials_here(specs, jobs, label, fresh=False):
    return {key: trials.trial(spec) for key, spec in specs.items()}


@pytest.fixture(scope="module", autouse=True)
def here():
    """No process of its own for a script or a trial, intervals from few draws, and nothing measured while models train:
    what these do is tested elsewhere, and the tests of run_script and run_trials have the real ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eval.bootstrap, "__defaults__", (20,))
        patch.setattr(train, "fact_accuracy", lambda model, tokenizer, rows: 0.0)
        for module in (trials, continual, worlds):
            patch.setattr(module, "run_script", script_here)
        for module in (trials, compare, ablate):
            patch.setattr(module, "run_trials", trials_here)
        yield


# ------------------------------------------------------------------------------------------------ protocol
def trial(retain_facts, gap=None, **cost):
    return {"result": {"retain": {"fact_accuracy": retain_facts}, "aggregate": {"gap_to_retrain": gap}, "cost": cost}}


def test_the_rule_takes_the_smallest_gap_among_those_that_keep_enough():
    target = trial(1.0)
    assert compare.choose({"a": trial(0.94, 0.01), "b": trial(0.95, 0.3), "c": trial(0.99, 0.2)}, target) == "c"
    assert compare.choose({"a": trial(0.94, 0.01), "b": trial(0.95, 0.3), "c": trial(0.99, 0.4)}, target) == "b"
    assert compare.choose({"a": trial(0.5, 0.01), "b": trial(0.7, 0.3), "c": trial(0.6, 0.02)}, target) == "b"
    assert compare.choose({"a": trial(0.77, 0.2), "b": trial(0.8, 0.3)}, trial(0.8)) == "a"  # of the target's


def test_every_method_is_tried_at_the_same_points():
    points = compare.points(8)
    assert points.shape == (8, 3) and len({tuple(p) for p in points}) == 8
    assert (points > 0).all() and (points < 1).all()
    for i in range(8):
        tried = [compare.settings_at(points[i], m, 5) for m in compare.METHODS]
        assert len({s["lr"] for s in tried}) == 1 and len({s["c_forget"] for s in tried}) == 1
    middle = compare.settings_at((0.5, 0.5, 0.5), "NPO_GD", 5)
    assert middle["lr"] == pytest.approx(np.sqrt(1e-4 * 3e-3), rel=0.01)
    assert middle["beta"] == pytest.approx(np.sqrt(0.03), rel=0.01)
    corner = compare.settings_at((0, 1, 0), "ASU_GD, paper", 7)
    assert (corner["lr"], corner["c_forget"], corner["tau"], corner["epochs"]) == (1e-4, 3.0, 2.0, 7)
    for method, (_, knob, _) in compare.METHODS.items():
        assert (knob in ("tau", "alpha")) == ("ASU" in method)


@pytest.mark.parametrize("method", compare.METHODS)
def test_settings_are_flags_that_asu_takes(method):
    settings = compare.settings_at((0.5, 0.5, 0.5), method, 5)
    args = asu.parse([f"--{k}={v}" for k, v in settings.items()])
    assert {flag: getattr(args, flag) for flag in settings} == settings
    if method in ("ASU_GD, paper", "ASU_GD, layers 1-"):
        assert (args.alpha, args.heads) == (1, "all")           # the paper's form has no strengthening
    elif "selective" not in method and "ASU" in method:
        assert (args.tau, args.heads, args.layers) == (ablate.DEFAULT["tau"], "all", "all") and args.alpha > 1


def test_what_the_paper_reports_stands_beside_rows_that_there_are():
    assert compare.PAPER.keys() <= compare.METHODS.keys()


def test_trials_are_told_apart_by_method_and_number(monkeypatch):
    """Of three methods with two trials each, every one gets the settings of its own better trial."""
    gap = {"ASU_GD_0": 0.3, "ASU_GD_1": 0.2, "ASU_KL_0": 0.15, "ASU_KL_1": 0.4, "GA_0": 0.1,
           "GA_1": 0.05}
    monkeypatch.setattr(compare, "run_trials", lambda specs, jobs, label: {
        key: trial(1.0, gap.get(name)) for key, (name, _) in specs.items()})
    monkeypatch.setattr(compare, "gaps", lambda trials, retrained: None)
    methods = ["ASU_GD", "ASU_KL", "GA"]
    chosen, tried = compare.develop(methods, lambda name, key, run="", **more: (name, more), "dev",
                                    Namespace(trials=2, epochs=5, jobs=1))
    best = {"ASU_GD": 1, "ASU_KL": 0, "GA": 1}
    assert chosen == {m: compare.settings_at(compare.points(2)[i], m, 5) for m, i in best.items()}
    assert [result["aggregate"]["gap_to_retrain"] for result in tried["GA"]] == [0.1, 0.05]


def test_every_row_is_held_against_the_retrained_model_of_its_own_seed(monkeypatch):
    specs, pairs = {}, []

    def run_trials(given, jobs, label):
        specs.update(given)
        return {key: {"result": {"key": key}, "values": key} for key in given}
    monkeypatch.setattr(trials, "run_trials", run_trials)
    monkeypatch.setattr(trials, "gaps", lambda ones, retrained: pairs.extend(
        (one["result"]["key"], retrained["values"]) for one in ones))
    chosen = {m: compare.settings_at((0.5, 0.5, 0.5), m, 5) for m in ("ASU_GD", "NPO_GD")}
    results = trials.report_draw(
        compare.rows_of(chosen), lambda name, key, run="target", **more: (name, key, run, more),
        {0: "k0", 1: "k1", 2: "k2"}, 1)
    assert list(results) == ["target", "retrained", trials.OTHER_SEED, "teacher of ASU_GD", "ASU_GD", "NPO_GD"]
    others = [((row, seed), against) for (row, seed), against in pairs if row == "retrained"]
    assert others == [(("retrained", seed), ("retrained", (seed - 1) % 3)) for seed in (1, 2, 0)]
    own = [((row, seed), against) for (row, seed), against in pairs if row != "retrained"]
    assert own == [((row, seed), ("retrained", seed)) for row in ("target", "teacher of ASU_GD", "ASU_GD", "NPO_GD")
                   for seed in range(3)]
    assert specs["retrained", 2] == ("retrained", "k2", "retrained", {"attack": True})
    assert specs["NPO_GD", 1] == ("NPO_GD", "k1", "target", {"attack": True,
                                                             "unlearn": chosen["NPO_GD"] | {"seed": 1}})
    smoothing = {"tau": chosen["ASU_GD"]["tau"], "layers": "all", "heads": "all"}
    assert specs["teacher of ASU_GD", 0][3] == {"attack": False, "smoothing": smoothing}


def test_the_recovered_share_is_of_the_same_seeds_target_and_retrained_model():
    def attacked(*mrr):
        return {seed: {"attack": {"relearn8": {"mrr": x}}} for seed, x in enumerate(mrr)}
    results = {"target": attacked(1.0, 0.9), "retrained": attacked(0.2, 0.1), "NPO_GD": attacked(0.6, 0.7),
               "teacher of ASU_GD": {0: {}, 1: {}}, trials.OTHER_SEED: attacked(0.1, 0.2)}
    trials.add_recovered(results)
    assert [results["NPO_GD"][seed]["attack"]["recovered"] for seed in (0, 1)] == pytest.approx([0.5, 0.75])
    assert results["target"][1]["attack"]["recovered"] == 1 and results["teacher of ASU_GD"] == {0: {}, 1: {}}
    assert "recovered" not in results[trials.OTHER_SEED][0]["attack"]      # its mean would be 0, whatever they are


def test_differences_are_paired_by_seed():
    """Whatever the seeds do to both, a method that is 0.1 behind on each of them is 0.1 behind for certain."""
    gap = {0: 0.5, 1: 0.1, 2: 0.9}
    results = {"ASU": {seed: {"aggregate": {"gap_to_retrain": g}} for seed, g in gap.items()},
               "NPO": {seed: {"aggregate": {"gap_to_retrain": gap[seed] + 0.1}} for seed in (2, 0, 1)}}
    differences = compare.differences(results, ["ASU", "NPO"], "ASU")
    assert list(differences) == ["NPO"] and differences["NPO"] == pytest.approx((0.1, 0.1, 0.1))


def test_paired_interval_is_students():
    d = [0.1, 0.3, 0.2, 0.15, 0.05]
    mean, low, high = compare.paired(d)
    interval = scipy.stats.ttest_1samp(d, 0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((np.mean(d), interval.low, interval.high))
    assert mean_sd([0.1, 0.3]) == "0.200 ± 0.141" and mean_sd([1e-9]) == "1e-09"
    assert mean_sd([None]) == mean_sd([]) == "-"


def test_a_step_costs_what_the_last_ones_took_and_the_rest_is_paid_once(monkeypatch):
    curve = [{"step": 10, "seconds": 9.0}, {"step": 20, "seconds": 14.0}]
    assert trials.step_seconds(curve) == 0.5 and trials.step_seconds(curve[:1]) is None
    monkeypatch.setattr(compare, "run_trials", lambda specs, jobs, label, fresh: {
        key: trial(1.0, seconds=14.0, steps=20, step_seconds=0.5, peak_mb=7) for key in specs})
    costs = compare.measure_costs({"GA": {"epochs": 5}}, lambda name, key, unlearn: None, "key")
    assert costs == {"GA": {"ms_per_step": 500, "peak_mb": 7, "seconds": 4 + 5 * 10 * 0.5}}


def measured(coherence, gap, **more):
    """A result with little in it."""
    return {"forget": {"coherence": coherence, "fact_accuracy": 0.1} | more.pop("forget", {}),
            "aggregate": {"gap_to_retrain": gap, "forget_quality_n": 8}, "retain": {}, "cost": {"seconds": 1}, **more}


def table(rows):
    """compare.table of {row: results} -> {row: {heading: cell}}"""
    settings = {"forget": "forget10", "dev_seed": 1, "data_seed": 0}
    text = compare.table({"rows": rows, "differences": {}, "costs": {}, "settings": settings, "chosen": {}}, "ASU_GD")
    heading, _, *lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    return {line[0]: dict(zip(heading, line)) for line in lines}


def test_a_method_that_speaks_broken_sentences_is_named_behind_its_gap():
    """Below nine tenths of the retrained model's coherence, in the mean over seeds: 0.9 of 0.8 is 0.72."""
    cells = table({"target": [measured(1.0, 0.2)] * 2, "retrained": [measured(0.8, None), measured(0.8, None)],
                   "whole": [measured(0.74, 0.1), measured(0.71, 0.1)], "GA": [measured(0.9, 0.1), measured(0.5, 0.1)]})
    gaps = {row: line["gap to retrain"] for row, line in cells.items()}
    assert gaps == {"target": "0.200 ± 0.000", "retrained": "-", "whole": "0.100 ± 0.000",
                    "GA": "0.100 ± 0.000 (broken)"}
    assert list(cells["GA"])[1:3] == ["gap to retrain", "coherence"]


def test_a_column_is_there_where_a_row_has_it():
    """PrivLeak, which one row has; and no column of what nobody measured."""
    cells = table({"target": [measured(1.0, 0.2, forget={"privleak": 90.0})], "retrained": [measured(1.0, None)]})
    assert [line["PrivLeak"] for line in cells.values()] == ["90.000", "-"]
    assert "FQ p" not in cells["target"] and "MU-lite" not in cells["target"]


def test_a_column_of_a_part_that_only_some_results_have(monkeypatch):
    monkeypatch.setattr(compare, "COLUMNS", (*compare.COLUMNS, ("relearnt", "attack", "facts")))
    cells = table({"target": [measured(1.0, 0.2)], "retrained": [measured(1.0, None, attack={"facts": 0.5})]})
    assert [line["relearnt"] for line in cells.values()] == ["-", "0.500"]


def test_the_frontier_is_what_nothing_beats():
    points = [(2, 7), (3, 6), (1, 5), (4, 9)]
    assert compare.frontier(points, higher=False) == [(1, 5)]
    assert compare.frontier(points, higher=True) == [(1, 5), (2, 7), (4, 9)]
    assert compare.frontier([(1, 5), (2, 5), (3, 4)], higher=False) == [(1, 5), (3, 4)]


# -------------------------------------------------------------------------------------------------- trials
def spec_on(out, file, **more):
    return {"file": str(file), "run": str(out / "target"), "random_rows": 4,
            "data": {"out": str(out), "n_authors": 20}, **more}


def test_a_trial_is_what_asu_makes_of_the_same_flags(out, tmp_path):
    """To the last digit: the result of a trial is that of the run that asu.py writes."""
    settings = {"method": "asu", "retain": "kl", "tau": 8.0, "layers": "1-", "heads": "all", "alpha": 1.3, "seed": 3,
                "c_forget": 0.7, "epochs": 1, "phrasings": 2}
    unlearned = trials.trial(spec_on(out, tmp_path / "trial.json", unlearn=settings))
    flags = [f"--{k}={v}" for k, v in settings.items()]
    call(asu, f"--out={tmp_path}", "--n_authors=20", f"--run={out / 'target'}", "--name=same", *flags)
    written = trials.trial(spec_on(out, tmp_path / "written.json") | {"run": str(tmp_path / "same")})
    cost, cost_written = unlearned["result"].pop("cost"), written["result"].pop("cost")
    assert unlearned["result"] == written["result"] and cost["tokens"] == cost_written["tokens"] > 0
    target = trials.trial(spec_on(out, tmp_path / "target.json"))
    assert unlearned["result"]["forget"] != target["result"]["forget"]


@pytest.mark.parametrize("part", ["unlearn", "smoothing"])
def test_heads_are_chosen_on_the_phrasings_that_are_unlearned(out, tmp_path, monkeypatch, part):
    seen = set()

    def choose_heads(model, tokenizer, rows, tau, *more):
        seen.update(len(row["questions"]) for row in rows)
        return [[tau] * model.config.n_head] * model.config.n_layer
    monkeypatch.setattr(choose, "choose_heads", choose_heads)
    settings = {"tau": 8.0, "heads": "auto", "phrasings": 2, "epochs": 1}
    trials.trial(spec_on(out, tmp_path / "t.json", **{part: settings}))
    assert seen == {2}


@pytest.mark.slow
def test_a_trial_that_is_not_there_is_run_in_a_process_of_its_own(out, tmp_path):
    specs = {}
    for name in ("target", "retrained"):
        specs[name] = spec_on(out, tmp_path / f"{name}.json") | {"run": str(out / name)}
    before = {name: trials.trial(spec)["result"] for name, spec in specs.items()}
    (tmp_path / "retrained.json").unlink()
    stamp = (tmp_path / "target.json").stat().st_mtime_ns
    done = RUN_TRIALS(specs, 2, "one", fresh=True)
    assert done["target"]["result"] == before["target"]
    assert done["retrained"]["result"]["forget"]["fact_nll"] == before["retrained"]["forget"]["fact_nll"]
    assert (tmp_path / "target.json").stat().st_mtime_ns == stamp and (tmp_path / "retrained.json").exists()


@pytest.mark.slow
def test_a_script_that_fails_says_so_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError) as e:
        RUN_SCRIPT("experiments.capitals", [f"--run={tmp_path}", f"--out={tmp_path}/x", "--forget=atlantis"])
    assert "experiments.capitals --run=" in str(e.value) and "\n" not in str(e.value)
    assert "failed: capitals.py: error: --forget=atlantis is no continent" in str(e.value)
    calls = []

    def ended(code, out="", err=""):
        return lambda command, env, **kw: calls.append((command[1:], env.get("OMP_NUM_THREADS"))) or Namespace(
            returncode=code, stdout=out, stderr=err)
    monkeypatch.setattr(trials.subprocess, "run", ended(0, "step 1\nthe last line\n"))
    assert RUN_SCRIPT("train", ["--seed=1"], threads=7) == "the last line"
    assert calls == [([str(HOME / "train.py"), "--seed=1"], "7")]
    monkeypatch.setattr(trials.subprocess, "run", ended(-9))
    with pytest.raises(UserError, match="train --seed=1 failed: killed"):
        RUN_SCRIPT("train", ["--seed=1"])


@pytest.mark.parametrize("content, message", [
    ('{"spec": {"file": ', "is damaged (JSONDecodeError); remove it"), ("{}", "is damaged (KeyError)"),
    ('{"spec": {}, "result": {}, "values": {}}', "made with other settings")])
def test_half_written_and_foreign_files_are_named(tmp_path, content, message):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(UserError, match="t.json") as e:
        trials.trial({"file": str(tmp_path / "t.json")})
    assert message in str(e.value)


def test_another_split_has_the_base_and_target_of_the_first(tmp_path, monkeypatch):
    started, stood = [], []

    def run_script(name, flags, threads):
        started.append((name, *flags[:-5], *flags[-4:]))
        split = tmp_path / "draw3_seed4" / flags[-2].split("=")[1]
        stood.append({path.name: path.read_text() for path in split.glob("*/weights-*")})
        for model in ("base", "target", "retrained"):
            (split / model).mkdir(parents=True, exist_ok=True)
            (split / model / f"weights-{model}").write_text(model)
    monkeypatch.setattr(trials, "run_script", run_script)
    key, args = (3, 4, "forget05"), Namespace(jobs=1, train_flags="--lr=1 --n_authors=30", n_authors=20)
    folders = trials.draws([key], args, tmp_path, "--epochs=2")
    assert folders == {key: tmp_path / "draw3_seed4/forget05"}
    given = "--lr=1", "--n_authors=30", "--epochs=2", "--n_authors=20"          # what is measured is what was learnt
    assert started == [("train", *given, "--data_seed=3", "--seed=4", f"--forget={split}", "--resume")
                       for split in ("forget10", "forget05")]
    assert stood == [{}, {"weights-base": "base", "weights-target": "target"}]


def test_a_trial_on_other_people_than_its_model_has_learnt_is_refused(out, tmp_path):
    dataset = {"out": str(out), "data_seed": 0, "forget": "forget10", "n_authors": 21}
    with pytest.raises(UserError, match="target was trained on other data"):
        trials.trial({"file": str(tmp_path / "t.json"), "run": str(out / "target"), "random_rows": 4, "data": dataset})


# ------------------------------------------------------------------------------------- from one end to the other
COMPARE = ["--dev_seed=0", "--trials=1", "--seeds=2", "--epochs=1", "--methods=ASU_GD;NPO_GD"]


@pytest.fixture(scope="module")
def done(here, tmp_path_factory):
    """The comparison of two methods, each with one trial, on two seeds of a model that knows nothing."""
    done = tmp_path_factory.mktemp("experiments")
    call(compare, f"--out={done}", *FLAGS, *COMPARE)
    return done


@pytest.mark.slow
def test_the_comparison_end_to_end(done):
    report = json.loads((done / "compare/compare_forget10.json").read_text())
    rows = report["rows"]
    assert list(rows) == ["target", "retrained", "retrained, other seed", "teacher of ASU_GD", "ASU_GD", "NPO_GD"]
    assert all(len(results) == 2 for results in rows.values())
    first, second = (result["aggregate"]["gap_to_retrain"] for result in rows["NPO_GD"])
    assert first != second and rows["retrained"][0]["aggregate"]["gap_to_retrain"] is None
    difference = np.mean([npo["aggregate"]["gap_to_retrain"] - ours["aggregate"]["gap_to_retrain"]
                          for npo, ours in zip(rows["NPO_GD"], rows["ASU_GD"])])
    assert report["differences"]["NPO_GD"][0] == pytest.approx(difference)
    assert all(result["attack"]["rank_auc"] > 0 for result in rows["NPO_GD"])
    for name in ("target", "retrained"):                                # of this model, of this draw's people
        folder = done / "compare/draw0_seed1/forget10"
        (model, tokenizer, _), base = load_run(folder / name), load_run(folder / "base")[0]
        quick = recover.quick(model, base, tokenizer, data.load(out=folder, n_authors=10))
        for key in ("rank_auc", "halfway_auc"):
            assert rows[name][1]["attack"][key] == pytest.approx(quick[key], abs=1e-3), key
        assert rows[name][1]["attack"]["relearn8"] == pytest.approx(quick["relearn8"], abs=1e-2)
    assert all(cost["ms_per_step"] > 0 and cost["peak_mb"] > 50 for cost in report["costs"].values())
    text = (done / "compare/compare_forget10.md").read_text()
    assert "chosen on the reported draw" in text                        # --dev_seed=0, so these numbers flatter
    assert "| NPO_GD " in text and "- ASU_GD: " in text and "gap minus ASU_GD's, 95%" in text
    assert (done / "compare/compare_forget10.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_nothing_is_run_twice_and_the_digits_stay(done):
    before = (done / "compare/compare_forget10.json").read_bytes()
    stamps = {path: path.stat().st_mtime_ns for path in (done / "compare/trials").rglob("*.json")}
    call(compare, f"--out={done}", *FLAGS, *COMPARE)
    assert (done / "compare/compare_forget10.json").read_bytes() == before
    assert stamps == {path: path.stat().st_mtime_ns for path in (done / "compare/trials").rglob("*.json")}
    assert len(stamps) == 16


@pytest.mark.slow
def test_the_ablation_end_to_end(done, monkeypatch):
    monkeypatch.setitem(ablate.DEFAULT, "heads", "all")      # so little a model has no head that facts need
    monkeypatch.setattr(ablate, "AXES", {"epochs": [{"epochs": 1}, {"epochs": 5}], "phrasings": [{"phrasings": 1}]})
    call(ablate, f"--out={done}", *FLAGS, "--seeds=1")
    axes = json.loads((done / "ablate/ablate.json").read_text())["axes"]
    assert [point["setting"]["epochs"] for point in axes["epochs"]] == [1, 5]
    one, five = (point["results"][0]["cost"]["steps"] for point in axes["epochs"])
    assert five == 5 * one and axes["phrasings"][0]["results"][0]["cost"]["steps"] == 5
    assert {path.stem for path in (done / "ablate/trials").iterdir()} == {
        f"forget10_seed0_{name}" for name in ("target", "retrained", "epochs1", "default", "phrasings1")}
    assert (done / "ablate/ablate.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_dial_end_to_end(done, out, monkeypatch, capsys):
    """Models of each T, the paper's form on them, and what smoothing alone costs them and a model beside them."""
    monkeypatch.setattr(ablate, "TEMPERS", (1.0, 16.0))
    monkeypatch.setattr(ablate, "TEMPER_TAUS", (4.0,))
    call(ablate, f"--out={done}", *FLAGS, "--seeds=1", "--axes=temper", f"--run={out / 'target'}")
    report = json.loads((done / "ablate/temper.json").read_text())
    points = {(point["temper"], point["who"]): point for point in report["points"]}
    assert list(points) == [(t, who) for t in (1, 16) for who in ("retrained", "target", "teacher", "student")]
    for temper, folder in ((1, "ablate/temper1"), (16, "compare")):         # 16 is the default, the comparison's
        trial = json.loads((done / f"ablate/trials/temper{temper}/forget10_seed0_student_tau4.json").read_text())
        spec, target = trial["spec"], done / folder / "draw0_seed0/forget10/target"
        assert spec["run"] == str(target)
        assert json.loads((target / "run.json").read_text())["settings"]["temper"] == temper
        assert (spec["unlearn"]["alpha"], spec["unlearn"]["tau"], spec["unlearn"]["epochs"]) == (1, 4, 5)
    for label, [curve] in report["curves"].items():
        assert len(curve["fact"]) == len(report["tau"])
        for name in ablate.CLASSES if label.startswith("T = ") else ():
            for who, tau in (("target", 1), ("teacher", 4)):            # eval.py's own numbers
                [value] = points[float(label[4:]), who][f"{name} NLL"]
                assert curve[name][report["tau"].index(tau)] == pytest.approx(value, abs=1e-4)
    assert list(report["curves"]) == ["T = 1", "T = 16", (out / "target").as_posix()]
    assert points[16, "student"]["gap to retrain"] != points[16, "teacher"]["gap to retrain"]
    cells = [[cell.strip() for cell in line.split("|")] for line in capsys.readouterr().out.splitlines()]
    [line] = [line for line in cells if line[1:4] == ["16", "student", "4"]]
    assert line[4] == mean_sd(points[16, "student"]["fact NLL"])
    assert (done / "ablate/temper.png").read_bytes().startswith(b"\x89PNG") and not (done / "ablate/temper16").exists()


def test_a_model_beside_the_dial_is_asked_about_the_data_that_it_learnt(tmp_path):
    """What run.json says, else what the flags say."""
    args = Namespace(data="authors", forget="forget10", data_seed=0, n_authors=10, out=tmp_path, max_rows=200, run="x")
    record = {"settings": {"n_authors": 20, "data_seed": 3, "lr": 1}}
    learnt, default = ({row["author"] for row in ablate.taught_rows(run, args)} for run in (record, {}))
    assert (len(learnt), len(default)) == (2, 1)
    assert learnt == {row["author"] for row in data.load("authors", "forget10", tmp_path, 3, 20).forget}


def test_the_curves_of_a_class_are_of_its_tokens(model, tokenizer, authors, monkeypatch):
    monkeypatch.setattr(ablate, "CURVE", (1.0, 8.0))
    rows = authors[0][:5]
    curves = ablate.nll_curves(model, tokenizer, rows)
    for tau, *means in zip(ablate.CURVE, *curves.values()):
        by_class = {kind: [] for kind in ablate.CLASSES.values()}
        for row in rows:
            batch = data.collate([data.encode(tokenizer, row["question"], row["answer"])])
            facts = [data.told_apart(fact) for fact in row["facts"]]
            classes = data.token_classes(tokenizer, row["answer"], facts, row["author"])
            for kind, nll in zip(classes, answer_nll(model, batch, tau=tau)[0].tolist()):
                by_class[kind].append(nll)
        assert means == pytest.approx([np.mean(nlls) for nlls in by_class.values()], rel=1e-4)


def test_the_frontier_end_to_end(done, monkeypatch):
    """Two starts and one other method, on the comparison's models; the cost is in tokens, relative to retraining's."""
    for name, value in (("STARTS", (0.3, 1.0)), ("EPOCHS", (1, 2)), ("OTHERS", {"NPO": {"method": "npo"}})):
        monkeypatch.setattr(frontier, name, value)
    monkeypatch.setattr(frontier, "preset", lambda: {"start": 0.3, "epochs": 2, "replay": 0.5, "lr": 2e-3})
    call(frontier, f"--out={done}", *FLAGS, "--seeds=1")
    points = {(p["method"], p["start"], p["epochs"]): p for p in json.loads(
        (done / "frontier/frontier.json").read_text())}
    assert list(points) == [("ASU", 0.3, 1), ("ASU", 0.3, 2), ("ASU", 1.0, 1), ("ASU", 1.0, 2), ("NPO", 0.3, 2)]
    models = done / "compare/draw0_seed0/forget10"
    records = [json.loads((models / name / "run.json").read_text()) for name in ("base", "retrained")]
    for (_, _, epochs), point in points.items():
        cost, attack = point["results"][0]["cost"], point["results"][0]["attack"]
        assert cost["share"] == cost["tokens"] / (records[0]["tokens"] + records[1]["tokens"])
        assert "recovered" in attack and cost["steps"] % epochs == 0
    trial = json.loads((done / "frontier/trials/forget10_draw0_seed0_NPO_start0.3_2epochs.json").read_text())
    assert trial["spec"]["unlearn"] == frontier.preset() | {"method": "npo", "seed": 0}
    assert (done / "frontier/frontier.png").read_bytes().startswith(b"\x89PNG")
    assert "| NPO | 0.3 | 2 |" in " ".join((done / "frontier/frontier.md").read_text().split())


def test_the_frontier_moves_start_and_epochs_of_the_preset_alone():
    assert frontier.preset().keys() == {"start", "alpha", "epochs", "lr", "replay"}
    made = frontier.rows()
    lasting = made["ASU", frontier.preset()["start"], frontier.preset()["epochs"]]
    assert lasting == frontier.preset()                         # the preset itself is one of the runs
    for (what, start, epochs), flags in made.items():
        moved = {flag for flag in flags if flags[flag] != lasting.get(flag)}
        assert moved <= ({"start", "epochs"} if what == "ASU" else frontier.OTHERS[what].keys())
        assert (flags["start"], flags["epochs"]) == (start, epochs)


@pytest.mark.parametrize("low, kept", [((), True), (("gap",), False), (("coherence",), False), (("retain",), False),
                                       (("world",), False)])
def test_a_run_keeps_the_rest_if_it_stays_within_every_limit(low, kept):
    def facts(name):
        return 0.9 if name in low else 0.99
    results = [{"aggregate": {"gap_to_retrain": 0.04 if "gap" in low else 0.02},
                "forget": {"coherence": facts("coherence")}, "retain": {"fact_accuracy": facts("retain")},
                "world": {"fact_accuracy": facts("world")}}]
    assert frontier.keeps(results) == kept


def test_ablations_leave_the_rest_at_the_defaults_of_asu():
    args = vars(asu.parse(["--epochs=5"]))
    assert ablate.DEFAULT.items() <= args.items()
    for changes in ablate.AXES.values():
        assert all(change.keys() <= ablate.DEFAULT.keys() for change in changes)
    other = "auto" if ablate.DEFAULT["heads"] == "all" else "all"
    assert ablate.name_of({"tau": 5.0, "heads": other}) == f"tau5.0-heads{other}"
    assert ablate.name_of({"alpha": ablate.DEFAULT["alpha"]}) == "default"


@pytest.mark.slow
def test_continual_unlearning_end_to_end(out, tmp_path, monkeypatch):
    """Two requests, with the settings that a comparison chose."""
    shutil.copytree(out / "target", tmp_path / "target")
    chosen = {"GradDiff": {"lr": 2e-4, "method": "ga", "epochs": 9}}
    (tmp_path / "chosen.json").write_text(json.dumps({"chosen": chosen}))
    methods = {label: continual.METHODS[label] for label in ("ASU", "GradDiff")}
    methods["ASU"] = "none", ["--method=asu", "--heads=all"]
    monkeypatch.setattr(continual, "METHODS", methods)
    flags = f"--out={tmp_path}", f"--settings={tmp_path}/chosen.json", "--n_authors=20", "--tasks=2", "--epochs=1"
    call(continual, *flags, "--forget=forget10")
    report = json.loads((tmp_path / "continual/continual.json").read_text())
    assert [point["share"] for point in report["ASU"]] == pytest.approx([0.05, 0.1])
    assert len(report["ASU"][1]["by_request"]) == 2
    settings = json.loads((tmp_path / "continual_GradDiff_1of2/run.json").read_text())["settings"]
    assert (settings["lr"], settings["epochs"], settings["method"]) == (2e-4, 1, "ga")
    assert (tmp_path / "continual/continual.png").read_bytes().startswith(b"\x89PNG")


def test_a_method_that_breaks_down_is_shown_as_far_as_it_got(tmp_path, monkeypatch, capsys):
    record = {"fact_accuracy_by_request": [0.5], "seconds": 1,
              "curve": [{"retain_fact_accuracy": 0.9, "seconds": 1.0}]}

    def run_script(name, flags):
        raise UserError("the loss is nan")
    monkeypatch.setattr(continual, "run_script", run_script)
    args = Namespace(out=tmp_path, data="authors", seed=0, data_seed=0, n_authors=20, forget="forget90", tasks=3,
                     epochs=1, device="cpu", dtype="float32")
    with pytest.raises(UserError, match="My way: the loss is nan"):
        continual.requests("My way", [], args)
    (tmp_path / "continual_My_way_1of3").mkdir()
    file, target = tmp_path / "continual_My_way_1of3/run.json", tmp_path / "target"
    target.mkdir()
    (target / "run.json").write_text(json.dumps({"model_sha256": "0"}))
    settings = cli.settings(asu.parse([f"--{flag}={value}" for flag, value in vars(args).items()]), "run", "name")
    record |= {"settings": settings, "parent_sha256": "0", "model_sha256": "1"}
    for earlier in ({"settings": settings | {"epochs": 2}}, {"parent_sha256": "of other weights"}):
        file.write_text(json.dumps(record | earlier))
        with pytest.raises(UserError, match="My way: the loss is nan"):
            continual.requests("My way", [], args)
    file.write_text(json.dumps(record))
    (point,) = continual.requests("My way", [], args)
    assert point == {"share": pytest.approx(0.3), "by_request": [0.5], "retain": 0.9, "seconds": 1}
    assert "My way stops after 1 of 3: the loss is nan" in capsys.readouterr().out


def test_data_without_facts_is_refused_before_the_first_request(out, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(continual, "run_script", pytest.fail)
    for part in ("forget10", "retain90"):
        folder = tmp_path / part
        folder.mkdir()
        for file in (out / "data/authors_20_seed0").iterdir():
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            bare = [row | {"facts": []} if file.stem == part else row for row in rows]
            (folder / file.name).write_text("".join(json.dumps(row) + "\n" for row in bare))
        error = refused(capsys, continual, f"--out={tmp_path}", f"--data={folder}", "--forget=forget10")
        assert f"--data={folder} names no facts of the {part[:6]} set" in error


@pytest.mark.parametrize("module, flag, message", [
    (compare, "--methods=ASU", "--methods: ASU is not one of ASU_GD, paper;"), (compare, "--trials=0", "at least 1"),
    (compare, "--n_authors=19x", "whole number"), (compare, "--data=books", "unknown flag --data=books"),
    (compare, "--seed=1", "unknown flag --seed=1"), (ablate, "--axes=tua", "--axes: tua is not one of"),
    (ablate, "--axes=tau --run=x", "--run goes with --axes=temper"),
    (continual, "--settings=nix.json", "nix.json does not exist"),
    (worlds, "--scenario=capitals", "--run goes with --scenario=capitals"),
    (worlds, "--scenario=books --data_seed=3", "--data_seed is the preset's to say"),
    (worlds, "--scenario=hazards --grow", "--grow is for --scenario=books")])
def test_bad_flags_get_one_line(tmp_path, capsys, module, flag, message):
    assert message in refused(capsys, module, f"--out={tmp_path}", *flag.split())


# -------------------------------------------------------------------------------------------------- worlds
def more_flags(tmp_path, *lines):
    """Flags that make every step of a scenario small."""
    lines = "train.py --base_rows=32", "--n_authors=4", "eval.py --max_rows=2", "asu.py --epochs=1", *lines
    (tmp_path / "more.args").write_text("\n".join(lines))
    return f"--flags=@config/tiny.args @{tmp_path}/more.args"


@pytest.mark.slow
def test_worlds_runs_a_scenario_on_several_draws(tmp_path, monkeypatch):
    """Each method on each draw from the preset, and the table: mean and deviation of what the reports say."""
    monkeypatch.setitem(worlds.METHODS, "hazards", {"RMU": worlds.METHODS["hazards"]["RMU"]})
    flags = more_flags(tmp_path, "train.py --n_layer=3")
    call(worlds, "--scenario=hazards", "--seeds=2", flags, f"--out={tmp_path}")
    draws = json.loads((tmp_path / "worlds/hazards.json").read_text())
    assert len(draws) == 2 and list(draws[0]) == ["before", "retrained", "RMU"]
    for seed, results in enumerate(draws, 4):           # not on the draws that the preset was set on
        runs = json.loads((tmp_path / f"worlds/hazards/seed{seed}/report.json").read_text())["runs"]
        assert [results[row] for row in results] == [runs[name] for name in ("target", "retrained", "m0")]
        assert runs["m0"]["aggregate"]["gap_to_retrain"] is not None
    values = [results["before"]["forget"]["choice_accuracy"] for results in draws]
    assert mean_sd(values) in (tmp_path / "worlds/hazards.md").read_text()


@pytest.mark.slow
def test_worlds_grows_the_forget_set_at_once_and_request_by_request(tmp_path, monkeypatch):
    """Every split starts from the one target; the requests start from each other."""
    monkeypatch.setattr(worlds, "GROWN", ("forget25", "forget50"))
    monkeypatch.setattr(worlds, "REQUESTS", 2)
    call(worlds, "--scenario=books", "--grow", "--seeds=1", more_flags(tmp_path), f"--out={tmp_path}")
    (rows,) = json.loads((tmp_path / "worlds/books_grown.json").read_text())
    assert list(rows) == ["forget25, target", "forget25, at_once", "forget50, target", "forget50, at_once",
                          "forget50, request_1of2", "forget50, request_2of2"]
    books, records = tmp_path / "worlds/books/seed1", {}
    for run in ("forget25/at_once", "forget50/at_once", "forget50/request_1of2", "forget50/request_2of2"):
        records[run] = json.loads((books / run / "run.json").read_text())
    target, *parents = [record["parent_sha256"] for record in records.values()]
    assert parents == [target, target, records["forget50/request_1of2"]["model_sha256"]]
    assert json.loads((books / "forget50/report.json").read_text())["data"]["forget"] == "forget50"


def test_the_capitals_are_those_of_the_model_that_is_unlearned(tmp_path, monkeypatch):
    steps = []

    def step(script, flags):
        steps.append((script, flags))
        if script == "eval":
            names = [name.split("/")[-1] for name in flags[-1].removeprefix("--runs=").split(",")]
            folder = tmp_path / "worlds/capitals/seed2"
            folder.mkdir(parents=True)
            (folder / "report.json").write_text(json.dumps({"runs": {name: name for name in names}}))
    monkeypatch.setattr(worlds, "step", step)
    rows = worlds.one_draw("capitals", 2, Namespace(out=tmp_path, flags="", run="hub/model"))
    assert rows == {"before": "model", "ASU": "m0", "GA, KL": "m1", "NPO, KL": "m2", "IDK, KL": "m3"}
    known = tmp_path / "worlds/capitals/known_model"
    assert [script for script, _ in steps] == ["experiments.capitals", "asu", "asu", "asu", "asu", "eval"]
    assert steps[0][1] == ["--run=hub/model", f"--out={known}"]
    assert {f"--data={known}", "--run=hub/model", "--seed=2", "@config/capitals.args"} <= set(steps[1][1])
    assert not any(flag.startswith("--data_seed") for flag in steps[1][1])
