"""eval.py where a run cannot be measured: its row says why, the others are measured, the exit code is 2."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import data
import eval
from common import cli
from lab import report
from lab.runs import load_run, save_run
from tests.conftest import TINY, refused, small_model


@pytest.fixture
def place(out, tmp_path):
    return shutil.copytree(out, tmp_path / "out")


def weights_with(value):
    def change(run):
        weights = load_file(run / "model.safetensors")
        weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], value)
        save_file(weights, run / "model.safetensors", {"format": "pt"})
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({k: v for k, v in record.items() if not k.endswith("sha256")}))
    return change


def cut(file):
    return lambda run: (run / file).write_bytes((run / file).read_bytes()[:60])


def short_context(run):
    """A run of a model that has room for 16 tokens."""
    record, tokenizer = json.loads((run / "run.json").read_text()), load_run(run)[1]
    save_run(run, small_model(vocab_size=tokenizer.vocab_size, block_size=16), tokenizer, record)


DAMAGES = {
    "weights are cut": (cut("model.safetensors"), "asu_gd/model.safetensors is truncated"),
    "weights are gone": (lambda run: (run / "model.safetensors").unlink(), "asu_gd/model.safetensors is missing"),
    "weights are nan": (weights_with(float("nan")), "asu_gd: weight norm.weight holds values that are no numbers"),
    "logits are nan": (weights_with(3e38), "the model's log-probabilities are no numbers"),
    "run.json is cut": (cut("run.json"), "asu_gd/run.json is not valid JSON"),
    "config.json is cut": (cut("config.json"), "asu_gd/config.json is not valid JSON"),
    "another tokenizer": (cut("tokenizer.json"), "asu_gd/tokenizer.json is not valid JSON"),
    "a short context": (short_context, "do not fit the model's context of 16")}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_that_cannot_be_measured_has_a_row_that_says_why_and_the_others_are_measured(place, capsys, damage):
    change, why = DAMAGES[damage]
    change(place / "asu_gd")
    error = refused(capsys, eval, TINY, f"--out={place}", "--runs=base,asu_gd", "--max_rows=2")
    assert "error: 1 of 3 rows are not measured; asu_gd: " in error
    runs = json.loads((place / "report.json").read_text())["runs"]
    assert runs["asu_gd"].keys() == {"not_measured"} and why in runs["asu_gd"]["not_measured"] and why in error
    assert "\n" not in runs["asu_gd"]["not_measured"] and list(runs) == ["base", "asu_gd", "retrained"]
    assert 0 < runs["base"]["aggregate"]["gap_to_retrain"] < 1
    text = (place / "report.md").read_text()
    assert "| asu_gd (not measured)" in text and f"asu_gd was not measured: {runs['asu_gd']['not_measured']}" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["target", "retrained"])
def test_the_others_are_measured_without_target_or_retrained_model(place, capsys, name):
    cut("model.safetensors")(place / name)
    assert f"; {name}: {place / name}/model.safetensors is truncated" in refused(
        capsys, eval, TINY, f"--out={place}", "--max_rows=3")
    runs = json.loads((place / "report.json").read_text())["runs"]
    assert "not_measured" in runs[name] and 0 < runs["asu_gd"]["forget"]["probability"] < 1
    assert (runs["asu_gd"]["aggregate"]["gap_to_retrain"] is None) == (name == "retrained")
    assert ("not_measured" in runs["teacher_tau8"]) == (name == "target")


def test_without_any_run_that_can_be_measured_there_is_no_report(place, capsys):
    for name in ("base", "target", "retrained", "asu_gd"):
        cut("model.safetensors")(place / name)
    before = (place / "report.json").read_bytes()
    error = refused(capsys, eval, TINY, f"--out={place}", "--max_rows=3")
    assert "no run could be measured; base: " in error and (place / "report.json").read_bytes() == before


def test_a_named_run_of_other_data_has_a_row_that_says_so(place, capsys):
    file = place / "asu_gd/run.json"
    file.write_text(file.read_text().replace(json.loads(file.read_text())["data_sha256"], "0" * 64))
    why = "asu_gd was trained on other data than --data, --data_seed and --n_authors give"
    assert why in refused(capsys, eval, TINY, f"--out={place}", "--runs=base,asu_gd", "--max_rows=2")
    runs = json.loads((place / "report.json").read_text())["runs"]
    assert runs["asu_gd"] == {"not_measured": why} and "forget" in runs["base"]


def test_facts_are_found_with_another_run_where_the_target_is_damaged(place, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr("lab.facts.find_in_sets", lambda model, tokenizer, sets, rows: asked.append(model) or sets)
    rows = data.load(out=place, n_authors=20).sets
    without = {part: [row | {"facts": []} for row in rows[part][:2]] for part in rows}
    cut("model.safetensors")(place / "target")
    paths = {name: place / name for name in ("base", "target")}
    assert "with base" in eval.find_by_first(paths, load_run, without, None)[1][0] and len(asked) == 1
    assert eval.find_by_first(paths, load_run, {part: rows[part][:2] for part in rows}, None)[1] == []
    assert "no model could be used" in eval.find_by_first({"target": place / "target"}, load_run, without, None)[1][0]


def test_a_bug_of_ours_stays_a_bug(place, monkeypatch):
    def broken(*args, **kw):
        raise ZeroDivisionError
    monkeypatch.setattr(eval, "measure", broken)
    monkeypatch.setattr("sys.argv", ["eval.py", TINY, f"--out={place}", "--max_rows=3"])
    with pytest.raises(ZeroDivisionError):
        eval.main()


def test_what_is_a_mistake_and_what_is_a_bug():
    assert cli.mistake(ValueError("x")) is None and cli.mistake(eval.UserError("a\n b\x1b[2J")) == "a b\\x1b[2J"
    assert cli.mistake(OSError(28, "No space", "file")) == "No space: file" and len(cli.one_line("x" * 999)) == 300
    for e in (MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate")):
        assert "not enough memory" in cli.mistake(e)


def test_a_row_without_numbers_stands_in_every_table():
    runs = {"a": {"forget": {"x": 0.5}, "aggregate": {}}, "b": {"not_measured": "why"}}
    assert report.table(runs, [("ex", "forget", "x")]).split("\n")[2:] == [
        "| a                | 0.500 |", "| b (not measured) |     - |"]
