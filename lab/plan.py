"""What a run will take, by component, without loading a weight: --plan of train.py and asu.py.

Two steps of the longest rows are run on tensors without contents (PyTorch's FakeTensorMode), and every storage that
comes to life is counted until it is freed: no formula for activations that could be wrong about a loss, a flag or a
kernel. On a GPU the sum is what its allocator hands out at most; on a CPU the C library keeps some freed memory for
itself, and bfloat16 kernels theirs: a run takes up to a third more.
"""

import argparse
import contextlib
import functools
import os
import subprocess
import sys
import unittest.mock
import weakref

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common import HOME, UserError
from lab.runs import prepare
from model import Transformer

MB = 2**20


class Live(TorchDispatchMode):
    """Counts the bytes of tensors made while it is entered: `now` alive, and `peak`, of which `logits` over the
    vocabulary.

    It stands in for optim.Log too, so that a loop tells it when theta_0 is remembered and what the optimizer is.
    Tensors kept in CPU memory beside a GPU do not count."""

    def __init__(self, model):
        super().__init__()
        self.label = "plan"
        self.shape, self.device = model.lm_head.weight.shape, model.device                     # (V, C)
        self.alive = {p.untyped_storage()._cdata for p in model.parameters()}
        self.now = self.now_logits = self.peak = self.logits = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            if not isinstance(t, torch.Tensor) or t.device.type != self.device.type:
                continue
            storage = t.untyped_storage()
            if storage._cdata not in self.alive:
                logits = storage.nbytes() if self.shape[0] in t.shape and sorted(t.shape) != sorted(self.shape) else 0
                self.alive.add(storage._cdata)
                self.now, self.now_logits = self.now + storage.nbytes(), self.now_logits + logits
                weakref.finalize(storage, self.free, storage._cdata, storage.nbytes(), logits)
        if self.now > self.peak:
            self.peak, self.logits = self.now, self.now_logits
        return result

    def free(self, key, n, logits):
        self.alive.discard(key)
        self.now, self.now_logits = self.now - n, self.now_logits - logits

    def begin(self, model, optimizer, steps, every):
        self.optimizer, self.theta_0, self.before, self.peak = optimizer, self.now, self.peak, 0
        return 0

    def add(self, name, loss, weight, tokens):
        pass

    def end(self, step):
        pass

    def finish(self):
        pass


def components(config, device, dtype, args, train):
    """What training a model of this config takes -> {component: bytes}.

    args: its flags lora, checkpointing. train(model, log) takes two steps on the longest rows, because the optimizer
    has its state in the second. A tensor without contents has no value; where a loop asks for one it is told 0."""
    taken = {} if device.type == "cuda" else {"Python and libraries": resident()}
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device(device):
        torch.set_default_dtype(dtype)
        try:
            model = Transformer(config).train()
        finally:
            torch.set_default_dtype(torch.float32)
        prepare(model, args)
        taken |= {"weights": sum(p.nbytes for p in model.parameters()),
                  "gradients": sum(p.nbytes for p in model.parameters() if p.requires_grad)}
        with open(os.devnull, "w") as devnull, contextlib.redirect_stdout(devnull), Live(model) as live, \
                unittest.mock.patch.object(torch.Tensor, "item", lambda self: 0.0):
            train(model, live)
        state = [t for t in tree_leaves(live.optimizer.state_dict()) if isinstance(t, torch.Tensor)]
    taken |= {"optimizer": sum(t.nbytes for t in state), "theta_0": live.theta_0, "logits": live.logits}
    rest = live.peak - taken["gradients"] - taken["optimizer"] - live.theta_0 - live.logits
    taken["activations"] = max(0, rest)
    if live.before > live.peak:                                     # healing a teacher takes more than learning from it
        taken["more before the first step"] = live.before - live.peak
    return taken


WARM = """
import os, torch, asu
from lab import optim
from model import ModelConfig, Transformer
model = Transformer(ModelConfig(vocab_size=300, n_layer=1, n_embd=32))
model(torch.zeros(4, 32, dtype=torch.long)).log_softmax(-1).mean().backward()
optim.adamw(model, 1e-3, 0.0).step()
print(int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
"""


@functools.cache
def resident():
    """Bytes that Python and its libraries hold after a step of a tiny model; 0 where the system does not say."""
    done = subprocess.run([sys.executable, "-c", WARM], cwd=HOME, capture_output=True, text=True)
    return int(done.stdout) if done.returncode == 0 else 0


def capacity(device):
    """Bytes of a GPU that are free or this process's, or the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def smaller(args):
    """Flags that make a run smaller -> {how they are written: args with them}"""
    changes = {"--checkpointing": {"checkpointing": True},
               f"--micro_batches={args.batch_size}": {"micro_batches": args.batch_size}, "--lora=16": {"lora": 16}}
    if getattr(args, "start", 1) < 1:
        del changes["--lora=16"]                            # asu.py refuses it beside --start
    changes[" ".join(changes)] = {k: v for change in changes.values() for k, v in change.items()}
    return {flags: argparse.Namespace(**vars(args) | change) for flags, change in changes.items()}


def advice(take, args, device):
    """What would fit, in a few words. take(args) -> {component: bytes}"""
    for flags, changed in smaller(args).items():
        if (total := sum(take(changed).values())) <= capacity(device):
            return f"{flags} would take {total / MB:.0f} MB and fit"
    return f"even with {flags} it would take {total / MB:.0f} MB: a smaller model or a larger device is needed"


def show(take, args, device):
    """Print the table of --plan."""
    if args.shard:
        raise UserError("--plan counts what one process takes with the whole model; leave out --shard")
    taken = take(args)
    total, room = sum(taken.values()), capacity(device)
    for name, n in taken.items():
        print(f"{name:>26}  {n / MB:9.1f} MB")
    print(f"{'in all':>26}  {total / MB:9.1f} MB of {room / MB:.0f} MB on {device}: "
          + ("it fits" if total <= room else f"it does not fit; {advice(take, args, device)}"))


@contextlib.contextmanager
def explained(take, args, device):
    """Out of memory inside becomes one line that says what would fit."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as e:
        if not isinstance(e, (torch.OutOfMemoryError, MemoryError)) and "can't allocate memory" not in str(e):
            raise
    else:
        return
    if args.shard:
        raise UserError(f"out of memory on {device}; more processes, --checkpointing or "
                        f"--micro_batches={args.batch_size} take less")
    taken = take(args)
    raise UserError(f"out of memory on {device}: this takes {sum(taken.values()) / MB:.0f} MB ("
                    + ", ".join(f"{k} {v / MB:.0f}" for k, v in taken.items()) + f"); {advice(take, args, device)}")
