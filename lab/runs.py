"""A run: the loop that trains it, and the directory it leaves behind.

A run directory is an HF model directory plus run.json: settings, seed, versions, steps, tokens, seconds, peak memory (of the
process that took most), the loss curve, and the sha256 of the data, of the parent's weights and of its own.
"""

import collections
import hashlib
import io
import json
import math
import platform
import re
import resource
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from common import UserError
from common.files import read_json, sha256, whole_dir, write_file
from common.hf import local_dir
from data import Tokenizer
from lab import parallel
from lab.lora import add_lora, changes, merge_lora, save_adapter
from model import Transformer


# ------------------------------------------------------------------------------------------- run directories
def save_run(path, model, tokenizer, record, parent=""):
    """Write a run directory, all of it or nothing, and drop its checkpoint. -> sha256 of its weights

    A model with LoRA is merged, in place; parent: the model that it changes."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    state, hashes = parallel.gathered(parallel.settled(model).state_dict()) if parallel.sharded(model) else None, {}
    if parallel.rank == 0:
        with whole_dir(path) as d:
            if changes(model):
                save_adapter(model, d / "adapter", parent)
                if (lost := merge_lora(model)) > 0.1:
                    print(f"{path}: rounding to {model.dtype} lost {lost:.0%} of the change; {path}/adapter has it all, "
                          "or train in float32", flush=True)
            model.save_pretrained(d, state)
            tokenizer.save(d)
            hashes = {"model_sha256": sha256(d / "model.safetensors"), "tokenizer_sha256": sha256(d / "tokenizer.json")}
            write_file(d / "run.json", json.dumps({**record, "versions": versions, **hashes}, indent=1) + "\n")
        checkpoint_of(path).unlink(missing_ok=True)
    elif changes(model):
        merge_lora(model)
    return parallel.from_first(hashes.get("model_sha256"))


def checkpoint_of(path):
    """out/target -> out/target.resume.pt: where an unfinished run keeps what --resume needs."""
    return Path(path).with_name(f"{Path(path).name}.resume.pt")


def load_run(path, device="cpu", dtype=None, shard=False):
    """-> (Transformer, Tokenizer, run.json as a dict; {} where a downloaded model has none).

    path: a Path is a directory, a str a directory or a hub id. shard: see lab/parallel.shard. Raises UserError where the directory
    is missing or damaged, or its tokenizer does not fit its model.
    """
    model = Transformer.from_pretrained(made_by_train(path), "cpu" if shard else device, dtype)
    dir = local_dir(path)
    tokenizer, record = Tokenizer.load(dir), read_run(dir)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(f"{dir}: the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}")
    for file, key, what in (("model.safetensors", "model_sha256", "this run wrote"),
                            ("tokenizer.json", "tokenizer_sha256", "this model was trained with")):
        if key in record and (dir / file).exists() and record[key] != sha256(dir / file):
            raise UserError(f"{dir / file} is not the one {what}: its sha256 differs from run.json's {key}")
    return (parallel.shard(model, device) if shard else model).eval(), tokenizer, record


def made_by_train(path):
    """A Path must be there: it is one that train.py writes. -> path"""
    if isinstance(path, Path) and not path.is_dir():
        raise UserError(f"there is no {path}; run python train.py first")
    return path


def read_run(dir):
    """run.json of a run directory as a dict; {} where there is none."""
    file = Path(dir) / "run.json"
    return read_json(file) if file.exists() else {}


def weights_sha256(path):
    """Of a model directory or hub id without run.json: the sha256 of its weights, over all shards."""
    files = sorted(local_dir(path).glob("*.safetensors"))
    return sha256(files[0]) if len(files) == 1 else hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()


def peak_mb(device):
    """Peak memory in MB: of the GPU where there is one, else resident memory of this process since it started."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    status = Path("/proc/self/status")
    if status.exists():                                     # Linux, where getrusage would count the parent's memory too
        return round(int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 2**10, 1)
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(rss / (2**20 if sys.platform == "darwin" else 2**10), 1)


# ------------------------------------------------------------------------------------------------- training
def prepare(model, args):
    """What --checkpointing and --lora make of a model before it is trained, in place."""
    model.checkpointing = args.checkpointing
    if args.lora:
        add_lora(model, args.lora, args.seed)


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
    """Learning rate of one step: linear warm-up over `warmup` steps, then a cosine towards 0."""
    if step < warmup:
        return lr * (step + 1) / warmup
    return lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def fit(model, losses, steps, *, label, lr, warmup, weight_decay, grad_clip, every, optimizer_dtype="float32", check=None,
        checkpoint=None, resume=False, settings=None):
    """The one training loop: AdamW, warm-up and cosine, gradient clipping, progress, resume. -> record for run.json.

    losses(step) yields (loss, tokens, {name: number or scalar tensor}) for each micro-batch of that step; the losses add up to the step's.
    Every `every` steps and at the end the curve gets a point: the mean of those numbers and what check(step) returns;
    there, too, `checkpoint` is written (and removed at the end), from which resume=True goes on, bit for bit.
    Raises UserError when a loss is not finite, or the checkpoint belongs to other settings or is damaged.
    """
    device = next(model.parameters()).device
    optimizer = adamw(parallel.settled(model), lr, weight_decay, optimizer_dtype)
    record = {"steps": steps, "tokens": 0, "seconds": 0.0, "curve": []}
    start = 0
    if resume and checkpoint.exists():
        saved = read_checkpoint(checkpoint, settings)
        parallel.load(model, optimizer, saved)
        start, record = saved["step"], saved["record"]
        print(f"{label}: going on from step {start}", flush=True)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    model.train()
    sums, since, clock = collections.Counter(), 0, time.perf_counter()
    bar = tqdm(total=steps, initial=start, desc=label, unit="step", disable=parallel.rank > 0 or None, leave=False,
               dynamic_ncols=True)
    for step in range(start, steps):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, steps, lr, warmup)
        for loss, tokens, numbers in losses(step):
            value, tokens, numbers = parallel.total(loss.item(), tokens, numbers)
            if not math.isfinite(value):
                raise UserError(f"{label}: the loss is {value} at step {step + 1} of {steps}; a lower --lr may help")
            parallel.backward(model, loss)
            record["tokens"] += tokens
            sums.update(loss=value, **{k: float(v) for k, v in numbers.items()})
        parallel.add_gradients(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        since += 1
        seconds = record["seconds"] + time.perf_counter() - clock
        bar.set_postfix_str(f"loss {sums['loss'] / since:.3f}, {record['tokens'] / seconds:.0f} tokens/s", refresh=False)
        bar.update()
        if (step + 1) % every == 0 or step + 1 == steps:
            record["seconds"] = seconds
            point = {"step": step + 1, "seconds": round(seconds, 2)} | {k: v / since for k, v in sums.items()}
            if check:
                model.eval()
                point |= check(step + 1)
                model.train()
            record["curve"].append(point)
            tqdm.write(f"{label} " + "  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}"
                                               for k, v in point.items()))
            sys.stdout.flush()
            if checkpoint and step + 1 < steps:
                state = {"model": parallel.settled(model).state_dict(), "optimizer": optimizer.state_dict()}
                state = parallel.gathered(state) | {"step": step + 1, "record": record, "settings": settings}
                if parallel.rank == 0:
                    buffer = io.BytesIO()
                    torch.save(state, buffer)
                    write_file(checkpoint, buffer.getvalue())
                del state
            sums, since, clock = collections.Counter(), 0, time.perf_counter()
    bar.close()
    model.eval()
    record["seconds"] = round(record["seconds"], 2)
    return record | {"peak_mb": parallel.largest(peak_mb(device)), "world_size": parallel.world_size,
                     "sharded": parallel.sharded(model)}


def read_checkpoint(path, settings):
    try:
        saved = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as e:
        raise UserError(f"{path} is damaged ({type(e).__name__}); remove it, or leave out --resume") from e
    changed = [f"{k} was {saved['settings'].get(k)}, is {v}" for k, v in settings.items() if saved["settings"].get(k) != v]
    if changed:
        raise UserError(f"{path} was made with other settings ({', '.join(changed)}); give those, or leave out --resume")
    return saved
