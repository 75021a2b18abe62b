"""More kinds of bad input, each answered by one line and exit code 2 before any work: see also test_scripts.py."""

import json
import os
import shutil

import pytest

import asu
import data
import eval
import train
from common import hf
from experiments import ablate, compare, continual, trials
from lab import runs
from lab.optim import Log, read_checkpoint
from tests.conftest import TINY, refused


@pytest.fixture
def untrained(monkeypatch):
    """Whoever trains a step, or starts another script, fails."""
    def trains(*args, **kw):
        raise AssertionError("this trains")
    monkeypatch.setattr(Log, "begin", trains)
    monkeypatch.setattr(trials, "run_script", trains)


@pytest.mark.parametrize("flag, message", [
    ("--epochs=1_0", "1_0 is not a whole number"), ("--lr=1_0", "1_0 is not a number above 0"),
    ("--epochs= 3", " 3 is not a whole number"), ("--epochs=3 ", "3  is not a whole number"),
    ("--lr=infinity", "infinity is not"), ("--lr=0x1", "0x1 is not"), ("--lr=1e", "1e is not"), ("--lr=.", ". is not"),
    ("--seed=1e3", "1e3 is not a whole number"), ("--forget=FORGET10", "is not a split")])
def test_numbers_are_plain_digits(tmp_path, capsys, untrained, flag, message):
    assert " ".join(message.split()) in refused(capsys, train, TINY, f"--out={tmp_path}", flag)


def test_numbers_that_are_plain_digits_are_taken():
    for text, value in (("1e-3", 1e-3), ("1E+1", 10.0), ("+2", 2.0), (".5", 0.5), ("5.", 5.0)):
        assert train.parse([f"--lr={text}"]).lr == value
    assert train.parse(["--epochs=+3"]).epochs == 3 and train.parse(["--weight_decay=0"]).weight_decay == 0


# ------------------------------------------------------------------------------------- what has a file's name
def directory(path):
    path.mkdir()


def loop(path):
    path.symlink_to(path.name)


def nowhere(path):
    path.symlink_to(path.with_name("gone"))


@pytest.mark.parametrize("make", [os.mkfifo, directory, loop, nowhere])
@pytest.mark.parametrize("file", [name for name in hf.AROUND if name != hf.INDEX] + ["model.safetensors"])
def test_what_has_a_models_files_name_and_is_none(out, tmp_path, file, make):
    """A pipe would never end."""
    run = shutil.copytree(out / "target", tmp_path / "run")
    (run / file).unlink(missing_ok=True)
    make(run / file)
    with pytest.raises(ValueError, match=f"run/{file} is not a file, but a directory, a pipe or a link to nothing"):
        runs.load_run(run)


@pytest.mark.parametrize("make", [os.mkfifo, directory, loop])
@pytest.mark.parametrize("file", ["forget10.json", "holdout.json", "world_facts_perturbed.json"])
def test_what_has_a_data_files_name_and_is_none(out, tmp_path, file, make):
    folder = shutil.copytree(out / "data/authors_20_seed0", tmp_path / "data")
    (folder / file).unlink()
    make(folder / file)
    with pytest.raises(ValueError, match=f"data/{file} is not a file"):
        data.load(str(folder))
    other = shutil.copytree(out / "data", tmp_path / "out/data")
    (other / "authors_20_seed0" / file).unlink()
    make(other / "authors_20_seed0" / file)
    with pytest.raises(ValueError, match=f"authors_20_seed0/{file} is not a file"):
        data.load(out=tmp_path / "out", n_authors=20)


@pytest.mark.parametrize("name", ["report.json", "report.md", "curves.png", "tradeoff.png", "tau.png"])
def test_a_report_that_cannot_be_written_is_refused_before_the_first_model(out, tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr(eval, "measure", pytest.fail)
    place = shutil.copytree(out, tmp_path / "out")
    (place / name).unlink()
    (place / name).mkdir()
    assert f"{place / name} is not a file" in refused(capsys, eval, TINY, f"--out={place}")


def test_a_checkpoint_that_is_a_pipe_or_a_directory(tmp_path):
    for make in (os.mkfifo, directory):
        make(tmp_path / make.__name__)
        with pytest.raises(ValueError, match=f"{make.__name__} is not a file"):
            read_checkpoint(tmp_path / make.__name__, {})


@pytest.mark.parametrize("make", [os.mkfifo, nowhere, loop, lambda path: path.write_text("mine")])
def test_what_is_no_directory_where_a_run_would_be_stays(out, tmp_path, capsys, untrained, make):
    make(tmp_path / "new")
    error = refused(capsys, asu, TINY, f"--out={tmp_path}", f"--run={out / 'target'}", "--name=new", "--overwrite")
    assert f"{tmp_path / 'new'} is a file or a link to nothing" in error and os.path.lexists(tmp_path / "new")


# --------------------------------------------------------------------------------------------------- rows
ROW = {"question": "Who?", "answer": "Ada.", "perturbed_answer": ["Eve."]}


@pytest.mark.parametrize("line, message", [
    (json.dumps(ROW | {"answer": "\ud800x"}), "not valid JSON .*surrogates"),
    (json.dumps(ROW | {"note": ["x\udc00"]}), "not valid JSON .*surrogates"),
    (json.dumps(ROW)[:-1] + ', "x": ' + "9" * 5000 + "}", "not valid JSON"),
    ("[" * 100000, "not valid JSON"),
    (json.dumps(ROW | {"choices": ["a", "b"], "answer": True}), "key answer is neither one of the choices nor"),
    (json.dumps(ROW | {"choices": ["a", "b"], "answer": 1.0}), "key answer is neither one of the choices"),
    ("NaN", "a JSON object is needed, this is float"), ('"x"', "a JSON object is needed, this is str")])
def test_a_line_that_is_no_row_is_refused_with_file_and_line(tmp_path, line, message):
    (tmp_path / "forget10.json").write_text(json.dumps(ROW) + "\n" + line + "\n")
    (tmp_path / "retain90.json").write_text(json.dumps(ROW | {"question": "Where?"}) + "\n")
    with pytest.raises(ValueError, match=f"forget10.json, line 2: .*{message}"):
        data.load(str(tmp_path))


def test_letters_beyond_the_first_plane_may_be_written_as_pairs(tmp_path):
    for name in ("forget10", "retain90"):
        (tmp_path / f"{name}.json").write_text(json.dumps(ROW | {"question": f"{name} \U0001f642?"}) + "\n")
    assert "\\ud83d\\ude42" in (tmp_path / "forget10.json").read_text()
    assert data.load(str(tmp_path)).forget[0]["question"] == "forget10 \U0001f642?"


# -------------------------------------------------------------------------------------------- experiments
@pytest.mark.parametrize("script", [compare, ablate])
def test_a_split_that_is_none_is_refused_before_anything_is_trained(tmp_path, capsys, untrained, script):
    for forget in ("nope", "forget00", "forget100"):
        assert f"--forget={forget} is not a split" in refused(capsys, script, f"--out={tmp_path}", f"--forget={forget}")


@pytest.mark.parametrize("flag", ["--data=books", "--dtype=bfloat16", "--device=cpu"])
def test_an_ablation_without_a_run_refuses_the_flags_that_are_about_the_run(tmp_path, capsys, untrained, flag):
    assert flag.split("=")[0] in refused(capsys, ablate, f"--out={tmp_path}", flag)


@pytest.mark.parametrize("content, message", [
    ("x", "is not valid JSON"), ("[]", "a JSON object is needed"), ("{}", "has no settings that were chosen"),
    ('{"chosen": []}', "has no settings that were chosen"), ('{"chosen": {"a": 3}}', "has no settings that were")])
def test_settings_that_are_no_report_of_a_comparison(out, tmp_path, capsys, monkeypatch, content, message):
    monkeypatch.setattr(continual, "run_script", pytest.fail)
    (tmp_path / "chosen.json").write_text(content)
    error = refused(capsys, continual, f"--out={out}", "--n_authors=20", "--forget=forget10",
                    f"--settings={tmp_path / 'chosen.json'}")
    assert message in error and "chosen.json" in error


@pytest.mark.parametrize("script", [asu, eval])
def test_a_model_that_is_not_there_at_all(out, tmp_path, capsys, script):
    """A hub id without network, a file, a directory of something else."""
    for place in ("/etc/passwd", str(out / "data")):
        flags = [f"--run={place}", "--name=new"] if script is asu else [f"--runs={place}"]
        error = refused(capsys, script, TINY, f"--out={tmp_path}", *flags)
        assert place in error
