"""Less memory, the same result: LoRA, checkpointing, optimizer state; and --plan against what a run really takes."""

import argparse
import functools
import json
import os
import subprocess
import sys

import pytest
import torch
import transformers

import asu
import data
import train
from common import UserError
from lab import lora, optim, plan, runs
from model import ModelConfig, Transformer
from tests.conftest import HOME, TINY, call, refused, small_model

SETTINGS = dict(epochs=1, batch_size=8, lr=1e-3, method="asu", tau=3.0, retain_loss="gd")


def ids(B=3, T=20):
    return torch.randint(0, 600, (B, T), generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------------------------------------- checkpointing
def test_checkpointing_keeps_less_and_gives_the_same_gradients():
    kept, gradients = [], []
    for checkpointing in (False, True):
        model, sizes = small_model(), []
        model.checkpointing = checkpointing
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
            loss = model(ids()).logsumexp(-1).mean()
        loss.backward()
        kept.append(sum(sizes))
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert kept[1] < 0.6 * kept[0]
    assert torch.equal(*gradients)


# ---------------------------------------------------------------------------------------------------- LoRA
def test_lora_starts_as_the_model_trains_only_the_change_and_merges_to_the_same_logits(examples):
    model = small_model()
    before, matrix = model(ids()), model.layers[0].mlp.up_proj.weight.detach().clone()
    lora.add_lora(model, 4)
    assert torch.equal(model(ids()), before)
    assert {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
    asu.unlearn(model, examples[:8], examples[8:16], **SETTINGS)
    assert torch.equal(model.layers[0].mlp.up_proj.linear.weight, matrix)
    after = model(ids())
    assert (after - before).abs().max() > 1e-3
    lora.merge_lora(model)
    assert model.state_dict().keys() == small_model().state_dict().keys()
    assert all(p.requires_grad for p in model.parameters())
    assert torch.allclose(model(ids()), after, atol=1e-4)


def test_peft_reads_the_adapter(tmp_path, examples):
    peft = pytest.importorskip("peft", reason="PEFT is the oracle of the adapter's format")
    model = small_model()
    model.save_pretrained(tmp_path / "parent")
    lora.add_lora(model, 4)
    asu.unlearn(model, examples[:8], examples[8:16], **SETTINGS)
    lora.save_adapter(model, tmp_path / "adapter", tmp_path / "parent")
    parent = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "parent")
    theirs = peft.PeftModel.from_pretrained(parent, tmp_path / "adapter")
    assert torch.allclose(theirs(ids()).logits, model(ids()), atol=1e-4)
    assert not torch.allclose(small_model()(ids()), model(ids()), atol=1e-3)


def test_a_rank_that_is_not_low_is_refused():
    with pytest.raises(UserError, match="--lora=32 is no low rank .* 32 rows"):
        lora.add_lora(small_model(), 32)


def test_asu_with_lora_leaves_a_plain_model_and_its_adapter(out, tmp_path, capsys):
    call(asu, TINY, f"--run={out / 'target'}", f"--out={tmp_path}", "--lora=4", "--checkpointing", "--name=lora",
         "--epochs=1")
    run, target = (Transformer.from_pretrained(path) for path in (tmp_path / "lora", out / "target"))
    assert run.state_dict().keys() == target.state_dict().keys()
    assert torch.equal(run.embed_tokens.weight, target.embed_tokens.weight)
    assert not torch.equal(run.layers[0].mlp.up_proj.weight, target.layers[0].mlp.up_proj.weight)
    assert json.loads((tmp_path / "lora/adapter/adapter_config.json").read_text())["r"] == 4
    assert "give --init_from" in refused(capsys, train, TINY, f"--out={tmp_path}", "--lora=4")


# ----------------------------------------------------------------------------------------- optimizer state
def stepped(optimizer_dtype, steps, resume_at=None):
    """A bfloat16 matrix of 0.02s under gradients of 1, at a learning rate below what bfloat16 tells apart there."""
    model = torch.nn.Linear(8, 8, bias=False).bfloat16()
    torch.nn.init.constant_(model.weight, 0.02)
    optimizer = optim.adamw(model, 1e-5, 0.0, optimizer_dtype)
    for step in range(steps):
        if step == resume_at:
            state = optimizer.state_dict()
            optimizer = optim.adamw(model, 1e-5, 0.0, optimizer_dtype)
            optimizer.load_state_dict(state)
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
        optimizer.zero_grad()
    return model.weight.detach().float()


def test_small_steps_add_up_beside_bfloat16_weights_only_with_float32_state():
    assert torch.equal(stepped("bfloat16", 100), stepped("bfloat16", 0))                    # every step is lost
    assert torch.allclose(stepped("float32", 100), torch.full((8, 8), 0.019), atol=1e-4)


def test_float32_state_resumes_to_the_same_bits():
    assert torch.equal(stepped("float32", 50, resume_at=23), stepped("float32", 50))


def test_bfloat16_state_beside_float32_weights_is_refused(tmp_path, capsys):
    error = refused(capsys, train, TINY, f"--out={tmp_path}", "--optimizer_dtype=bfloat16")
    assert "goes with --dtype=bfloat16" in error


# ---------------------------------------------------------------------------------------------------- plan
@pytest.fixture(scope="module")
def medium(out, tmp_path_factory):
    """Random weights, most of them of a large vocabulary: much memory beside what Python takes, little time."""
    dir = tmp_path_factory.mktemp("medium") / "model"
    tokenizer = data.Tokenizer.load(out / "target")
    torch.manual_seed(0)
    runs.save_run(dir, Transformer(ModelConfig(vocab_size=32768, n_layer=2, n_head=6, n_kv_head=3, n_embd=384,
                                               n_hidden=1024,
                                               eos_id=tokenizer.eos_id)), tokenizer, {})
    return dir


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--alpha=1.2"], ["--checkpointing", "--retain=kl"],
                                   ["--lora=8", "--teacher=live"], ["--lora=8", "--heal=3"]], ids="-".join)
def test_plan_is_within_15_percent_of_what_the_run_takes(medium, tmp_path, monkeypatch, capsys, flags):
    """Two epochs of two steps: the longest rows are met when the optimizer has its state."""
    flags = [f"--run={medium}", "--n_authors=2", "--forget=forget50", "--heads=all", "--tau=2", "--epochs=2",
             "--name=planned",
             "--warmup=0", "--phrasings=2", "--batch_size=20", f"--out={tmp_path}", *flags]
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")                   # glibc gives freed memory back
    call(asu, *flags, "--plan")
    total = float(capsys.readouterr().out.split("in all")[1].split()[0])
    real = subprocess.run([sys.executable, str(HOME / "asu.py"), *flags], capture_output=True, text=True,
                          env=os.environ)
    assert real.returncode == 0, real.stderr
    assert total == pytest.approx(runs.read_run(tmp_path / "planned")["peak_mb"], rel=0.15)


@pytest.mark.filterwarnings("error:Accessing the data pointer")     # that corrupts memory
@pytest.mark.parametrize("flags, forget_outputs, retain_outputs, heads, models", [
    ("--alpha=1", 1, 0, 1, 0), ("--alpha=1.2", 2, 0, 1, 0), ("--alpha=1 --retain=kl", 1, 1, 1, 0),
    ("--method=npo --retain=kl", 1, 1, 1, 0),
    ("--method=ga", 0, 0, 0, 0), ("--method=rmu --retain=hidden", 1, 1, 0, 0),
    ("--target=hidden --alpha=1.2", 2, 0, 0, 0),
    ("--alpha=1 --lora=4", 1, 0, 0, 0), ("--method=rmu --retain=kl", 1, 1, 1, 0), ("--teacher=live", 0, 0, 0, 1)])
def test_plan_counts_a_frozen_head_where_one_is_kept_and_the_hidden_states(out, monkeypatch, flags, forget_outputs,
                                                                           retain_outputs,
                                                                           heads, models):
    """In bytes: C numbers an answer token and output, a head of V x C where it is needed and changes."""
    monkeypatch.setattr(plan, "resident", lambda: 0)
    monkeypatch.setattr(sys, "argv", ["asu.py"])
    args = asu.parse([f"--out={out}", "--epochs=9", "--phrasings=1", "--batch_size=8", "--tau=4", *flags.split()])
    rows, tokenizer = data.load(out=out, n_authors=20), data.Tokenizer.load(out / "target")
    taken = asu.memory(args, out / "target", torch.device("cpu"), torch.float32, rows, (rows.forget, rows.retain))
    forget, retain = (sum(len(e.answer) for e in data.training_examples(tokenizer, part, 1))
                      for part in (rows.forget, rows.retain))
    model = runs.load_run(out / "target")[0]
    C, weights = model.config.n_embd, sum(p.nbytes for p in model.parameters())
    states = 4 * C * (forget_outputs * forget + retain_outputs * retain)
    assert taken["theta_0"] == states + heads * model.lm_head.weight.nbytes + models * weights


def test_plan_counts_what_is_alive_before_the_first_step_where_that_is_more(model, examples, monkeypatch):
    """As healing a teacher may take: 20 MB, gone when the loop begins."""
    args = argparse.Namespace(lora=None, checkpointing=False, optimizer_dtype="float32", seed=0)
    monkeypatch.setattr(plan, "resident", lambda: 0)

    def train(model, log, before):
        torch.zeros(before, dtype=torch.uint8)
        asu.unlearn(model, examples[:16], examples[16:], log=log, **SETTINGS)
    plain, more = (plan.components(model.config, torch.device("cpu"), torch.float32, args,
                                   functools.partial(train, before=n)) for n in (0, 20 * plan.MB))
    assert "more before the first step" not in plain and sum(plain.values()) < 20 * plan.MB
    assert sum(more.values()) == plain["weights"] + 20 * plan.MB


def test_plan_heals_for_two_steps_on_the_longest_rows(out, monkeypatch):
    monkeypatch.setattr(plan, "resident", lambda: 0)
    monkeypatch.setattr(sys, "argv", ["asu.py"])
    rows, heal, healed = data.load(out=out, n_authors=20), asu.heal, []

    def keep(model, strangers, steps, **rest):
        healed.append((len(strangers), steps))
        return heal(model, strangers, steps, **rest)
    monkeypatch.setattr(asu, "heal", keep)
    args = asu.parse([f"--out={out}", "--batch_size=4", "--tau=4", "--heal=9"])
    asu.memory(args, out / "target", torch.device("cpu"), torch.float32, rows, (rows.forget, rows.retain))
    assert healed == [(4, 2)]


@pytest.mark.parametrize("dtype, state, bytes", [("float32", "float32", (4, 4, 8)), ("bfloat16", "float32", (2, 2, 12)),
                                                 ("bfloat16", "bfloat16", (2, 2, 4))])
def test_plan_counts_weights_gradients_and_optimizer_exactly(model, examples, monkeypatch, dtype, state, bytes):
    """bytes: of each parameter, in weights, gradients, and AdamW's moments with the float32 copy if there is one."""
    args = argparse.Namespace(lora=None, checkpointing=False, optimizer_dtype=state, seed=0)
    monkeypatch.setattr(plan, "resident", lambda: 0)

    def two_steps(model, log):
        asu.unlearn(model, examples[:16], examples[16:], log=log, optimizer_dtype=state, **SETTINGS)
    taken = plan.components(model.config, torch.device("cpu"), getattr(torch, dtype), args, two_steps)
    n = sum(p.numel() for p in model.parameters())
    assert (taken["weights"], taken["gradients"]) == (bytes[0] * n, bytes[1] * n)
    assert taken["optimizer"] == pytest.approx(bytes[2] * n, rel=0.01)         # and a step count for each tensor


def test_out_of_memory_says_what_would_fit(monkeypatch):
    args = argparse.Namespace(batch_size=8, micro_batches=1, checkpointing=False, lora=None, shard=False)

    def take(args):
        return {"weights": 100 * plan.MB, "activations": (50 if args.checkpointing else 500) * plan.MB}
    for room, expected in ((200, "out of memory on cpu: this takes 600 MB (weights 100, activations 500); "
                                 "--checkpointing would take 150 MB and fit"),
                           (120, "even with --checkpointing --micro_batches=8 --lora=16 it would take 150 MB")):
        monkeypatch.setattr(plan, "capacity", lambda device: room * plan.MB)
        with pytest.raises(UserError) as refused, plan.explained(take, args, torch.device("cpu")):
            torch.empty(2**50)
        assert expected in str(refused.value)
    with pytest.raises(RuntimeError, match="shapes cannot"), plan.explained(take, args, torch.device("cpu")):
        torch.empty(2, 3) @ torch.empty(2, 3)                           # another error stays what it is


def test_merging_says_what_rounding_to_bfloat16_loses():
    lost = {}
    for dtype in (torch.float32, torch.bfloat16):
        for size in (1e-6, 1.0):
            model = small_model().to(dtype)
            lora.add_lora(model, 4)
            for m in lora.changes(model).values():
                torch.nn.init.constant_(m.lora_B, size)
            lost[dtype, size] = lora.merge_lora(model)
    assert lost[torch.bfloat16, 1e-6] > 0.5 and lost[torch.bfloat16, 1.0] < 0.01 and lost[torch.float32, 1.0] < 1e-6


def test_plan_refuses_what_the_run_would_refuse(out, tmp_path, capsys):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    for flags, message in (([f"--out={out}", "--layers=9"], "layers 0 to 1"),
                           ([f"--out={tmp_path}/none"], "run python train.py first"),
                           ([f"--out={out}", f"--run={tmp_path}/adapter"], "is a LoRA adapter, not a model")):
        assert message in refused(capsys, asu, TINY, "--plan", *flags)
