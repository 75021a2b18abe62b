"""What the training loops of train.py and asu.py share: optimizer, learning rate, and the log (curve, progress,
resume)."""

import collections
import hashlib
import io
import math
import re
import resource
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from common import UserError
from common.cli import differences
from common.files import check_file, sha256, write_file
from lab import parallel


# ---------------------------------------------------------------------------------------------- optimizer
def adamw(model, lr, weight_decay, dtype="float32"):
    """AdamW, weight decay on matrices only; fused where the device has it. dtype: of its state, see Float32AdamW."""
    weights = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in weights if p.dim() >= 2], "weight_decay": weight_decay},
              {"params": [p for p in weights if p.dim() < 2], "weight_decay": 0.0}]
    kind = torch.optim.AdamW if weights[0].dtype == getattr(torch, dtype) else Float32AdamW
    return kind(groups, lr=lr, betas=(0.9, 0.98), fused=weights[0].device.type in ("cpu", "cuda"))


class Float32AdamW(torch.optim.AdamW):
    """AdamW on float32 copies of bfloat16 weights, which are rounded from them after every step.

    A weight of 0.02 in bfloat16 cannot tell steps below 3e-5 from none; its copy adds them up."""

    def __init__(self, groups, **kw):
        self.weights = [p for group in groups for p in group["params"]]
        super().__init__([group | {"params": [p.detach().float() for p in group["params"]]} for group in groups], **kw)

    @property
    def copies(self):
        return [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self):
        for weight, exact in zip(self.weights, self.copies):
            exact.grad, weight.grad = None if weight.grad is None else weight.grad.float(), None
        super().step()
        for weight, exact in zip(self.weights, self.copies):
            weight.copy_(exact)
            exact.grad = None

    def zero_grad(self, set_to_none=True):
        for weight in self.weights:
            weight.grad = None

    def state_dict(self):
        return super().state_dict() | {"copies": self.copies}

    def load_state_dict(self, state):
        super().load_state_dict({k: v for k, v in state.items() if k != "copies"})
        with torch.no_grad():
            for exact, saved in zip(self.copies, state["copies"]):
                exact.copy_(saved)


def lr_at(step, steps, lr, warmup):
    """Learning rate of one step: linear warm-up over int(warmup * steps) + 1 steps, then a cosine towards 0."""
    warmup = int(warmup * steps) + 1
    if step < warmup:
        return lr * (step + 1) / warmup
    return lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


# ---------------------------------------------------------------------------------------------------- log
class Log:
    """Keeps the record of a run while it trains: steps, tokens, seconds, the curve. Shows progress; writes what
    --resume needs.

    A loop calls begin once, add for every loss that goes backward, end after every step, finish at last. Time counts
    from when the log is made, but for the checks. check(): more numbers for each point of the curve. checkpoint: the
    file that resume reads; settings: of the run, which a checkpoint must match."""

    def __init__(self, label, check=None, checkpoint=None, resume=False, settings=None):
        self.label, self.check, self.checkpoint, self.resume, self.settings = label, check, checkpoint, resume, settings
        self.record = {"steps": 0, "tokens": 0, "seconds": 0.0, "curve": []}
        self.sums, self.since, self.clock = collections.Counter(), 0, time.perf_counter()

    def begin(self, model, optimizer, steps, every):
        """-> the step to start from. every: steps between two points of the curve and checkpoints."""
        self.model, self.optimizer, self.steps, self.every, start = model, optimizer, steps, every, 0
        if self.resume and self.checkpoint.exists():
            saved = read_checkpoint(self.checkpoint, self.settings)
            if why := misfit(saved, model, optimizer, steps):
                raise UserError(f"{self.checkpoint} does not fit this run ({why}); remove it, or leave out --resume")
            parallel.load(model, optimizer, saved)
            start, self.record = saved["step"], saved["record"]
            print(f"{self.label}: going on from step {start}", flush=True)
        self.record["steps"], self.step = steps, start
        if model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(model.device)
        self.bar = tqdm(total=steps, initial=start, desc=self.label, unit="step", disable=parallel.rank > 0 or None,
                        leave=False, dynamic_ncols=True)
        return start

    def add(self, name, loss, weight, tokens):
        """A term of a micro-batch: its name ("": the loss has one term), its value, what it counts in the sum, tokens
        run over.

        Raises UserError where it is not finite."""
        loss, tokens = parallel.total(loss, tokens)
        if not math.isfinite(loss):
            raise UserError(f"{self.label}: the loss is {loss} at step {self.step + 1} of {self.steps}; "
                            "a lower --lr may help")
        self.record["tokens"] += tokens
        self.sums["loss"] += weight * loss
        if name:
            self.sums[f"{name}_loss"] += loss

    def end(self, step):
        """After the optimizer's step: progress; now and then a point of the curve and a checkpoint."""
        self.since, self.step = self.since + 1, step + 1
        seconds = self.record["seconds"] + time.perf_counter() - self.clock
        loss, speed = self.sums["loss"] / self.since, self.record["tokens"] / seconds
        self.bar.set_postfix_str(f"loss {loss:.3f}, {speed:.0f} tokens/s", refresh=False)
        self.bar.update()
        if (step + 1) % self.every and step + 1 < self.steps:
            return
        self.record["seconds"] = seconds
        point = {"step": step + 1, "seconds": round(seconds, 2)} | {k: v / self.since for k, v in self.sums.items()}
        if self.check:
            self.model.eval()
            point |= self.check()
            self.model.train()
        self.record["curve"].append(point)
        tqdm.write(f"{self.label} " + "  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}"
                                                for k, v in point.items()))
        sys.stdout.flush()
        if self.checkpoint and step + 1 < self.steps:
            self.save(step + 1)
        self.sums, self.since, self.clock = collections.Counter(), 0, time.perf_counter()

    def save(self, step):
        """Write the checkpoint: with it a resumed run ends in the same bytes."""
        state = {"model": parallel.settled(self.model).state_dict(), "optimizer": self.optimizer.state_dict()}
        state = parallel.gathered(state) | {"step": step, "record": self.record, "settings": self.settings}
        if parallel.rank == 0:
            write_checkpoint(self.checkpoint, state)

    def finish(self):
        self.bar.close()
        seconds = self.record["seconds"] or time.perf_counter() - self.clock        # no step, no point of the curve
        peak = parallel.largest(peak_mb(self.model.device))
        self.record |= {"seconds": round(seconds, 2), "peak_mb": peak,
                        "world_size": parallel.world_size, "sharded": parallel.sharded(self.model)}


ENDING = "\nsha256 {}\n"     # of a checkpoint: the hash of what torch.save wrote before it
ENDING_SIZE = len(ENDING.format("0" * 64))


def write_checkpoint(path, state):
    """Write a checkpoint and its own hash behind it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    buffer.write(ENDING.format(digest).encode())
    write_file(path, buffer.getbuffer())


def read_checkpoint(path, settings):
    """A checkpoint of Log. Raises UserError where it is damaged or of other settings."""
    def damaged(why):
        return UserError(f"{path} is damaged ({why}); remove it, or leave out --resume")
    check_file(path)
    size = path.stat().st_size - ENDING_SIZE
    with open(path, "rb") as f:
        f.seek(max(0, size))
        ending = f.read()
    if size < 0 or ending != ENDING.format(sha256(path, size)).encode():
        raise damaged("its bytes do not have the hash that it ends in")
    try:
        saved = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as e:
        raise damaged(type(e).__name__) from e
    kinds = {"model": dict, "optimizer": dict, "step": int, "record": dict, "settings": dict}
    for key, kind in kinds.items():
        if not isinstance(saved, dict) or not isinstance(saved.get(key), kind):
            raise damaged(f"no {key}")
    if changed := differences(saved["settings"], settings):
        raise UserError(f"{path} was made with other settings ({', '.join(changed)}); give those, or leave out "
                        "--resume")
    return saved


def misfit(saved, model, optimizer, steps):
    """Why a checkpoint is not one of this model, this optimizer and so many steps, or None.

    torch itself would write a moment of another shape over memory that is not its own."""
    def shape(x):
        return tuple(x.shape) if torch.is_tensor(x) else type(x)
    state, weights = saved["optimizer"], [p for group in optimizer.param_groups for p in group["params"]]
    if not 0 < saved["step"] < steps:
        return f"its step is {saved['step']} of {steps}"
    if not Log("").record.keys() <= saved["record"].keys() or not isinstance(saved["record"]["curve"], list):
        return "it has no record"
    if {k: shape(x) for k, x in saved["model"].items()} != {k: shape(p) for k, p in model.state_dict().items()}:
        return "its weights have other names or shapes"
    ours, theirs = optimizer.state_dict()["param_groups"], state.get("param_groups")
    if not isinstance(theirs, list) or not all(isinstance(group, dict) for group in theirs):
        return "it has no optimizer"
    if [group["params"] for group in ours] != [group.get("params") for group in theirs] or any(
            group.keys() - other.keys() for group, other in zip(ours, theirs)):
        return "its optimizer is of another kind"
    if not isinstance(state.get("state"), dict) or not state["state"].keys() <= set(range(len(weights))):
        return "its optimizer has no state, or that of more weights"
    for number, moments in state["state"].items():
        expected = {"step": (), "exp_avg": shape(weights[number]), "exp_avg_sq": shape(weights[number])}
        if not isinstance(moments, dict) or {key: shape(x) for key, x in moments.items()} != expected:
            return f"its optimizer's moments of weight {number} have other names or shapes than {expected}"
    copied = weights if isinstance(optimizer, Float32AdamW) else []
    if [shape(x) for x in state.get("copies", [])] != [shape(p) for p in copied]:
        return "its copies of weights have other shapes"
    return None


def peak_mb(device):
    """Peak memory in MB: of the GPU where there is one, else resident memory of this process since it started."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    status = Path("/proc/self/status")
    if status.exists():                                     # Linux, where getrusage would count the parent's memory too
        return round(int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 2**10, 1)
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(rss / (2**20 if sys.platform == "darwin" else 2**10), 1)
