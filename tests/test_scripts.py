"""The scripts as a user runs them: a smoke run of all four, what flags do, interruption and resume, bad input."""

import argparse
import contextlib
import io
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
from lab import choose, entries, optim, runs
from lab.answers import answer_nll, ask
from lab.entries import find_runs
from lab.optim import Log, lr_at
from tests.conftest import HOME, TINY, call, command, flat, refused, small_model, weights


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
    keys = {"forget_loss", "retain_loss", "forget_fact_accuracy", "retain_fact_accuracy", "seconds"}
    assert keys <= unlearned["curve"][0].keys()
    assert len(unlearned["curve"]) == unlearned["settings"]["epochs"]
    assert weights(out / "asu_gd") != weights(out / "target") != weights(out / "retrained")
    assert not list(out.glob("*.pt")) and not list(out.glob(".*"))


def test_the_report_holds_every_run_and_key(out):
    report = json.loads((out / "report.json").read_text())
    assert list(report["runs"]) == ["base", "target", "retrained", "teacher_tau8", "asu_gd"]
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
    forgotten = data.subset(data.load(out=out, n_authors=20).forget, 20)[0]
    assert forgotten["question"] in printed and forgotten["answer"] in printed


def test_membership_is_against_all_people_whom_nobody_met(out):
    report, dataset = json.loads((out / "report.json").read_text()), data.load(out=out, n_authors=20)
    model, tokenizer, _ = runs.load_run(out / "target")
    members, others = ([(row["question"], row["answer"]) for row in rows]
                       for rows in (data.subset(dataset.sets["forget"], 20), dataset.holdout))
    expected = eval.membership(*(eval.score(model, tokenizer, pairs) for pairs in (members, others)))
    assert report["data"]["holdout"] == len(others) == 400
    assert {key: report["runs"]["target"]["forget"][key] for key in expected} == pytest.approx(expected)


@pytest.mark.slow
def test_the_report_is_the_same_after_loading_again(out):
    """Evaluated anew, from the files, every number is the same to the last digit."""
    before = (out / "report.json").read_bytes()
    call(eval, TINY, f"--out={out}")
    assert (out / "report.json").read_bytes() == before


def test_a_model_in_memory_scores_as_the_saved_one(tmp_path, tokenizer, authors):
    model, rows = small_model(), authors[0][:30]
    runs.save_run(tmp_path / "run", model, tokenizer, {})
    again, tokens, record = runs.load_run(tmp_path / "run")
    both = [eval.evaluate(m, t, "forget", rows, data.slot_values(rows))[0]
            for m, t in ((model, tokenizer), (again, tokens))]
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


def test_the_same_command_gives_the_same_weights_and_another_seed_others(out, tmp_path):
    """train.py: see the killed training below, which ends in the fixture's weights from processes of its own."""
    flags = [TINY, f"--run={out / 'target'}", f"--out={tmp_path}"]
    call(asu, *flags)
    assert weights(tmp_path / "asu_gd") == weights(out / "asu_gd")
    call(asu, *flags, "--seed=1", "--name=other")
    assert weights(tmp_path / "other") != weights(out / "asu_gd")


def test_tau_one_writes_the_target_unchanged(out, tmp_path):
    call(asu, TINY, f"--run={out / 'target'}", f"--out={tmp_path}", "--tau=1", "--name=unsmoothed")
    a, b = (runs.load_run(path)[0].state_dict() for path in (out / "target", tmp_path / "unsmoothed"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    record = runs.read_run(tmp_path / "unsmoothed")
    assert record["steps"] == 0 and record["curve"] == [] and record["peak_mb"] > 50


@pytest.fixture(scope="module")
def requests(out, tmp_path_factory):
    """The last four authors forgotten in two requests, with either teacher of the second -> OUT of these runs"""
    place = tmp_path_factory.mktemp("requests")
    for teacher_from in ("latest", "original"):
        call(asu, TINY, f"--run={out / 'target'}", f"--out={place}", "--forget=forget20", "--tasks=2", "--epochs=1",
             f"--teacher_from={teacher_from}", f"--name={teacher_from}")
    return place


@pytest.mark.parametrize("teacher_from", ["latest", "original"])
def test_requests_that_come_one_after_another(out, requests, tmp_path, teacher_from):
    """Each request is a run of its own whose parent is the one before; --resume keeps the finished ones."""
    first, second = (runs.read_run(requests / f"{teacher_from}_{k}of2") for k in (1, 2))
    assert second["parent_sha256"] == first["model_sha256"] and len(second["fact_accuracy_by_request"]) == 2
    shutil.copytree(requests / f"{teacher_from}_1of2", tmp_path / f"{teacher_from}_1of2")
    call(asu, TINY, f"--run={out / 'target'}", f"--out={tmp_path}", "--forget=forget20", "--tasks=2", "--epochs=1",
         "--resume",
         f"--teacher_from={teacher_from}", f"--name={teacher_from}")
    assert runs.read_run(tmp_path / f"{teacher_from}_2of2")["model_sha256"] == second["model_sha256"]
    assert runs.read_run(tmp_path / f"{teacher_from}_1of2") == first


def test_the_teacher_of_a_later_request_is_the_original_if_asked(requests):
    same, other = (weights(requests / f"latest_{k}of2") == weights(requests / f"original_{k}of2") for k in (1, 2))
    assert same and not other


@pytest.fixture(scope="module")
def more(out, tmp_path_factory):
    """The main job with three more runs beside it, one of another target, evaluated -> (report, what was printed)"""
    place = shutil.copytree(out, tmp_path_factory.mktemp("more") / "out")
    call(asu, TINY, f"--out={place}", "--method=idk", "--retain=ap", "--epochs=1")
    call(asu, TINY, f"--out={place}", "--tasks=2", "--epochs=1")
    file = place / "asu_gd/run.json"
    file.write_text(file.read_text().replace(runs.read_run(out / "target")["model_sha256"], "0" * 64))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        call(eval, TINY, f"--out={place}", "--max_rows=3")
    return json.loads((place / "report.json").read_text()), printed.getvalue()


@pytest.mark.slow
def test_another_method_on_the_same_loop_stands_in_the_report(more):
    names = list(more[0]["runs"])
    assert names[-1] == "idk_ap" and len([name for name in names if name.startswith("teacher")]) == 1


@pytest.mark.slow
def test_every_request_has_its_row(more):
    """The parent of the second request is the first, whose parent is the target."""
    assert {"asu_gd_1of2", "asu_gd_2of2"} < more[0]["runs"].keys()


@pytest.mark.slow
def test_a_run_of_another_target_is_left_out_and_said_so(more):
    assert "left out: asu_gd was unlearned from another model" in more[1] and "asu_gd" not in more[0]["runs"]


@pytest.mark.slow
def test_eval_measures_the_runs_and_as_many_rows_as_it_is_told(out, more, tmp_path):
    assert set(more[0]["data"]["questions"].values()) == {3}
    shutil.copytree(out, tmp_path / "out")
    call(eval, TINY, f"--out={tmp_path / 'out'}", f"--runs={out / 'base'},asu_gd", "--max_rows=2")
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert list(report["runs"]) == ["base", "asu_gd", "retrained"] and set(report["data"]["questions"].values()) == {2}


def test_a_row_that_is_too_long_to_be_measured_is_refused_before_the_training(out, tmp_path, capsys, untrained):
    folder = shutil.copytree(out / "data/authors_20_seed0", tmp_path / "data")
    rows = [json.loads(line) for line in (folder / "forget10.json").read_text().splitlines()]
    rows[4]["perturbed_answer"][2] = "No. " * 200
    (folder / "forget10.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for script, flags in ((train, ["--batch_size=16"]), (train, [f"--init_from={out / 'base'}"]),
                          (asu, [f"--run={out / 'base'}", "--name=new"])):
        error = refused(capsys, script, TINY, f"--out={tmp_path / 'out'}", f"--data={folder}", *flags)
        assert f"the set forget, row {rows[4]['id']}: " in error and "do not fit the model's context of 128" in error


def test_a_model_may_say_as_much_as_the_longest_answer_or_as_it_is_told(out, tmp_path, capsys, monkeypatch):
    limits = []
    monkeypatch.setattr(eval, "ask", lambda model, tokenizer, questions, **kw: limits.append(kw["max_new_tokens"]) or
                        [""] * len(questions))
    flags = [TINY, f"--out={damaged(out, tmp_path)}", "--runs=target", "--max_rows=2"]
    call(eval, *flags, "--max_new_tokens=7")
    assert set(limits) == {7} and "answers of up to 7 tokens (forget), 7 tokens (retain)" in capsys.readouterr().out
    call(eval, *flags)
    said = json.loads((tmp_path / "out/report.json").read_text())["data"]["max_new_tokens"]
    assert set(limits[-12:]) == set(said.values()) and min(said.values()) >= 40


def test_a_copy_of_the_retrained_model_has_no_forget_quality_and_the_others_have_theirs(out, tmp_path, capsys):
    out = damaged(out, tmp_path)
    shutil.copytree(out / "retrained", out / "copy")
    call(eval, TINY, f"--out={out}", "--runs=target,copy,retrained", "--max_rows=4")
    report = json.loads((out / "report.json").read_text(), parse_constant=pytest.fail)
    values = {name: result["aggregate"]["forget_quality_p"] for name, result in report["runs"].items()}
    assert values["copy"] is None and 0 < values["target"] <= 1
    assert report["runs"]["copy"]["aggregate"]["gap_to_retrain"] == 0
    note = "copy answers as the retrained model does, number for number: it has no forget quality"
    assert note in report["data"]["notes"] and note in capsys.readouterr().out


def test_a_retrained_model_of_another_seed_is_said(out, tmp_path):
    out = damaged(out, tmp_path)
    assert entries.fitting(find_runs(out, None), data.load(out=out, n_authors=20), "forget10", False)[2] == []
    file = out / "retrained/run.json"
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 1'))
    [note] = entries.fitting(find_runs(out, None), data.load(out=out, n_authors=20), "forget10", False)[2]
    assert "differs from the target in more than its data: seed was 0, is 1" in note


def test_fine_tuning_a_model_directory(out, tmp_path):
    call(train, TINY, f"--out={tmp_path}", f"--init_from={out / 'base'}", "--replay=0", "--phrasings=1")
    assert not (tmp_path / "base").exists()
    assert runs.read_run(tmp_path / "target")["parent_sha256"] == runs.read_run(out / "base")["model_sha256"]


# -------------------------------------------------------------------------------------------------- sample.py
@pytest.fixture
def question(out):
    return data.load(out=out, n_authors=20).forget[0]["question"]


def test_sample_answers_alone_and_side_by_side(out, question, capsys):
    call(sample, f"--out={out}", f"--question={question}", "--tau=4", f"--compare={out / 'asu_gd'}")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"{out / 'target'} at tau=4 ") and lines[1].startswith(str(out / "asu_gd"))
    model, tokenizer, _ = runs.load_run(out / "target")
    assert lines[0].split("at tau=4")[1].strip() == (ask(model, tokenizer, [question], tau=4.0)[0] or "(nothing)")


@pytest.mark.slow
def test_sample_reads_questions_until_an_empty_line(out, question):
    done = subprocess.run([sys.executable, HOME / "sample.py", f"--out={out}"], input=f"{question}\n{question}\n\n",
                          capture_output=True, text=True)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 2


@pytest.mark.parametrize("flags, how", [
    ("--temperature=3 --seed=1", dict(temperature=3.0, seed=1)),
    ("--temperature=3 --seed=2", dict(temperature=3.0, seed=2)),
    ("--temperature=3", dict(temperature=3.0)),
    ("--temperature=3 --seed=1 --top_k=2", dict(temperature=3.0, seed=1, top_k=2)),
    ("--max_new_tokens=2", dict(max_new_tokens=2)),
    ("--tau=50", dict(tau=50.0)),
    ("--tau=50 --layers=1", dict(tau=50.0, layers=[1]))])
def test_every_flag_of_sample_changes_the_answer_as_it_says(tmp_path, tokenizer, question, capsys, flags, how):
    model = small_model(block_size=128)
    runs.save_run(tmp_path / "run", model, tokenizer, {})

    def said(flags):
        call(sample, f"--run={tmp_path / 'run'}", f"--question={question}", *flags.split())
        return capsys.readouterr().out.removeprefix(f"{tmp_path / 'run'}").removeprefix(" at tau=50")[2:-1]
    assert said(flags) == ask(model, tokenizer, [question], **how)[0]
    for dropped in flags.split():
        rest = flags.replace(dropped, "")
        if "--temperature" in dropped and "--seed" in rest or "--tau" in dropped and rest.strip():
            assert "goes with" in refused(capsys, sample, f"--run={tmp_path / 'run'}", *rest.split())
        else:
            assert said(flags) != said(rest), dropped
    assert said("--temperature=3 --top_k=1") == said("")           # the likeliest token alone is the greedy one


# ------------------------------------------------------------------------------------------- the training loop
def fitted(batches, lr=1e-3, model=None, **changes):
    """train.fit on a small model -> (model, record)"""
    settings = dict(weight_decay=0.0, grad_clip=1e9, optimizer_dtype="float32", micro_batches=1, seed=0, warmup=0.1,
                    temper=1.0)
    args = argparse.Namespace(**settings | changes)
    log = Log("test")
    return train.fit(model or small_model(), batches, args, lr, log), log.record


@pytest.mark.parametrize("parts", [1, 3])
def test_training_is_descent_on_the_mean_over_answers_of_their_mean_over_tokens(examples, monkeypatch, parts):
    """Plain gradient descent by hand, with micro-batches of unequal size."""
    monkeypatch.setattr(train, "adamw", lambda model, lr, *_: torch.optim.SGD(model.parameters(), lr))
    batches, model = [examples[:8], examples[20:25]], small_model()
    ours, record = fitted(batches, 0.05, micro_batches=parts, warmup=0.5)
    for step, (rows, point) in enumerate(zip(batches, record["curve"], strict=True)):
        loss = sum(answer_nll(model, data.collate([e])).mean() for e in rows) / len(rows)
        assert point["loss"] == pytest.approx(loss.item(), rel=1e-5)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradients):
                p -= lr_at(step, 2, 0.05, 0.5) * g
    assert torch.allclose(flat(ours), flat(model), atol=1e-5) and (flat(model) - flat(small_model())).abs().max() > 1e-3


def test_micro_batches_are_one_batch_in_training(examples):
    batches = [examples[i:i + 8] for i in range(0, 64, 8)]
    curves = [[point["loss"] for point in fitted(batches, micro_batches=parts)[1]["curve"]] for parts in (1, 3)]
    assert curves[0] == pytest.approx(curves[1], abs=1e-4) and len(curves[0]) == 8


def test_training_clips_gradients(examples):
    """Far below Adam's epsilon, 1e-8, a clipped gradient moves nothing."""
    start = flat(small_model())
    still, free = (flat(fitted([examples[:8]] * 2, grad_clip=clip)[0]) for clip in (1e-15, 1.0))
    assert (still - start).abs().max() < 1e-6 and (free - start).abs().max() > 1e-3


def test_weight_decay_in_training_shrinks_matrices_and_nothing_else(examples):
    """With no gradient left, a step at learning rate lr multiplies a matrix by 1 - lr * weight_decay; norms stay."""
    model, _ = fitted([examples[:2]] * 6, 0.1, grad_clip=1e-15, weight_decay=0.5)
    shrunk = 1.0
    for step in range(6):
        shrunk *= 1 - 0.5 * lr_at(step, 6, 0.1, 0.1)
    for before, after in zip(small_model().parameters(), model.parameters()):
        assert torch.allclose(after, before * (shrunk if before.dim() == 2 else 1), rtol=1e-4, atol=1e-5)


def test_every_flag_of_training_arrives(tmp_path, monkeypatch):
    """What main hands to fit for each of the three models, flag by flag; none of these values is a default."""
    fits = []

    def recorder(model, batches, args, lr, log):
        fits.append((model.config, model.checkpointing, batches, vars(args), lr, flat(model)))
        return model.eval()
    monkeypatch.setattr(train, "fit", recorder)
    given = dict(weight_decay=0.125, grad_clip=7.0, micro_batches=2, warmup=0.25, batch_size=10, seed=3)
    shape = dict(n_layer=1, n_head=4, n_embd=16, n_hidden=24, block_size=120, vocab_size=300)
    flags = given | shape | dict(base_rows=100, lr=0.5, epochs=2, phrasings=1, replay=0.5, n_authors=4,
                                 forget="forget25", out=tmp_path)
    call(train, "--checkpointing", *(f"--{flag}={value}" for flag, value in flags.items()))
    for config, checkpointing, batches, args, *_ in fits:
        assert {flag: getattr(config, flag) for flag in shape} == shape and checkpointing
        assert {flag: args[flag] for flag in given} == given and {len(batch) for batch in batches} == {10}
    assert [lr for *_, lr, _ in fits] == [train.BASE_LR, 0.5, 0.5]
    assert [len(batches) for _, _, batches, *_ in fits] == [10, 2 * (80 + 40) // 10, 2 * (60 + 30) // 10]
    assert [runs.read_run(tmp_path / name)["settings"]["seed"] for name in ("base", "target", "retrained")] == [3] * 3
    flags |= dict(seed=4, out=tmp_path / "other", data_seed=1)
    call(train, *(f"--{flag}={value}" for flag, value in flags.items()))
    assert not fits[3][1] and not torch.equal(fits[0][-1], fits[3][-1])
    assert weights(tmp_path / "target") == weights(tmp_path / "base") != weights(tmp_path / "other/base")
    assert runs.read_run(tmp_path / "target")["data_sha256"] != runs.read_run(tmp_path / "other/target")["data_sha256"]


# ------------------------------------------------------------------------------------- interruption, resume
@pytest.mark.slow
def test_a_killed_training_resumes_bit_for_bit(out, tmp_path):
    """kill -9 as soon as the target has left a checkpoint; --resume ends in the weights of a run never killed."""
    process = subprocess.Popen(command("train.py", f"--out={tmp_path}"), stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    while not (tmp_path / "target.resume.pt").exists():
        assert process.poll() is None, "finished before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "target").exists()
    done = subprocess.run(command("train.py", f"--out={tmp_path}", "--resume"), capture_output=True, text=True)
    assert done.returncode == 0
    assert "base: finished already" in done.stdout and "target: going on from step" in done.stdout
    for name in ("base", "target", "retrained"):
        assert weights(tmp_path / name) == weights(out / name), name
    assert runs.read_run(tmp_path / "target")["curve"][-1]["loss"] == runs.read_run(out / "target")["curve"][-1]["loss"]


@pytest.fixture
def interrupted(out, tmp_path, monkeypatch):
    """The flags of an unlearning that was stopped before it saved."""
    flags = [TINY, f"--run={out / 'target'}", f"--out={tmp_path}"]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(asu, "save_run", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        call(asu, *flags)
    assert stop.value.code == 130 and (tmp_path / "asu_gd.resume.pt").exists() and not (tmp_path / "asu_gd").exists()
    return flags


def test_an_interrupted_unlearning_resumes_bit_for_bit(out, tmp_path, interrupted, capsys):
    call(asu, *interrupted, "--resume")
    assert "asu: going on from step 7\n" in capsys.readouterr().out
    assert weights(tmp_path / "asu_gd") == weights(out / "asu_gd") and not (tmp_path / "asu_gd.resume.pt").exists()
    ours, whole = (runs.read_run(path / "asu_gd") for path in (tmp_path, out))
    assert (ours["steps"], ours["tokens"]) == (whole["steps"], whole["tokens"]) and len(ours["curve"]) == 2
    for point, expected in zip(ours["curve"], whole["curve"]):
        assert point | {"seconds": 0} == expected | {"seconds": 0}


def test_a_run_that_was_killed_after_its_last_file_leaves_no_checkpoint(out, tmp_path, interrupted, untrained):
    shutil.copytree(out / "asu_gd", tmp_path / "asu_gd")
    call(asu, *interrupted, "--resume")
    assert weights(tmp_path / "asu_gd") == weights(out / "asu_gd") and not (tmp_path / "asu_gd.resume.pt").exists()


def test_resume_refuses_other_settings_and_damaged_checkpoints(tmp_path, interrupted, capsys):
    assert "tau was 8.0, is 3.0" in refused(capsys, asu, *interrupted, "--resume", "--tau=3")
    file = tmp_path / "asu_gd.resume.pt"
    content = file.read_bytes()
    for bad in (content[:1000], content[:-1] + bytes([content[-1] ^ 1]), content[:-optim.ENDING_SIZE], content[80:],
                b"", b"x" * 5000):
        file.write_bytes(bad)
        assert "asu_gd.resume.pt is damaged" in refused(capsys, asu, *interrupted, "--resume")


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_is_refused_before_it_is_used(tmp_path, interrupted, capsys):
    """Each with a hash that is right."""
    file = tmp_path / "asu_gd.resume.pt"
    settings = torch.load(file, weights_only=True)["settings"]

    def other(change):
        saved = optim.read_checkpoint(file, settings)
        change(saved)
        return saved
    moments = "its optimizer's moments of weight 0 have other names or shapes"
    changes = [
        (lambda s: s.pop("model"), "no model"), (lambda s: s.update(step="1"), "no step"),
        (lambda s: s.update(step=10**9), "its step is 1000000000 of 14"),
        (lambda s: s.update(step=-1), "its step is -1 of 14"),
        (lambda s: s["record"].pop("tokens"), "no record"), (lambda s: s["record"].update(curve=3), "no record"),
        (lambda s: s["model"].pop("norm.weight"), "its weights have other names"),
        (lambda s: s["model"].update({"norm.weight": torch.ones(3)}), "its weights have other names or shapes"),
        (lambda s: s["model"].update({"norm.weight": 3}), "its weights have other names or shapes"),
        (lambda s: s["optimizer"].pop("param_groups"), "no optimizer"),
        (lambda s: s["optimizer"]["param_groups"].pop(), "of another kind"),
        (lambda s: s["optimizer"]["param_groups"][0].pop("betas"), "of another kind"),
        (lambda s: s["optimizer"]["param_groups"][0].update(params=[0]), "of another kind"),
        (lambda s: s["optimizer"].pop("state"), "no state"),
        (lambda s: s["optimizer"]["state"].update({99: {}}), "that of more weights"),
        (lambda s: s["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)), moments),
        (lambda s: s["optimizer"]["state"][0].update(exp_avg_sq=torch.zeros(10**6)), moments),
        (lambda s: s["optimizer"]["state"][0].pop("step"), moments),
        (lambda s: s["optimizer"].update(copies=[torch.zeros(3)]), "copies of weights have other shapes")]
    states = [(other(change), message) for change, message in changes]
    for state, message in states:
        optim.write_checkpoint(file, state)
        error = refused(capsys, asu, *interrupted, "--resume")
        assert message in error and "asu_gd.resume.pt" in error and not (tmp_path / "asu_gd").exists()


# ------------------------------------------------------------------------------ what is somebody else's stays
@pytest.fixture
def untrained(monkeypatch):
    """Whoever trains a step fails."""
    def trains(*args):
        raise AssertionError("this trains")
    monkeypatch.setattr(Log, "begin", trains)


@pytest.mark.parametrize("script, name", [(asu, "thesis"), (train, "base"), (train, "target"), (train, "retrained")])
def test_a_directory_that_is_no_run_is_refused_before_the_training(out, tmp_path, capsys, untrained, script, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "notes.txt").write_text("mine")
    flags = [f"--run={out / 'target'}", f"--name={name}"] if script is asu else []
    for more in ([], ["--overwrite"], ["--resume"]):
        error = refused(capsys, script, TINY, f"--out={tmp_path}", *flags, *more)
        assert f"{tmp_path / name} is not a run of ours, it holds notes.txt" in error
    assert (tmp_path / name / "notes.txt").read_text() == "mine"


def test_a_finished_run_of_other_settings_is_replaced_only_with_overwrite(out, tmp_path, capsys):
    flags = [TINY, f"--run={out / 'target'}", f"--out={tmp_path}", "--epochs=1"]
    call(asu, *flags)
    before = weights(tmp_path / "asu_gd")
    (tmp_path / "asu_gd/notes.txt").write_text("mine")
    for more in (["--seed=1"], ["--seed=1", "--resume"]):
        error = refused(capsys, asu, *flags, *more)
        assert "asu_gd is a finished run of other settings (seed was 0, is 1); --overwrite replaces it" in error
    assert "parent_sha256 was" in refused(capsys, asu, *flags, f"--run={out / 'retrained'}")
    assert weights(tmp_path / "asu_gd") == before
    call(asu, *flags)                                       # the same again
    assert weights(tmp_path / "asu_gd") == before
    call(asu, *flags, "--seed=1", "--overwrite")
    assert weights(tmp_path / "asu_gd") != before and runs.read_run(tmp_path / "asu_gd")["settings"]["seed"] == 1
    assert (tmp_path / "asu_gd/notes.txt").read_text() == "mine"


def test_resume_with_overwrite_makes_a_run_of_other_data_anew(out, tmp_path, capsys):
    """Where the model is somebody else's, no run.json says what it was trained on."""
    folder, model = tmp_path / "mine", tmp_path / "model"
    shutil.copytree(next((out / "data").iterdir()), folder)
    shutil.copytree(out / "target", model, ignore=shutil.ignore_patterns("run.json"))
    flags = [TINY, f"--data={folder}", f"--run={model}", f"--out={tmp_path}", "--epochs=1", "--name=x"]
    call(asu, *flags)
    first = runs.read_run(tmp_path / "x")
    lines = (folder / "forget10.json").read_text().splitlines(keepends=True)
    (folder / "forget10.json").write_text("".join(lines[1:]))
    capsys.readouterr()
    for finished in (False, True):
        call(asu, *flags, "--resume", "--overwrite")
        assert ("finished already" in capsys.readouterr().out) == finished
    assert runs.read_run(tmp_path / "x")["data_sha256"] != first["data_sha256"]


def test_a_finished_run_that_is_made_anew_is_said(out, tmp_path, capsys):
    place = damaged(out, tmp_path)
    flags = [TINY, f"--out={place}", f"--run={out / 'target'}"]
    for more, line in (([], "which had the same settings; --resume keeps it"), (["--resume"], ""),
                       (["--epochs=1", "--overwrite"], "a run of other settings (epochs was 2, is 1)")):
        call(asu, *flags, *more)
        lines = [text for text in capsys.readouterr().out.splitlines() if text.startswith("replacing ")]
        assert lines == ([f"replacing {place / 'asu_gd'}, {line}"] if line else [])
    call(train, TINY, f"--out={place}")
    said = [text for text in capsys.readouterr().out.splitlines() if text.startswith("replacing ")]
    assert said == [f"replacing {place / name}, which had the same settings; --resume keeps it"
                    for name in ("base", "target", "retrained")]
    assert all(weights(place / name) == weights(out / name) for name in ("base", "target", "retrained"))


@pytest.mark.parametrize("flags, line", [
    ("--n_layer=3 --vocab_size=300", "--n_layer, --vocab_size"), ("--temper=4 --base_rows=9", "--base_rows, --temper"),
    ("--n_head=2 --temper=4 --replay=1", "--n_head"), ("--temper=4 --replay=1", None), ("--lr=1", None)])
def test_flags_that_say_nothing_about_a_model_that_is_there_are_named(capsys, flags, line):
    train.parse(["--init_from=somewhere", *flags.split()])
    assert capsys.readouterr().out == (f"--init_from does not use {line}\n" if line else "")
    train.parse(flags.split())
    assert capsys.readouterr().out == ""


def test_training_again_with_other_settings_replaces_nothing_by_itself(out, tmp_path, capsys, untrained):
    out = damaged(out, tmp_path)
    for flag, name in (("--base_rows=320", "base"), ("--lr=1", "target"), ("--forget=forget05", "retrained")):
        assert f"{out / name} is a finished run of other settings" in refused(capsys, train, TINY, f"--out={out}", flag)
    call(train, TINY, f"--out={out}", "--resume")


@pytest.mark.parametrize("name, stale", [("holdout", "target"), ("world_facts_perturbed", "base")])
def test_what_was_made_of_other_data_does_not_pass_as_finished(out, tmp_path, capsys, untrained, name, stale):
    out, folder = damaged(out, tmp_path), tmp_path / "data"
    shutil.copytree(out / "data/authors_20_seed0", folder)
    (folder / f"{name}.json").write_text("".join((folder / f"{name}.json").read_text().splitlines(True)[1:]))
    error = refused(capsys, train, TINY, f"--out={out}", f"--data={folder}", "--resume")
    assert f"{stale} is a finished run of other settings" in error
    assert stale != "base" or "other settings (world_sha256 was" in error
    assert "trained on other data" in refused(capsys, asu, TINY, f"--out={out}", f"--data={folder}", "--resume")
    assert "trained on other data" in refused(capsys, eval, TINY, f"--out={out}", f"--data={folder}")


def test_a_target_may_be_asked_to_forget_other_people_than_its_split_names(out, tmp_path, capsys):
    """But it must have learnt just these rows, and a retrained model is of one split."""
    folder = shutil.copytree(out / "data/authors_20_seed0", tmp_path / "data")
    rows = [(folder / f"{name}.json").read_text().splitlines(True) for name in ("retain90", "forget10")]
    (folder / "forget10.json").write_text("".join(rows[0][:40]))
    (folder / "retain90.json").write_text("".join(rows[0][40:] + rows[1]))
    flags = TINY, f"--out={tmp_path / 'out'}", f"--data={folder}", "--epochs=1"
    assert "trained on other data" in refused(capsys, asu, *flags, f"--run={out / 'retrained'}")
    call(asu, *flags, f"--run={out / 'target'}")
    assert runs.read_run(tmp_path / "out/asu_gd")["steps"] > 0
    (folder / "forget10.json").write_text("".join(rows[0][:39]))
    assert "trained on other data" in refused(capsys, asu, *flags, f"--run={out / 'target'}", "--name=fewer")


@pytest.mark.parametrize("name, message", [
    ("report.json", "is a file's"), ("curves.PNG", "is a file's"), ("asu_gd.resume.pt", "is a file's"),
    ("notes", "notes is a file"), ("Target", "a plain name is needed"), (".asu", "a plain name is needed"),
    ("\u00e4" * 80, "160 bytes are more than the 120")])
def test_a_name_that_is_a_files_or_cannot_be_a_directorys(out, tmp_path, capsys, untrained, name, message):
    (tmp_path / "notes").write_text("mine")
    assert message in refused(capsys, asu, TINY, f"--out={tmp_path}", f"--run={out / 'target'}", f"--name={name}")
    assert [path.name for path in tmp_path.iterdir()] == ["notes"] or (tmp_path / "data").exists()


def test_what_is_half_written_is_no_run(out, tmp_path):
    out = damaged(out, tmp_path)
    shutil.copytree(out / "asu_gd", files.scratch(out / "asu_gd", "tmp"))
    assert list(find_runs(out, None)) == ["base", "target", "retrained", "asu_gd"]


# ------------------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize("script, flag, message", [
    (asu, "--tua=3", "unknown flag --tua=3; did you mean --tau?"), (asu, "--tau=0", "0 is not a number above 0"),
    (asu, "--tau=nan", "nan is not"), (asu, "--tau=x", "x is not"), (asu, "--layers=9", "layers 0 to 1"),
    (asu, "--layers=a", "not a list of layers"), (asu, "--layers=3-1", "empty"),
    (asu, "--epochs=0", "whole number of at least 1"),
    (asu, "--retain=gdx", "invalid choice"), (asu, "--method=ASU", "invalid choice"),
    (asu, "--retain=ap", "belongs to method idk"),
    (asu, "--beta=1", "asu has no beta"), (asu, "--name=.", "a plain name is needed"),
    (asu, "--name=../x", "a plain name is needed"),
    (asu, "--name=target", "--name=target: a plain name is needed that is none of ablate,"),
    (eval, "--runs=asu_gd,./asu_gd", "two runs of one name"), (asu, "--tasks=3", "3 requests, but only 2 authors"),
    (asu, "--run=", "--run is empty"), (asu, "--device=tpu9", "--device=tpu9"),
    (asu, "--data_seed=7", "trained on other data"), (asu, "--forget=all", "not a split"),
    (asu, "@config/nix.args", "no preset file"),
    (train, "--epochs=2.5", "whole number"), (train, "--replay=-1", "-1 is not a number from 0 to 100"),
    (train, "--replay=1e12", "1e12 is not a number from 0 to 100"),
    (train, "--n_head=3", "does not divide into 3 heads"),
    (train, "--block_size=8", "do not fit the model's context of 8"), (train, "--vocab_size=100", "at least 257"),
    (train, "--data=nowhere", "is neither authors, books, hazards, tofu, muse-books, muse-news, wmdp-bio, wmdp-cyber "
                              "nor a directory"), (eval, "--runs=nix", "no run nix"),
    (eval, "--forget=forget20", "not forget20"), (sample, "--question=", "--question is empty"),
    (sample, "--question=" + "why " * 200, "model's context of 128")])
def test_bad_flags_get_one_line(out, capsys, script, flag, message):
    flags = [TINY, f"--out={out}"] if script is not train else [TINY, f"--out={out.parent / 'bad'}"]
    before = {p: p.read_bytes() for p in out.rglob("*.safetensors")}
    assert message in refused(capsys, script, *flags, flag)
    assert {p: p.read_bytes() for p in out.rglob("*.safetensors")} == before


@pytest.mark.parametrize("script, flag, message", [
    (train, "--epochs=" + "9" * 400, "9... is not a whole number of at least 1"),
    (train, "--epochs=" + "9" * 5000, "9... is not a whole number of at least 1"),
    (train, "--seed=" + "9" * 400, "9... is not a whole number from 0 on"),
    (asu, "--layers=0-99999999999", "not a list of layers"), (asu, "--layers=0-9999", "layers 0 to 1"),
    (asu, "--layers=00001", "not a list of layers"),
    (asu, "--tau=1e-30", "1e-30 is not a number above 0"), (asu, "--alpha=1e38", "1e38 is not a number above 0"),
    (asu, "--tau=1e400", "is not a number"), (asu, "--lr=1e-300", "is not a number above 0"),
    (sample, "--top_k=2", "--top_k goes with --temperature"),
    (sample, "--seed=1", "--seed goes with --temperature"), (sample, "--layers=0", "--layers goes with"),
    (sample, "--temperature=1e-45", "1e-45 is not a number of at least 0"),
    (eval, "--device=meta", "--device=meta is not usable here"),
    (train, "--n_embd=10000000", "10000000 is not a whole number from 1 to 8192"),
    (train, "--n_layer=10000000", "10000000 is not a whole number from 1 to 1024"),
    (train, "--epochs=\u0663", "\u0663 is not a whole number"), (asu, "--lr=\uff11", "\uff11 is not a number"),
    (asu, "--layers=\u0661", "not a list of layers"), (train, "--out=", "--out is empty"),
    (train, "--init_from=", "--init_from is empty"), (asu, "--name= ", "--name is empty"),
    (eval, "--runs=,", "'' is no name of a run"), (eval, "--runs=target,,asu_gd", "'' is no name of a run"),
    (eval, "--runs=.asu_gd.x.tmp", "'.asu_gd.x.tmp' is no name of a run")])
def test_flags_that_make_no_sense_get_one_line(out, capsys, script, flag, message):
    place = out.parent / "bad" if script is train else out
    assert message in refused(capsys, script, *([] if script is sample else [TINY]), f"--out={place}", flag)


def test_a_loss_without_weight_is_refused(capsys, out):
    for flags in (["--c_forget=0", "--c_retain=0"], ["--c_forget=0", "--retain=none"]):
        assert "nothing would be learnt" in refused(capsys, asu, TINY, f"--out={out}", *flags)


def test_half_of_what_torchrun_sets_gets_one_line():
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")} | {"LOCAL_RANK": "0"}
    done = subprocess.run(command("asu.py"), env=env, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "unset LOCAL_RANK" in done.stderr


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_neither_written_nor_read(tmp_path, tokenizer, value):
    model = small_model()
    runs.save_run(tmp_path / "run", model, tokenizer, {})
    before = files.files_in(tmp_path / "run"), weights(tmp_path / "run")
    with torch.no_grad():
        model.layers[1].mlp.up_proj.weight[3, 2] = value
    with pytest.raises(ValueError, match="layers.1.mlp.up_proj.weight holds values that are no numbers"):
        runs.save_run(tmp_path / "run", model, tokenizer, {})
    assert (files.files_in(tmp_path / "run"), weights(tmp_path / "run")) == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    model.save_pretrained(tmp_path / "other")
    tokenizer.save(tmp_path / "other")
    with pytest.raises(ValueError, match="other: weight layers.1.mlp.up_proj.weight holds values that are no numbers"):
        runs.load_run(tmp_path / "other")


@pytest.mark.parametrize("script", [asu, eval, sample])
def test_missing_runs_say_what_to_run_first(tmp_path, capsys, script):
    flags = ["--question=Who?"] if script is sample else [TINY]
    assert "run python train.py first" in refused(capsys, script, *flags, f"--out={tmp_path}")


def damaged(out, tmp_path):
    shutil.copytree(out, tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize("file, change, message", [
    ("target/model.safetensors", lambda b: b[:-50], "target/model.safetensors is truncated"),
    ("target/config.json", lambda b: b[:50], "config.json is not valid JSON"),
    ("target/run.json", lambda b: b[:50], "run.json is not valid JSON"),
    ("target/tokenizer.json", lambda b: b[:50], "damaged"),
    ("target/tokenizer.json", lambda b: b.replace(b'"eos"', b'"eos" '), "tokenizer.json is not the one this run"),
    ("target/config.json", lambda b: b.replace(b'"vocab_size": 512', b'"vocab_size": 300'),
     "config.json asks for (300, 32)"),
    ("data/authors_20_seed0/forget10.json", lambda b: b[:-9], "not what the generator makes")])
def test_damaged_files_are_named(out, tmp_path, capsys, file, change, message):
    out = damaged(out, tmp_path)
    content = (out / file).read_bytes()
    (out / file).write_bytes(change(content) if change(content) != content else content + b" ")
    for script in (asu, eval):
        assert message in refused(capsys, script, TINY, f"--out={out}")
    assert weights(out / "asu_gd") and (out / "report.json").exists()


def test_a_tokenizer_larger_than_the_model_is_refused(out, tmp_path, tokenizer):
    runs.save_run(tmp_path / "run", small_model(vocab_size=590), tokenizer, {})
    with pytest.raises(ValueError, match="tokenizer has 600 tokens, the model 590"):
        runs.load_run(tmp_path / "run")


def test_a_broken_line_in_a_data_directory(out, tmp_path, capsys):
    directory = shutil.copytree(out / "data/authors_20_seed0", tmp_path / "data")
    file = directory / "retain90.json"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:6], lines[6][:40], *lines[7:]]))
    for script in (train, asu, eval):
        error = refused(capsys, script, TINY, f"--out={out}", f"--data={directory}")
        assert f"{file}, line 7: not valid JSON" in error


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/version").exists(), reason="root may write anywhere here")
def test_an_unwritable_output_directory(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for place in ("/proc/asu", tmp_path / "file"):
        assert f"cannot write to --out={place}" in refused(capsys, train, TINY, f"--out={place}")


def test_a_full_disk_leaves_the_old_files(out, tmp_path, monkeypatch, capsys):
    out = damaged(out, tmp_path)
    before = weights(out / "asu_gd")

    def full(*args, **kw):
        raise OSError(28, "No space left on device", str(out / "asu_gd"))
    monkeypatch.setattr("model.save_file", full)
    assert "No space left on device" in refused(capsys, asu, TINY, f"--out={out}")
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
        if path.name.endswith(".tmp"):                      # the second
            raise KeyboardInterrupt
        return rename(path, to)
    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), files.whole_dir(tmp_path / "dir") as d:
        (d / "a").write_text("second")
    assert (tmp_path / "dir/a").read_text() == "first" and len(list(tmp_path.iterdir())) == 1


def test_a_preset_that_is_not_text(tmp_path, capsys):
    (tmp_path / "x").write_bytes(b"\xff\x00")
    assert "it is not text" in refused(capsys, asu, f"@{tmp_path / 'x'}")


def test_a_base_from_scratch_is_replayed_and_a_downloaded_one_is_not():
    assert (train.parse([]).replay, train.parse(["--init_from=x"]).replay) == (0.5, 0)
    assert train.parse(["--init_from=x", "--replay=0.25"]).replay == 0.25


def test_a_presets_line_is_for_its_script_whichever_runs(tmp_path):
    (tmp_path / "p.args").write_text("train.py --n_authors=20\nasu.py --tau=2\n")
    assert train.parse([f"@{tmp_path / 'p.args'}"]).n_authors == 20
    assert (asu.parse([f"@{tmp_path / 'p.args'}"]).tau, asu.parse([f"@{tmp_path / 'p.args'}"]).n_authors) == (2, 60)


def test_presets(tmp_path):
    preset = tmp_path / "p.args"
    preset.write_text("# why\n--seed=3\nasu.py --tau=2  # for one script\n\n")
    assert cli.expand_preset(f"@{preset}", "asu.py") == ["--seed=3", "--tau=2"]
    assert cli.expand_preset(f"@{preset}", "eval.py") == ["--seed=3"]


@pytest.mark.parametrize("line, flags", [
    ("--lr 5e-6", ["--lr=5e-6"]), ("--lr   5e-6  # why", ["--lr=5e-6"]), ("--resume", ["--resume"]),
    ("--lr=1 --resume --tau 2", ["--lr=1", "--resume", "--tau=2"]), ("\t--lr=1\t", ["--lr=1"]),
    ('--out="my runs/a"', ["--out=my runs/a"]), ("--out 'my runs'", ["--out=my runs"]),
    ('"--out=my runs"', ["--out=my runs"]), ("--out=a#b", ["--out=a#b"]), ("--out='a #b'  # c", ["--out=a #b"]),
    ("--question=\"it's\"", ["--question=it's"]), ("--beta -1", ["--beta=-1"]), ("  # it's", []), ("", []),
    ("--run=C:\\models", ["--run=C:\\models"]), ("asu.py --lr 1 --tau=2", ["--lr=1", "--tau=2"]),
    ("eval.py --lr 1", []), ("compare.py --jobs=1", []), ("\ufeff--lr=1", ["--lr=1"])])
def test_every_line_of_a_preset_gives_its_flags(tmp_path, line, flags):
    (tmp_path / "p.args").write_text(f"{line}\n--seed=3\n", encoding="utf-8")
    assert cli.expand_preset(f"@{tmp_path / 'p.args'}", "asu.py") == [*flags, "--seed=3"]


@pytest.mark.parametrize("line", ["--out=my runs", "--lr = 5e-6", "lr=5e-6", "trian.py --lr=1", "--out='my runs",
                                  "--question=it's", "--lr=1 2", "asu.py", "asu.py lr=1", "-- lr=1", "@other.args",
                                  "-1", "--=1"])
def test_a_line_that_gives_no_flags_is_refused_with_file_and_line(tmp_path, capsys, line):
    (tmp_path / "p.args").write_text(f"# why\n\n{line}\n")
    assert f"{tmp_path / 'p.args'}, line 3: " in refused(capsys, asu, f"@{tmp_path / 'p.args'}")


def test_learning_rate_warms_up_and_falls_to_nearly_nothing():
    """Ten of 100 steps and one: 1/11, 2/11, ... 1, then a cosine from the twelfth step on."""
    rates = [lr_at(step, 100, 1.0, 0.1) for step in range(100)]
    assert rates[:11] == pytest.approx([k / 11 for k in range(1, 12)]) and max(rates) == 1 and 0 < rates[-1] < 0.001
    assert rates[11] == 1 and rates[55] == pytest.approx(0.5, abs=0.01)
    assert rates[11:] == sorted(rates[11:], reverse=True)
    assert [lr_at(step, 4, 2.0, 0.0) for step in range(4)] == pytest.approx([2, 2, 1.5, 0.5])


# ------------------------------------------------------------------------------------------- other worlds
@pytest.mark.slow
def test_hazards_from_prose_to_report(tmp_path, capsys):
    """Passages learnt, the hidden form of ASU, and RMU on the same loop; options and VerbMem in the report."""
    flags = [TINY, "--data=hazards", "--forget=forget50", "--n_authors=4", f"--out={tmp_path}"]
    call(train, *flags, "--block_size=256")
    call(asu, *flags, "--target=hidden", "--hidden_layer=1", "--retain=hidden", "--tau=4")
    call(asu, *flags, "--method=rmu", "--retain=hidden", "--tau=4", "--hidden_layer=1")
    assert "(--method=rmu --retain=hidden) does not use --tau\n" in capsys.readouterr().out
    call(eval, *flags, "--max_rows=4")
    runs = json.loads((tmp_path / "report.json").read_text())["runs"]
    assert set(runs) == {"base", "target", "retrained", "teacher_tau4", "asu_hidden_hidden", "rmu_hidden"}
    for result in runs.values():
        assert all(0 <= result[part]["choice_accuracy"] <= 1 for part in ("forget", "retain"))
        assert 0 <= result["forget_text"]["verbmem"] <= 1 and result["forget_text"]["mia_min_k"] is not None
    assert "choices" in (tmp_path / "report.md").read_text()
    assert "form of ASU, not of --method=npo" in refused(capsys, asu, *flags, "--method=npo", "--target=hidden")
    error = refused(capsys, asu, *flags, "--target=hidden", "--hidden_layer=9")
    assert "hidden_layer=9: the model has 2 layers" in error
    assert "do not fit the model's context of 64" in refused(capsys, train, *flags, "--block_size=64",
                                                                          "--overwrite")


def test_heads_are_chosen_by_the_phrasings_that_were_taught(out, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(choose, "choose_heads", lambda model, tokenizer, rows, *_: seen.extend(rows) or 4.0)
    call(asu, TINY, f"--run={out / 'target'}", f"--out={tmp_path}", "--heads=auto", "--phrasings=2", "--epochs=1")
    assert len(seen) == 40 and all(len(row["questions"]) == len(row["answers"]) == 2 for row in seen)
