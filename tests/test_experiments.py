"""The comparison's protocol by hand, and smoke runs of the experiments on the tiny preset."""

import json
import shutil
import sys

import numpy as np
import pytest
import scipy.stats

from common import cli
from experiments import ablate, compare, continual, trials, worlds

FLAGS = ["--train_flags=@config/tiny.args", "--n_authors=20", "--max_rows=20", "--jobs=1"]


def call(monkeypatch, module, *flags):
    monkeypatch.setattr(sys, "argv", [f"{module.__name__.split('.')[1]}.py", *flags])
    cli.run(module.main)


def trial(kept, gap):
    return {"result": {"retain": {"fact_accuracy": kept}, "aggregate": {"gap_to_retrain": gap}}}


def test_the_rule_takes_the_smallest_gap_among_those_that_keep_enough():
    target = trial(1.0, None)
    assert compare.choose([trial(0.94, 0.01), trial(0.95, 0.3), trial(0.99, 0.2)], target) == 2
    assert compare.choose([trial(0.5, 0.01), trial(0.7, 0.3), trial(0.6, 0.02)], target) == 1


def test_every_method_is_tried_at_the_same_points():
    points = compare.points(8)
    assert points.shape == (8, 3) and len({tuple(p) for p in points}) == 8 and (points > 0).all() and (points < 1).all()
    for i in range(8):
        tried = [compare.settings_at(points[i], m, 5) for m in compare.METHODS]
        assert len({s["lr"] for s in tried}) == 1 and len({s["c_forget"] for s in tried}) == 1
    middle = compare.settings_at((0.5, 0.5, 0.5), "NPO_GD", 5)
    assert middle["lr"] == pytest.approx(np.sqrt(1e-4 * 3e-3), rel=0.01) and middle["beta"] == pytest.approx(np.sqrt(0.03), rel=0.01)
    assert {m for m, (fixed, knob, _) in compare.METHODS.items() if knob in ("tau", "alpha")} == {m for m in compare.METHODS if "ASU" in m}


def test_paired_interval_is_students():
    d = [0.1, 0.3, 0.2, 0.15, 0.05]
    mean, low, high = compare.paired(d)
    interval = scipy.stats.ttest_1samp(d, 0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((np.mean(d), interval.low, interval.high))
    assert compare.mean_sd([0.1, 0.3]) == "0.200 ± 0.141" and compare.mean_sd([None]) == "-" and compare.mean_sd([1e-9]) == "1e-09"


COMPARE = ["--dev_seed=0", "--trials=1", "--seeds=2", "--epochs=1", "--methods=ASU_GD;NPO_GD"]


@pytest.fixture(scope="module")
def done(out, tmp_path_factory):
    """The comparison on the tiny preset; the models of the first seed are those of the main job."""
    done, patch = tmp_path_factory.mktemp("experiments"), pytest.MonkeyPatch()
    for name in ("base", "target", "retrained"):
        shutil.copytree(out / name, done / "compare/draw0_seed0/forget10" / name)
    call(patch, compare, f"--out={done}", *FLAGS, *COMPARE)
    patch.undo()
    return done


def test_the_comparison_end_to_end(done):
    report = json.loads((done / "compare/compare_forget10.json").read_text())
    assert list(report["rows"]) == ["target", "retrained", "retrained, other seed", "teacher of ASU_GD", "ASU_GD", "NPO_GD"]
    assert all(len(results) == 2 for results in report["rows"].values())
    first, second = (r["aggregate"]["gap_to_retrain"] for r in report["rows"]["NPO_GD"])
    assert first != second and report["rows"]["retrained"][0]["aggregate"]["gap_to_retrain"] is None
    difference = np.mean([a["aggregate"]["gap_to_retrain"] - b["aggregate"]["gap_to_retrain"]
                          for a, b in zip(report["rows"]["NPO_GD"], report["rows"]["ASU_GD"])])
    assert report["differences"]["NPO_GD"][0] == pytest.approx(difference)
    assert all(c["ms_per_step"] > 0 and c["peak_mb"] > 50 for c in report["costs"].values())
    text = (done / "compare/compare_forget10.md").read_text()
    assert "| NPO_GD " in text and "- ASU_GD: " in text
    assert (done / "compare/compare_forget10.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_run_twice_and_the_digits_stay(done, monkeypatch):
    before = (done / "compare/compare_forget10.json").read_bytes()
    stamps = {p: p.stat().st_mtime_ns for p in (done / "compare/trials").rglob("*.json")}
    call(monkeypatch, compare, f"--out={done}", *FLAGS, *COMPARE)
    assert (done / "compare/compare_forget10.json").read_bytes() == before
    assert stamps == {p: p.stat().st_mtime_ns for p in (done / "compare/trials").rglob("*.json")} and len(stamps) > 10


def test_ablation_and_continual_unlearning_end_to_end(done, monkeypatch):
    monkeypatch.setitem(ablate.DEFAULT, "heads", "all")      # so little a model has no head that facts need
    monkeypatch.setattr(ablate, "AXES", {"epochs": [{"epochs": 1}, {"epochs": 2}]})
    call(monkeypatch, ablate, f"--out={done}", *FLAGS, "--seeds=1")
    points = json.loads((done / "ablate/ablate.json").read_text())["axes"]["epochs"]
    assert [p["setting"]["epochs"] for p in points] == [1, 2] and points[0]["results"][0] != points[1]["results"][0]
    monkeypatch.setattr(continual, "METHODS", {label: ("ASU_GD", flags) for label, (_, flags) in list(continual.METHODS.items())[:2]})
    shutil.copytree(done / "compare/draw0_seed0/forget10/target", done / "target")
    call(monkeypatch, continual, f"--out={done}", "--n_authors=20", "--tasks=2", "--epochs=1")
    report = json.loads((done / "continual/continual.json").read_text())
    assert [p["share"] for p in report["ASU"]] == pytest.approx([0.45, 0.9]) and len(report["ASU"][1]["by_request"]) == 2
    for figure in ("ablate/ablate.png", "continual/continual.png"):
        assert (done / figure).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("content, message", [
    ('{"spec": {"file": ', "is damaged (JSONDecodeError); remove it"), ("{}", "is damaged (KeyError)"),
    ('{"spec": {}, "result": {}, "values": {}}', "made with other settings")])
def test_half_written_and_foreign_files_are_named(tmp_path, content, message):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(ValueError, match="t.json") as e:
        trials.trial({"file": str(tmp_path / "t.json")})
    assert message in str(e.value)


@pytest.mark.parametrize("module, flag, message", [
    (compare, "--methods=ASU", "--methods: ASU is not one of ASU_GD;"), (compare, "--trials=0", "at least 1"),
    (compare, "--n_authors=19x", "whole number"), (ablate, "--axes=tua", "--axes: tua is not one of"),
    (continual, "--settings=nix.json", "nix.json does not exist"), (continual, "--tasks=99", "99 requests, but only")])
def test_bad_flags_get_one_line(tmp_path, monkeypatch, capsys, out, module, flag, message):
    where = f"--out={out if flag.startswith('--tasks') else tmp_path}"
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, module, where, flag, *(["--n_authors=20"] if flag.startswith("--tasks") else []))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and message in error


def test_worlds_runs_a_scenario_on_several_draws(tmp_path, monkeypatch, capsys):
    """Each method on each draw from the preset, and the table: mean and deviation of what the reports say."""
    monkeypatch.setitem(worlds.METHODS, "hazards", {m: worlds.METHODS["hazards"][m] for m in ("ASU, hidden state", "RMU")})
    (tmp_path / "more.args").write_text("train.py --n_layer=4\n--n_authors=4\neval.py --max_rows=4\n")
    flags = ["worlds", "--scenario=hazards", "--seeds=2", f"--flags=@config/tiny.args @{tmp_path}/more.args", f"--out={tmp_path}"]
    monkeypatch.setattr("sys.argv", flags)
    worlds.main()
    found = json.loads((tmp_path / "worlds/hazards.json").read_text())
    assert len(found) == 2 and list(found[0]) == ["before", "retrained", "ASU, hidden state", "RMU"]
    for seed, results in enumerate(found, 1):
        report = json.loads((tmp_path / f"worlds/hazards/seed{seed}/report.json").read_text())
        assert results["retrained"] == report["runs"]["retrained"] and results["RMU"] == report["runs"]["m1"]
        assert report["runs"]["m1"]["aggregate"]["gap_to_retrain"] is not None
    values = [r["before"]["forget"]["choice_accuracy"] for r in found]
    assert compare.mean_sd(values) in (tmp_path / "worlds/hazards.md").read_text()


def test_worlds_grows_the_forget_set_at_once_and_request_by_request(tmp_path, monkeypatch):
    """Every split starts from the one target; the requests start from each other and end where the largest split does."""
    (tmp_path / "more.args").write_text("--n_authors=4\neval.py --max_rows=2\n")
    monkeypatch.setattr(worlds, "GROWN", ("forget25", "forget50"))
    monkeypatch.setattr(worlds, "REQUESTS", 2)
    flags = ["worlds", "--scenario=books", "--grow", "--seeds=1", f"--flags=@config/tiny.args @{tmp_path}/more.args", f"--out={tmp_path}"]
    monkeypatch.setattr("sys.argv", flags)
    worlds.main()
    (found,) = json.loads((tmp_path / "worlds/books_grown.json").read_text())
    assert list(found) == ["forget25, target", "forget25, at_once", "forget50, target", "forget50, at_once",
                           "forget50, request_1of2", "forget50, request_2of2"]
    books = tmp_path / "worlds/books/seed1"
    parents = [json.loads((books / run / "run.json").read_text())["parent_sha256"]
               for run in ("forget25/at_once", "forget50/at_once", "forget50/request_1of2", "forget50/request_2of2")]
    one = json.loads((books / "forget50/request_1of2/run.json").read_text())["model_sha256"]
    assert parents[0] == parents[1] == parents[2] and parents[3] == one
    assert json.loads((books / "forget50/report.json").read_text())["data"]["forget"] == "forget50"


def test_worlds_refuses_a_model_without_capitals(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["worlds", "--scenario=capitals", f"--out={tmp_path}"])
    with pytest.raises(ValueError, match="--run goes with --scenario=capitals"):
        worlds.main()
