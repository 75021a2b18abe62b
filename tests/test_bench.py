"""The benchmark: both recipes are one loss, the count of operations is PyTorch's, the table is written."""

import json
import os
from argparse import Namespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import data
from common import UserError
from experiments import bench
from tests.conftest import HOME, call, refused, small_model

SHAPE = dict(vocab_size=600, block_size=128, n_layer=2, n_head=4, n_kv_head=2, n_embd=64, n_hidden=96, eos_id=599,
             init_std=0.3)
ARGS = Namespace(device="cpu", dtype="float32", batch_size=3, repeats=1, seed=0, data_seed=0, new_tokens=3)


def test_every_recipe_is_the_same_losses_and_gradients():
    found = {}
    for name, recipe in bench.RECIPES.items():
        model, examples = small_model(**SHAPE), bench.rows(6, 600, 0)
        losses = torch.cat([loss.flatten() for loss in recipe(model, examples[:3], examples[3:])()])
        losses.sum().backward()
        found[name] = losses.tolist(), torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
    first, gradient = found.pop("ours")
    assert min(first) > 0.01 and gradient.norm() > 0.01
    for name, (other, its_gradient) in found.items():
        assert other == pytest.approx(first, abs=1e-4)
        if "LoRA" not in name:                                            # which has other weights to move
            assert torch.allclose(its_gradient, gradient, atol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"n_kv_head": 4, "head_dim": 16, "tie_weights": False}])
def test_operations_are_those_that_pytorch_counts(changes):
    model = small_model(**SHAPE | changes)
    examples = [data.Example(e.prompt[:15], e.answer[:20]) for e in bench.rows(3, 600, 0)]  # of one length: no padding
    batch = data.collate(examples)
    with FlopCounterMode(display=False) as counter:
        hidden = batch.at_answers(model.hidden(batch.idx, explicit=True))
        model.lm_head(hidden).sum().backward()
    assert bench.train_flops(model.config, examples) == counter.get_total_flops()


def test_rows_are_of_the_stated_lengths():
    rows = bench.rows(500, 600, 0)
    assert {min(len(e.prompt) for e in rows), max(len(e.prompt) for e in rows)} == {15, 45}
    assert {min(len(e.answer) for e in rows), max(len(e.answer) for e in rows)} == {20, 60}
    assert bench.rows(5, 600, 1) == bench.rows(5, 600, 1) != bench.rows(5, 600, 2)


def test_times_are_medians_without_the_warm_up(monkeypatch):
    """By a clock that shows what each call takes: neither the warm-up counts, nor the slowest, nor the mean."""
    clock, calls = [0.0], []
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[0])

    def takes(name, durations):
        def f():
            clock[0] += durations.pop(0)
            calls.append(name)
            return f"{name}, {len(durations)} to come"
        return f
    a, b = bench.timed(takes("a", [90.0, 1.0, 7.0, 2.0]), takes("b", [0.5, 5.0, 4.0, 30.0]), repeats=3,
                       device=torch.device("cpu"))
    assert calls == ["a", "b"] * 4 and a == (2.0, "a, 3 to come") and b == (5.0, "b, 3 to come")


def test_the_limit_is_of_the_fastest_product(monkeypatch):
    seconds = iter([4.0, 2.0, 5.0] + [3.0] * 7)
    monkeypatch.setattr(bench, "timed", lambda f, repeats, device: [(next(seconds), f())])
    assert bench.matmul_flops(torch.device("cpu"), torch.float32, 8) == 2 * 8 ** 3 / 2.0


@pytest.mark.parametrize("recipe", bench.RECIPES)
def test_the_gpu_part_runs_on_a_small_shape(recipe):
    row = bench.step_row(SHAPE, recipe, ARGS, torch.bfloat16, 64)
    assert row["variant"] == recipe and row["share"] > 0 and row["seconds"] > 0 and row["peak_mb"] > 0
    assert torch.get_default_dtype() == torch.float32
    model = bench.random_model(SHAPE, torch.device("cpu"), torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_a_recipe_may_train_a_part_of_the_weights(monkeypatch):
    """As LoRA does: the optimizer takes what the recipe leaves to train."""
    def norms_only(model, forget, retain):
        for name, p in model.named_parameters():
            p.requires_grad_("norm" in name)
        trained.append((model, [p.detach().clone() for p in model.parameters()]))
        return bench.ours(model, forget, retain)
    trained = []
    monkeypatch.setitem(bench.RECIPES, "norms only", norms_only)
    assert bench.step_row(SHAPE, "norms only", ARGS, torch.float32, 64)["forget_loss"] > 0
    [(model, before)] = trained
    moved = {name for (name, p), old in zip(model.named_parameters(), before) if not torch.equal(p, old)}
    assert moved == {name for name, _ in model.named_parameters() if "norm" in name}


def test_llama_shapes_have_the_sizes_that_their_names_say():
    for name, billions in (("Llama-3.2-1B", 1.236), ("Llama-3-8B", 8.030)):
        with torch.device("meta"):
            model = bench.Transformer(bench.ModelConfig(**bench.SHAPES[name]))
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(billions * 1e9, rel=1e-3)


def test_the_train_part_measures_the_scratch_model():
    row = bench.train_row(ARGS, [f"@{HOME}/config/tiny.args", "--n_layer=1", "--n_embd=16", "--vocab_size=300"], 64)
    assert row["tokens_per_s"] > 0 and row["share"] > 0


def test_ratios_are_to_the_first_line_of_the_same_kind():
    lines = [{"what": "a", "variant": "ours", "seconds": 2.0, "peak_mb": 100.0, "tokens_per_s": 5.0, "share": 0.5},
             {"what": "b", "variant": "ours", "seconds": 10.0},
             {"what": "a", "variant": "x", "seconds": 3.0, "peak_mb": 50.0}]
    assert bench.table(lines).splitlines()[2:] == ["| a | ours | 2 | 1.00 | 100 | 1.00 | 5 | 50% |",
                                                   "| b | ours | 10 | 1.00 | - | - | - | - |",
                                                   "| a | x | 3 | 1.50 | 50 | 0.50 | - | - |"]


def test_the_table_is_written(tmp_path, monkeypatch, capsys, tokenizer):
    monkeypatch.setattr(bench, "fresh", lambda f, *args: f(*args))
    monkeypatch.setattr(bench, "matmul_flops", lambda device, dtype, n: 1e12)
    model = small_model(**SHAPE)
    model.save_pretrained(tmp_path / "out/target")
    tokenizer.save(tmp_path / "out/target")
    call(bench, f"--out={tmp_path}/out", "--device=cpu", "--parts=step,transformers,gpu", "--repeats=1",
         "--batch_size=2", "--new_tokens=4")
    text = (tmp_path / "out/bench/bench.md").read_text()
    assert text in capsys.readouterr().out and "gpu: left out, --device=cpu is no GPU" in text
    rows = json.loads((tmp_path / "out/bench/bench.json").read_text())["rows"]
    assert [r["variant"] for r in rows] == [*bench.RECIPES, *["ours", "transformers"] * 3]
    assert sum(line.startswith("| ASU step") for line in text.splitlines()) == len(bench.RECIPES)
    for r in rows[1:len(bench.RECIPES)]:
        assert r["forget_loss"] == pytest.approx(rows[0]["forget_loss"], abs=1e-4)
        assert r["retain_loss"] == pytest.approx(rows[0]["retain_loss"], abs=1e-4)
    assert rows[-1]["same_tokens"] and rows[-1]["logits_differ"] < 1e-4


def test_a_line_has_a_process_of_its_own():
    assert bench.fresh(os.getpid) != os.getpid()
    with pytest.raises(UserError, match="the process was killed, most likely for its memory"):
        bench.fresh(os._exit, 1)


@pytest.mark.parametrize("flags, message", [
    (["--parts=step,speed"], "--parts: 'speed' is not one of step,transformers,train,gpu"),
    (["--parts=step"], "run python train.py first"), (["--repeats=0"], "0 is not"),
    (["--run=nowhere", "--parts=step"], "nowhere")])
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.setattr(bench, "fresh", lambda f, *args: f(*args))
    assert message in refused(capsys, bench, f"--out={tmp_path}/out", "--device=cpu", *flags)


def test_without_transformers_there_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    message = refused(capsys, bench, f"--out={tmp_path}/out", "--parts=transformers")
    assert "the package transformers is missing" in message
