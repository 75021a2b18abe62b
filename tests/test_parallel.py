"""Several processes do what one does: asu.py and train.py under torchrun, two CPU processes with gloo.

Equal means up to the rounding of float32 sums taken in another order. Measured here: curves differ by up to 5e-7 of a
loss; weights by up to 3e-5, where Adam's first steps (of 2e-3) divide a gradient of nearly 0 by itself. Adam does not
mind gradients that are all twice too large, so those are compared as well.
"""

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import asu
import data
import eval
import train
from common.cli import run
from lab import parallel, runs
from lab.answers import answer_nll
from tests.conftest import HOME, TINY, call, refused, weights

pytestmark = pytest.mark.skipif(not hasattr(torch.cpu.Stream, "record_event"), reason="no shards on the CPU")
# Odd halves of a batch; and batches of 20 rows that leave one.
TRAIN = "--base_rows=62 --n_authors=2 --forget=forget50 --phrasings=1 --batch_size=31 --micro_batches=2".split()
ONE_LEFT = "--forget=forget05 --phrasings=1 --batch_size=19 --micro_batches=2 --tau=8 --alpha=1.2".split()

BACK = "--start=0.5 --heal=3 --replay=0.2".split()


def torchrun(*command):
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HOME)}
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--local_addr=127.0.0.1",
                           "--nproc_per_node=2", *map(str, command)], capture_output=True, text=True, env=env)


def several(lines):
    """Each line a script and its flags, run in turn by the same processes: to start them takes longer than a tiny run.
    A line that begins with "stop" is interrupted before it saves."""
    stop, parallel.stop = parallel.stop, lambda: None       # they stay connected: connecting anew can hang
    for line in lines:
        if line.startswith("gradients "):
            gradients(*line.split()[1:])
            continue
        *stopped, script, flags = line.replace(" ", "\n", 1 + line.startswith("stop")).split("\n")
        sys.argv = [f"{script}.py", *flags.split()]
        script = {"asu": asu, "train": train}[script]
        save = script.save_run
        if stopped:
            script.save_run = lambda *args: (_ for _ in ()).throw(KeyboardInterrupt)
        try:
            run(script.main)
        except SystemExit as e:
            if not stopped or e.code != 130:
                raise
        script.save_run = save
    stop()


def gradients(target, file, *shard):
    """Write the gradients of three answers' loss: of two micro-batches of two processes, one of the four has none."""
    model, tokenizer, _ = runs.load_run(Path(target), shard=bool(shard))
    names = "Ada", "Ada Lovelace", "George Boole"
    examples = [data.encode(tokenizer, f"Who is {name}?", f"Nobody but {name}.") for name in names]
    for part, n in parallel.micro_batches(examples, 2):
        batch = data.collate(part)
        loss = data.mean_over_answers(answer_nll(model, batch), batch.mask)
        parallel.backward(model, loss * n / len(examples))
    parallel.add_gradients(model)
    grads = parallel.gathered({name: p.grad for name, p in model.named_parameters()})
    if parallel.rank == 0:
        torch.save(grads, file)


def assert_same(one, other, world_size, sharded):
    """Two run directories hold the same weights, the same curve, and the second says how it was made."""
    a, b = (load_file(path / "model.safetensors") for path in (one, other))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-4, msg=lambda m: f"{other} {name}: {m}")
    a, b = (runs.read_run(path) for path in (one, other))
    assert (b["world_size"], b["sharded"]) == (world_size, sharded) and b["peak_mb"] > 50 and b["tokens"] > 0
    assert a["settings"] | {"parent_sha256": ""} == b["settings"] | {"parent_sha256": ""}
    assert len(a["curve"]) == len(b["curve"])
    for p, q in zip(a["curve"], b["curve"]):
        assert p | {"seconds": 0} == pytest.approx(q | {"seconds": 0}, rel=1e-6, abs=1e-6)


@pytest.fixture(scope="module")
def started(out, tmp_path_factory):
    """All that two processes are asked to do, in one start -> (the directory it is in, what the first one printed)"""
    place = tmp_path_factory.mktemp("parallel")
    for path in (place / name for name in ("one", "whole", "shards")):
        for folder in ("target", "data"):
            shutil.copytree(out / folder, path / folder)
    lines = [["asu", TINY, f"--run={out / 'target'}", f"--out={place / 'main'}", "--shard"]]
    for name, flags in (("whole", []), ("shards", ["--shard"])):
        ours = [TINY, f"--out={place / name}", *flags, *ONE_LEFT]
        lines += [["asu", *ours, "--teacher=live"], ["stop asu", *ours, "--method=dpo"],
                  ["asu", *ours, "--name=back", f"--base={out / 'base'}", *BACK],
                  ["train", TINY, f"--out={place / name}_trained", *flags, *TRAIN],
                  ["gradients", f"{place}/one/target", f"{place}/{name}.pt", *flags]]
    lines.append(["asu", TINY, f"--out={place}/whole", *ONE_LEFT, "--method=dpo", "--shard", "--resume"])
    done = torchrun(__file__, *(" ".join(line) for line in lines))
    assert done.returncode == 0, done.stderr
    return place, done.stdout


@pytest.mark.slow
def test_a_sharded_run_is_the_run_of_one_process_and_opens_in_transformers(out, started):
    place, printed = started
    assert_same(out / "asu_gd", place / "main/asu_gd", 2, True)
    assert printed.count("asu step 14 ") == 1
    assert sorted(p.name for p in (place / "main").iterdir()) == ["asu_gd", "data"]
    ours, tokenizer, _ = runs.load_run(place / "main/asu_gd")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(place / "main/asu_gd").eval()
    ids = torch.tensor([tokenizer.encode("Where was Quentin Duncott born?")])
    with torch.no_grad():
        assert torch.allclose(ours(ids), theirs(ids).logits, atol=1e-4)


@pytest.mark.slow
def test_the_gradients_of_all_processes_add_up_to_those_of_one(started):
    place, _ = started
    gradients(place / "one/target", place / "one.pt")
    expected, *others = (torch.load(place / f"{name}.pt") for name in ("one", "whole", "shards"))
    for grads in others:
        torch.testing.assert_close(grads, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_odd_batches_and_resuming_with_another_number_of_processes(out, started):
    place, printed = started
    one, whole, shards = (place / name for name in ("one", "whole", "shards"))
    assert printed.count("dpo: going on from step 2\n") == 1
    for flags in ("--teacher=live", "--method=dpo"):
        call(asu, TINY, f"--out={one}", *ONE_LEFT, flags)
    call(asu, TINY, f"--out={one}", *ONE_LEFT, "--name=back", f"--base={out / 'base'}", *BACK)
    call(train, TINY, f"--out={one}_trained", *TRAIN)
    call(asu, TINY, f"--out={shards}", *ONE_LEFT, "--method=dpo", "--resume")
    assert_same(one / "dpo_gd", whole / "dpo_gd", 2, True)
    assert_same(one / "dpo_gd", shards / "dpo_gd", 1, False)
    for path, sharded in ((whole, False), (shards, True)):
        for name in ("asu_gd", "back"):
            assert_same(one / name, path / name, 2, sharded)
        for name in ("base", "target", "retrained"):
            assert_same(place / "one_trained" / name, place / f"{path.name}_trained" / name, 2, sharded)


@pytest.mark.slow
def test_a_mistake_gets_one_line_from_all_processes(out):
    before = weights(out / "asu_gd")
    done = torchrun(HOME / "asu.py", TINY, f"--out={out}", "--layers=9")
    assert done.returncode and weights(out / "asu_gd") == before
    assert done.stderr.count("asu.py: error: ") == 1
    assert "layers 0 to 1" in done.stderr and "exitcode  : 2 " in done.stderr


def test_sharding_alone_and_evaluating_together_are_refused(out, monkeypatch, capsys):
    for script in (asu, train):
        assert "torchrun --nproc_per_node=N" in refused(capsys, script, TINY, f"--out={out}", "--shard")
    monkeypatch.setattr(parallel, "world_size", 2)
    error = refused(capsys, asu, TINY, f"--out={out}", "--device=cuda:1")
    assert "--device=cuda:1 is one device for 2 processes" in error
    for key, value in {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(key, value)
    assert "start it without torchrun" in refused(capsys, eval, TINY, f"--out={out}")


def test_micro_batches_deal_out_every_row_once_and_as_many_to_each(monkeypatch):
    for rows, parts, world in itertools.product(range(1, 12), (1, 2, 3), (1, 2, 3, 5)):
        batch, dealt = list(range(rows)), []
        monkeypatch.setattr(parallel, "world_size", world)
        for rank in range(world):
            monkeypatch.setattr(parallel, "rank", rank)
            dealt.append(list(parallel.micro_batches(batch, parts)))
        assert len({len(mine) for mine in dealt}) == 1 and len(dealt[0]) <= parts
        assert sorted(row for mine in dealt for piece, n in mine for row in piece[:n]) == batch
        assert all(piece and n in (0, len(piece)) for mine in dealt for piece, n in mine)


if __name__ == "__main__":
    several(sys.argv[1:])
