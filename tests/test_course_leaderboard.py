"""The leaderboard of problem 8: its numbers, its seconds, and a run of all of it on tiny models."""

import time

import numpy as np
import pytest
import torch

import eval
from course import leaderboard
from course.leaderboard import HOUSE, found, kept, markdown, numbers, unlearned
from lab import recover
from lab.runs import read_run
from tests.conftest import HOME, call, flat, small_model


def left(gap, relearnt, n=6):
    """What a method left on a draw: every metric at `gap`, so many facts stated after relearning."""
    attacks = {"asked": np.zeros(n), "relearnt": np.array([1.0] * relearnt + [0.0] * (n - relearnt))}
    values = {part: {m: np.full(n, gap) for m in eval.GAP_METRICS} for part in ("forget", "retain")}
    return values | {"attacks": attacks}


def test_the_columns_by_hand():
    golds = [left(0.0, 1), left(0.0, 1)]
    columns, attack = numbers([left(0.3, 3), left(0.1, 6)], golds)
    assert columns["gap"] == (pytest.approx(0.2), pytest.approx([0.2, 0.2])) and attack == "relearnt"
    assert columns["worst"][0] == pytest.approx((2 + 5) / 12) and columns["coherence"][0] == pytest.approx(0.2)
    low, high = columns["worst"][1]
    assert low < columns["worst"][0] < high
    assert numbers(golds, golds)[0]["worst"][0] == 0 and numbers(golds, golds)[0]["gap"][0] == 0


def test_the_best_comes_first_and_who_failed_is_named():
    board = {name: (*numbers([left(gap, n)], [left(0.0, 0)]), 7.0) for name, gap, n in
             (("broken", 0.9, 0), ("covered", 0.1, 6), ("good", 0.2, 1))}
    text = markdown(board, {"bob": "course/method.py is missing"}, "One draw.")
    assert [line.split("|")[1].strip() for line in text.splitlines()[2:5]] == ["good", "broken", "covered"]
    assert "bob: course/method.py is missing" in text and "One draw." in text


def test_training_stops_when_the_seconds_are_over(examples):
    target = small_model()
    start = time.process_time()
    model, record = unlearned(target, examples[:8], examples[8:], lambda nll, mask: -nll.sum() * 0,
                              {"epochs": 100000, "batch_size": 4}, seconds=1)
    assert 0.9 < record["cpu_seconds"] <= time.process_time() - start < 20
    assert not torch.equal(flat(model), flat(small_model()))            # the retain term has moved the copy
    assert torch.equal(flat(target), flat(small_model())) and not model.training


def test_attacks_on_a_model_that_says_everything(model, tokenizer, authors, monkeypatch):
    rows = authors[0][:10]
    answers = {row["question"]: row["answer"] for row in rows}
    monkeypatch.setattr(recover, "ask", lambda model, tokenizer, questions, *args, temperature=0.0, **kw: [
        "" if temperature else answers[q] for q in questions])
    shares = leaderboard.attacked(model, tokenizer, rows, phrasings=1, samples=2, steps=1)
    assert {name: share.mean() for name, share in shares.items()} == {"asked": 1, "relearnt": 1, "sampled": 0,
                                                                       "quantised": 1}
    assert all(share.shape == (10,) for share in shares.values())


def test_what_was_measured_is_not_measured_again(tmp_path):
    first = kept(tmp_path / "x.json", lambda: left(0.3, 2))
    again = kept(tmp_path / "x.json", lambda: 1 / 0)
    assert first.keys() == again.keys()
    assert np.array_equal(again["attacks"]["relearnt"], left(0.3, 2)["attacks"]["relearnt"])


def test_submissions_without_a_method_are_named(tmp_path):
    for name, text in (("ann", "x = 1\n"), ("eve", "def loss(:\n")):
        (tmp_path / name / "course").mkdir(parents=True)
        (tmp_path / name / "course/method.py").write_text(text)
    (tmp_path / "bob").mkdir()
    (tmp_path / "eva/course/method.py").mkdir(parents=True)
    (tmp_path / "ida/course").mkdir(parents=True)
    (tmp_path / "ida/course/method.py").symlink_to(tmp_path / "ann/course/method.py")
    methods, failed = found(tmp_path)
    assert failed["eva"] == failed["bob"] and "a link to a file outside" in failed["ida"]
    assert list(methods) == ["ann"] and "line 1" in failed["eve"] and failed["bob"] == "course/method.py is missing"
    with pytest.raises(ValueError, match="not a folder of submissions"):
        found(tmp_path / "none")


@pytest.mark.slow
def test_a_board_of_house_rows_and_submissions_on_tiny_models(tmp_path, capsys):
    for name, extra in (("ann", ""), ("eve", "\n\nopen('/tmp/x', 'w')\n")):
        (tmp_path / "subs" / name / "course").mkdir(parents=True)
        (tmp_path / "subs" / name / "course/method.py").write_text((HOME / "course/method.py").read_text() + extra)
    flags = [tmp_path / "subs", "--seed=s", f"--out={tmp_path / 'out'}", "--draws=1", "--seconds=2", "--max_rows=5",
             "--train_flags=@config/tiny.args --n_authors=10 --base_rows=96"]
    with pytest.raises(SystemExit) as stop:
        call(leaderboard, *flags)
    text = (tmp_path / "out/leaderboard.md").read_text()
    assert stop.value.code == 2 and "\neve: it wrote a file" in text
    rows = {cells[1].strip(): cells for cells in (line.split("|") for line in text.splitlines()[2:5])}
    assert rows.keys() == {*HOUSE, "ann"}
    assert all("[" in cells[2] and float(cells[6]) < 15 for cells in rows.values())
    [target] = (tmp_path / "out/models").glob("draw*/forget10/target")
    before = (target / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(SystemExit):
        call(leaderboard, *flags)
    assert (tmp_path / "out/leaderboard.md").read_text() == text
    assert (target / "model.safetensors").stat().st_mtime_ns == before
    assert str(read_run(target)["settings"]["data_seed"]) in target.parent.parent.name
