"""The scripts as a user runs them: a smoke run of all four, interruption and resume, and bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers

import asu
import data
import eval
import sample
import train
from common import cli, files
from lab import runs
from lab.answers import ask
from tests.conftest import HOME, TINY, command, small_model


def weights(path):
    return (Path(path) / "model.safetensors").read_bytes()


def call(monkeypatch, script, *flags):
    """script.main() with flags, in this process; exit codes and messages as on the command line."""
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *flags])
    cli.run(script.main)


def refused(monkeypatch, capsys, script, *flags):
    """-> the one line a mistake is answered with."""
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, script, *flags)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "Traceback" not in error, error
    return error


# -------------------------------------------------------------------------------------------- the main job
def test_the_main_job_leaves_what_the_readme_says(out):
    for name in ("base", "target", "retrained", "asu_gd"):
        record = json.loads((out / name / "run.json").read_text())
        assert record["kind"] == ("unlearned" if name == "asu_gd" else name)
        assert record["seconds"] > 0 and record["tokens"] > 0 and record["peak_mb"] > 50 and record["curve"]
        assert record["settings"]["seed"] == 0 and record["versions"]["torch"] == torch.__version__
        assert record["model_sha256"] == files.sha256(out / name / "model.safetensors")
    target, unlearned = (runs.read_run(out / name) for name in ("target", "asu_gd"))
    assert unlearned["parent_sha256"] == target["model_sha256"] and unlearned["data_sha256"] == target["data_sha256"]
    assert {"forget_loss", "retain_loss", "forget_fact_accuracy", "retain_fact_accuracy", "seconds"} <= unlearned["curve"][0].keys()
    assert len(unlearned["curve"]) == unlearned["settings"]["epochs"]
    assert weights(out / "asu_gd") != weights(out / "target") != weights(out / "retrained")
    assert not list(out.glob("*.pt")) and not list(out.glob(".*"))


def test_the_report_holds_every_run_and_key(out):
    report = json.loads((out / "report.json").read_text())
    assert list(report["runs"]) == ["base", "target", "retrained", "teacher_tau1000", "asu_gd"]
    keys = {"probability", "rouge_l", "truth_ratio", "fact_accuracy", "fact_accuracy_heldout_phrasing", "fact_nll",
            "function_nll", "token_entropy", "coherence", "exact_memorization", "extraction_strength"}
    for name, result in report["runs"].items():
        assert {"forget", "retain", "world", "aggregate", "cost"} == result.keys()
        for part in ("forget", "retain", "world"):
            assert keys <= result[part].keys() and None not in [result[part][k] for k in keys]
            low, high = result[part]["ci95"]["probability"]
            assert low <= result[part]["probability"] <= high
        aggregate = {"model_utility_lite", "forget_efficacy_lite", "forget_quality_d", "forget_quality_n",
                     "forget_quality_p", "gap_to_retrain"}
        assert aggregate <= result["aggregate"].keys()
        assert (result["aggregate"]["gap_to_retrain"] is None) == (name == "retrained")
        assert {"seconds", "peak_mb", "tokens"} == result["cost"].keys()
    for figure in ("tradeoff.png", "curves.png", "tau.png"):
        assert (out / figure).read_bytes().startswith(b"\x89PNG")
    text = (out / "report.md").read_text()
    printed = (out.parent / "eval.py.txt").read_text()
    assert all(f"| {name}" in text and f"| {name}" in printed for name in report["runs"])
    forgotten = data.load(out=out, n_authors=20).forget[0]
    assert forgotten["question"] in printed and forgotten["answer"] in printed


def test_the_report_is_the_same_after_loading_again(out, monkeypatch, capsys):
    """Evaluated anew, from the files, every number is the same to the last digit."""
    before = (out / "report.json").read_bytes()
    call(monkeypatch, eval, TINY, f"--out={out}")
    assert (out / "report.json").read_bytes() == before


def test_a_model_in_memory_scores_as_the_saved_one(tmp_path, tokenizer, authors):
    model, rows = small_model(), authors[0][:30]
    runs.save_run(tmp_path / "run", model, tokenizer, {})
    again, tokens, record = runs.load_run(tmp_path / "run")
    both = [eval.evaluate(m, t, "forget", rows, data.slot_values(rows))[0] for m, t in ((model, tokenizer), (again, tokens))]
    assert both[0] == both[1] and record["tokenizer_sha256"]


def test_transformers_opens_the_target(out):
    ours, tokenizer, _ = runs.load_run(out / "target")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out / "target").eval()
    their_tokens = transformers.AutoTokenizer.from_pretrained(out / "target")
    for row in data.load(out=out, n_authors=20).forget[:5]:
        text = row["question"] + "\n " + row["answer"]
        assert tokenizer.encode(text) == their_tokens.encode(text)
        ids = torch.tensor([tokenizer.encode(text)])
        with torch.no_grad():
            assert torch.allclose(ours(ids), theirs(ids).logits, atol=1e-4)
    assert their_tokens.eos_token_id == tokenizer.eos_id


def test_the_same_commands_give_the_same_weights(out, tmp_path, monkeypatch):
    call(monkeypatch, train, TINY, f"--out={tmp_path}")
    call(monkeypatch, asu, TINY, f"--out={tmp_path}")
    for name in ("base", "target", "retrained", "asu_gd"):
        assert weights(tmp_path / name) == weights(out / name), name
    call(monkeypatch, asu, TINY, f"--out={tmp_path}", "--seed=1", "--name=other")
    assert weights(tmp_path / "other") != weights(out / "asu_gd")


def test_micro_batches_are_one_batch_in_training(tmp_path, monkeypatch):
    curves = []
    for parts in (1, 3):
        call(monkeypatch, train, TINY, f"--out={tmp_path / str(parts)}", f"--micro_batches={parts}", "--base_rows=192")
        curves.append([point["loss"] for point in runs.read_run(tmp_path / str(parts) / "base")["curve"]])
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)


def test_tau_one_writes_the_target_unchanged(out, monkeypatch):
    call(monkeypatch, asu, TINY, f"--out={out}", "--tau=1", "--name=unsmoothed")
    a, b = (runs.load_run(out / name)[0].state_dict() for name in ("target", "unsmoothed"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    shutil.rmtree(out / "unsmoothed")


def test_another_method_on_the_same_loop_stands_in_the_report(out, tmp_path, monkeypatch):
    shutil.copytree(out, tmp_path / "out")
    call(monkeypatch, asu, TINY, f"--out={tmp_path / 'out'}", "--method=idk", "--retain=ap", "--epochs=1")
    call(monkeypatch, eval, TINY, f"--out={tmp_path / 'out'}")
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert list(report["runs"])[-1] == "idk_ap" and len([name for name in report["runs"] if name.startswith("teacher")]) == 1


@pytest.mark.parametrize("teacher_from", ["latest", "original"])
def test_requests_that_come_one_after_another(out, tmp_path, monkeypatch, teacher_from):
    """Each request is a run of its own whose parent is the one before; --resume keeps the finished ones."""
    shutil.copytree(out / "target", tmp_path / "target")
    flags = (TINY, f"--out={tmp_path}", "--forget=forget20", "--tasks=2", f"--teacher_from={teacher_from}")
    call(monkeypatch, asu, *flags)
    first, second = (runs.read_run(tmp_path / f"asu_gd_{k}of2") for k in (1, 2))
    assert second["parent_sha256"] == first["model_sha256"] and len(second["fact_accuracy_by_request"]) == 2
    shutil.rmtree(tmp_path / "asu_gd_2of2")
    call(monkeypatch, asu, *flags, "--resume")
    assert runs.read_run(tmp_path / "asu_gd_2of2")["model_sha256"] == second["model_sha256"]


def test_every_request_has_its_row(out, tmp_path, monkeypatch):
    """The parent of the second request is the first, whose parent is the target."""
    shutil.copytree(out, tmp_path / "out")
    call(monkeypatch, asu, TINY, f"--out={tmp_path / 'out'}", "--tasks=2")
    call(monkeypatch, eval, TINY, f"--out={tmp_path / 'out'}")
    assert {"asu_gd_1of2", "asu_gd_2of2"} < json.loads((tmp_path / "out/report.json").read_text())["runs"].keys()


def test_the_teacher_of_a_later_request_is_the_original_if_asked(out, tmp_path, monkeypatch):
    shutil.copytree(out / "target", tmp_path / "target")
    for teacher_from in ("latest", "original"):
        call(monkeypatch, asu, TINY, f"--out={tmp_path}", "--forget=forget20", "--tasks=2", f"--teacher_from={teacher_from}",
             f"--name={teacher_from}")
    same, other = (weights(tmp_path / f"latest_{k}of2") == weights(tmp_path / f"original_{k}of2") for k in (1, 2))
    assert same and not other


def test_fine_tuning_a_model_directory(out, tmp_path, monkeypatch):
    call(monkeypatch, train, TINY, f"--out={tmp_path}", f"--init_from={out / 'base'}", "--replay=0")
    assert not (tmp_path / "base").exists()
    assert runs.read_run(tmp_path / "target")["parent_sha256"] == runs.read_run(out / "base")["model_sha256"]


def test_sample_answers_alone_and_side_by_side(out, monkeypatch, capsys):
    question = data.load(out=out, n_authors=20).forget[0]["question"]
    call(monkeypatch, sample, f"--out={out}", f"--question={question}", "--tau=4", f"--compare={out / 'asu_gd'}")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].startswith(f"{out / 'target'} at tau=4 ") and lines[1].startswith(str(out / "asu_gd"))
    model, tokenizer, _ = runs.load_run(out / "target")
    assert lines[0].split("at tau=4")[1].strip() == (ask(model, tokenizer, [question], tau=4.0)[0] or "(nothing)")
    done = subprocess.run([sys.executable, HOME / "sample.py", f"--out={out}"], input=f"{question}\n{question}\n\n",
                          capture_output=True, text=True)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 2


# ------------------------------------------------------------------------------------- interruption, resume
def test_a_killed_training_resumes_bit_for_bit(out, tmp_path):
    """kill -9 as soon as the target has left a checkpoint; --resume ends in the weights of the run that was never killed."""
    process = subprocess.Popen(command("train.py", f"--out={tmp_path}"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "target.resume.pt").exists():
        assert process.poll() is None, "finished before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "target").exists()
    done = subprocess.run(command("train.py", f"--out={tmp_path}", "--resume"), capture_output=True, text=True)
    assert done.returncode == 0 and "base: finished already" in done.stdout and "target: going on from step" in done.stdout
    for name in ("base", "target", "retrained"):
        assert weights(tmp_path / name) == weights(out / name), name
    assert runs.read_run(tmp_path / "target")["curve"][-1]["loss"] == runs.read_run(out / "target")["curve"][-1]["loss"]


def test_an_interrupted_unlearning_resumes_bit_for_bit(out, tmp_path, monkeypatch):
    shutil.copytree(out / "target", tmp_path / "target")
    with monkeypatch.context() as patch:
        patch.setattr(asu, "save_run", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(SystemExit) as stop:
            call(patch, asu, TINY, f"--out={tmp_path}")
    assert stop.value.code == 130 and (tmp_path / "asu_gd.resume.pt").exists() and not (tmp_path / "asu_gd").exists()
    call(monkeypatch, asu, TINY, f"--out={tmp_path}", "--resume")
    assert weights(tmp_path / "asu_gd") == weights(out / "asu_gd") and not (tmp_path / "asu_gd.resume.pt").exists()


def test_resume_refuses_other_settings_and_damaged_checkpoints(out, tmp_path, monkeypatch, capsys):
    shutil.copytree(out / "target", tmp_path / "target")
    with monkeypatch.context() as patch:
        patch.setattr(asu, "save_run", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(SystemExit):
            call(patch, asu, TINY, f"--out={tmp_path}")
    capsys.readouterr()
    assert "tau was 1000.0, is 3.0" in refused(monkeypatch, capsys, asu, TINY, f"--out={tmp_path}", "--resume", "--tau=3")
    file = tmp_path / "asu_gd.resume.pt"
    file.write_bytes(file.read_bytes()[:1000])
    assert "asu_gd.resume.pt is damaged" in refused(monkeypatch, capsys, asu, TINY, f"--out={tmp_path}", "--resume")


# ------------------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize("script, flag, message", [
    (asu, "--tua=3", "unknown flag --tua=3; did you mean --tau?"), (asu, "--tau=0", "0 is not a number above 0"),
    (asu, "--tau=nan", "nan is not"), (asu, "--tau=x", "x is not"), (asu, "--layers=9", "layers 0 to 1"),
    (asu, "--layers=a", "not a list of layers"), (asu, "--layers=3-1", "empty"), (asu, "--epochs=0", "whole number of at least 1"),
    (asu, "--retain=gdx", "invalid choice"), (asu, "--method=ASU", "invalid choice"), (asu, "--retain=ap", "belongs to method idk"),
    (asu, "--beta=1", "asu has no beta"), (asu, "--name=.", "a plain name is needed"), (asu, "--name=../x", "a plain name is needed"),
    (asu, "--name=target", "none of base, target"), (eval, "--runs=asu_gd,./asu_gd", "two runs of one name"), (asu, "--tasks=3", "3 requests, but only 2 authors"), (asu, "--run=", "not a model directory"), (asu, "--device=tpu9", "--device=tpu9"),
    (asu, "--data_seed=7", "trained on other data"), (asu, "--forget=all", "not a split"), (asu, "@config/nix.args", "no preset file"),
    (train, "--epochs=2.5", "whole number"), (train, "--replay=-1", "at least 0"), (train, "--n_head=3", "does not divide into 3 heads"),
    (train, "--block_size=8", "do not fit the model's context of 8"), (train, "--vocab_size=100", "at least 257"),
    (train, "--data=nowhere", "is neither authors, books, hazards, tofu, muse-books, muse-news, wmdp-bio, wmdp-cyber nor a directory"), (eval, "--runs=nix", "no run nix"),
    (eval, "--forget=forget20", "not forget20"), (sample, "--question=", "--question is empty"),
    (sample, "--question=" + "why " * 200, "model's context of 128")])
def test_bad_flags_get_one_line(out, monkeypatch, capsys, script, flag, message):
    flags = [TINY, f"--out={out}"] if script is not train else [TINY, f"--out={out.parent / 'bad'}"]
    before = {p: p.read_bytes() for p in out.rglob("*.safetensors")}
    assert message in refused(monkeypatch, capsys, script, *flags, flag)
    assert {p: p.read_bytes() for p in out.rglob("*.safetensors")} == before


@pytest.mark.parametrize("script", [asu, eval, sample])
def test_missing_runs_say_what_to_run_first(tmp_path, monkeypatch, capsys, script):
    flags = ["--question=Who?"] if script is sample else [TINY]
    assert "run python train.py first" in refused(monkeypatch, capsys, script, *flags, f"--out={tmp_path}")


def damaged(out, tmp_path):
    shutil.copytree(out, tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize("file, change, message", [
    ("target/model.safetensors", lambda b: b[:-50], "target/model.safetensors is truncated"),
    ("target/config.json", lambda b: b[:50], "config.json is not valid JSON"),
    ("target/run.json", lambda b: b[:50], "run.json is not valid JSON"),
    ("target/tokenizer.json", lambda b: b[:50], "damaged"),
    ("target/tokenizer.json", lambda b: b.replace(b'"eos"', b'"eos" '), "not the one this model was trained with"),
    ("target/config.json", lambda b: b.replace(b'"vocab_size": 512', b'"vocab_size": 300'), "config.json asks for (300, 32)"),
    ("data/authors_20_seed0/forget10.json", lambda b: b[:-9], "not what the generator makes")])
def test_damaged_files_are_named(out, tmp_path, monkeypatch, capsys, file, change, message):
    out = damaged(out, tmp_path)
    content = (out / file).read_bytes()
    (out / file).write_bytes(change(content) if change(content) != content else content + b" ")
    for script in (asu, eval):
        assert message in refused(monkeypatch, capsys, script, TINY, f"--out={out}")
    assert weights(out / "asu_gd") and (out / "report.json").exists()


def test_a_tokenizer_larger_than_the_model_is_refused(out, tmp_path, tokenizer):
    runs.save_run(tmp_path / "run", small_model(vocab_size=590), tokenizer, {})
    with pytest.raises(ValueError, match="tokenizer has 600 tokens, the model 590"):
        runs.load_run(tmp_path / "run")


def test_a_broken_line_in_a_data_directory(out, tmp_path, monkeypatch, capsys):
    directory = shutil.copytree(out / "data/authors_20_seed0", tmp_path / "data")
    file = directory / "retain90.json"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:6], lines[6][:40], *lines[7:]]))
    for script in (train, asu, eval):
        error = refused(monkeypatch, capsys, script, TINY, f"--out={out}", f"--data={directory}")
        assert f"{file}, line 7: not valid JSON" in error


def test_a_run_of_another_target_is_left_out_and_said_so(out, tmp_path, monkeypatch, capsys):
    out = damaged(out, tmp_path)
    file = out / "asu_gd/run.json"
    file.write_text(file.read_text().replace(runs.read_run(out / "target")["model_sha256"], "0" * 64))
    call(monkeypatch, eval, TINY, f"--out={out}")
    assert "left out: asu_gd was unlearned from another model" in capsys.readouterr().out
    assert "asu_gd" not in json.loads((out / "report.json").read_text())["runs"]


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/version").exists(), reason="root may write anywhere here")
def test_an_unwritable_output_directory(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    for place in ("/proc/asu", tmp_path / "file"):
        assert f"cannot write to --out={place}" in refused(monkeypatch, capsys, train, TINY, f"--out={place}")


def test_a_full_disk_leaves_the_old_files(out, tmp_path, monkeypatch, capsys):
    out = damaged(out, tmp_path)
    before = weights(out / "asu_gd")

    def full(*args, **kw):
        raise OSError(28, "No space left on device", str(out / "asu_gd"))
    monkeypatch.setattr("model.save_file", full)
    assert "No space left on device" in refused(monkeypatch, capsys, asu, TINY, f"--out={out}")
    assert weights(out / "asu_gd") == before and not [p for p in out.iterdir() if p.name.startswith(".")]


def test_files_and_directories_appear_whole_or_not_at_all(tmp_path):
    files.write_file(tmp_path / "file", "old")
    with pytest.raises(TypeError):
        files.write_file(tmp_path / "file", 3)
    with files.whole_dir(tmp_path / "dir") as d:
        (d / "a").write_text("first")
    with pytest.raises(RuntimeError), files.whole_dir(tmp_path / "dir") as d:
        (d / "a").write_text("second")
        raise RuntimeError
    assert (tmp_path / "file").read_text() == "old" and (tmp_path / "dir/a").read_text() == "first"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dir", "file"]


def test_a_directory_survives_an_interruption_between_its_two_renames(tmp_path, monkeypatch):
    with files.whole_dir(tmp_path / "dir") as d:
        (d / "a").write_text("first")
    rename = Path.rename

    def interrupted(path, to):
        if path.name.endswith(".tmp"):
            raise KeyboardInterrupt
        return rename(path, to)
    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), files.whole_dir(tmp_path / "dir") as d:
        (d / "a").write_text("second")
    assert (tmp_path / "dir/a").read_text() == "first" and len(list(tmp_path.iterdir())) == 1


def test_a_preset_that_is_not_text(tmp_path, monkeypatch, capsys):
    (tmp_path / "x").write_bytes(b"\xff\x00")
    assert "it is not text" in refused(monkeypatch, capsys, asu, f"@{tmp_path / 'x'}")


def test_presets(tmp_path):
    preset = tmp_path / "p.args"
    preset.write_text("# why\n--seed=3\nasu.py --tau=2  # for one script\n\n")
    assert cli.expand_preset(f"@{preset}", "asu.py") == ["--seed=3", "--tau=2"]
    assert cli.expand_preset(f"@{preset}", "eval.py") == ["--seed=3"]


def test_learning_rate_warms_up_and_falls_to_nearly_nothing():
    rates = [runs.lr_at(step, 100, 1.0, 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[10] == 1 and max(rates) == 1 and rates[-1] < 0.001
    assert rates[55] == pytest.approx(0.5) and rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)


# ------------------------------------------------------------------------------------------- other worlds
def test_hazards_from_prose_to_report(tmp_path, monkeypatch, capsys):
    """Passages learnt, the hidden form of ASU, and RMU on the same loop; options and VerbMem in the report."""
    flags = [TINY, "--data=hazards", "--forget=forget50", "--n_authors=4", f"--out={tmp_path}"]
    call(monkeypatch, train, *flags, "--block_size=256")
    call(monkeypatch, asu, *flags, "--target=hidden", "--hidden_layer=1", "--retain=hidden", "--tau=4")
    call(monkeypatch, asu, *flags, "--method=rmu", "--retain=hidden", "--tau=4", "--hidden_layer=1")
    assert "--method=rmu --retain=hidden does not use --tau, --heads, --alpha\n" in capsys.readouterr().out
    call(monkeypatch, eval, *flags, "--max_rows=4")
    runs = json.loads((tmp_path / "report.json").read_text())["runs"]
    assert set(runs) == {"base", "target", "retrained", "teacher_tau4", "asu_hidden_hidden", "rmu_hidden"}
    for result in runs.values():
        assert all(0 <= result[part]["choice_accuracy"] <= 1 for part in ("forget", "retain"))
        assert 0 <= result["forget_text"]["verbmem"] <= 1 and result["forget_text"]["mia_min_k"] is not None
    assert "choices" in (tmp_path / "report.md").read_text()
    assert "form of ASU, not of --method=npo" in refused(monkeypatch, capsys, asu, *flags, "--method=npo", "--target=hidden")
    assert "hidden_layer=9: the model has 2 layers" in refused(monkeypatch, capsys, asu, *flags, "--target=hidden", "--hidden_layer=9")
    assert "do not fit the model's context of 64" in refused(monkeypatch, capsys, train, *flags, "--block_size=64")


def test_heads_are_chosen_by_the_phrasings_that_were_taught(out, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(asu, "smoothing", lambda model, tokenizer, forget, *_: seen.extend(forget) or (4.0, None))
    call(monkeypatch, asu, TINY, f"--run={out / 'target'}", f"--out={tmp_path}", "--phrasings=2", "--epochs=1")
    assert len(seen) == 40 and all(len(row["questions"]) == len(row["answers"]) == 2 for row in seen)
