"""A run: the directory that training leaves behind.

A run directory is an HF model directory plus run.json: settings, seed, versions, steps, tokens, seconds, peak memory
(of the process that took most), the loss curve, and the sha256 of the data, of the parent's weights and of its own.
"""

import hashlib
import json
import platform
import re
from pathlib import Path

import torch

from common import HOME, UserError
from common.files import read_json, sha256, whole_dir, write_file
from common.hf import local_dir, say
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
                    print(f"{path}: rounding to {model.dtype} lost {lost:.0%} of the change; {path}/adapter has all "
                          "of it, or train in float32", flush=True)
            model.save_pretrained(d, state)
            tokenizer.save(d)
            hashes = {"model_sha256": sha256(d / "model.safetensors"), "tokenizer_sha256": sha256(d / "tokenizer.json")}
            write_file(d / "run.json", json.dumps({**record, "versions": versions, **hashes}, indent=1) + "\n")
        checkpoint_of(path).unlink(missing_ok=True)
    elif changes(model):
        merge_lora(model)
    return parallel.from_first(hashes.get("model_sha256"))


def check_name(name):
    """Raises UserError for a run's name that is no plain name, or that other parts of the repository write in OUT."""
    taken = {"base", "target", "retrained", "data", *(path.stem for path in (HOME / "experiments").glob("[a-z]*.py"))}
    if not re.fullmatch(r"\w[\w.-]*", name) or name in taken:
        raise UserError(f"--name={name}: a plain name is needed that is none of {', '.join(sorted(taken))}")


def checkpoint_of(path):
    """out/target -> out/target.resume.pt: where an unfinished run keeps what --resume needs."""
    return Path(path).with_name(f"{Path(path).name}.resume.pt")


def load_tokenizer(path, args=None):
    """The Tokenizer of a model directory or hub id. args: flags, of which --template and --tokenizer count.

    Says once how a model is asked that somebody else has made."""
    dir = local_dir(path, weights=False)
    template, other = getattr(args, "template", None), getattr(args, "tokenizer", None)
    if other and not (dir / "tokenizer.json").exists():
        dir = local_dir(other, weights=False)
    elif other:
        say(f"{path} has a tokenizer of its own; --tokenizer={other} is for models without one")
    if not (dir / "tokenizer.json").exists():
        raise UserError(f"{dir / 'tokenizer.json'} is missing; --tokenizer=DIR_OR_HUB_ID takes that of another model")
    tokenizer = Tokenizer.load(dir, template)
    if not tokenizer.ours and parallel.rank == 0:
        say(f"{path}: asked in {tokenizer.template}, {tokenizer.prompt_text('QUESTION')!r:.250}")
    return tokenizer


def load_run(path, device="cpu", dtype=None, shard=False, args=None):
    """-> (Transformer, Tokenizer, run.json as a dict; {} where a downloaded model has none).

    path: a Path is a directory, a str a directory or a hub id. shard: see lab/parallel.shard. args: flags, see
    load_tokenizer. Raises UserError where the directory is missing or damaged, or its tokenizer does not fit its model.
    """
    dir = local_dir(made_by_train(path))
    tokenizer, record = load_tokenizer(path, args), read_run(dir)           # before the weights, which take their time
    model = Transformer.from_pretrained(dir, "cpu" if shard else device, dtype)
    if (token := tokenizer.beyond(model.config.vocab_size)) is not None:
        raise UserError(f"{dir}: the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}; "
                        f"it has no place for {token!r}")
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


def prepare(model, args):
    """What --checkpointing and --lora make of a model before it is trained, in place."""
    model.checkpointing = args.checkpointing
    if args.lora:
        add_lora(model, args.lora, args.seed)
