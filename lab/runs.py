"""A run: the directory that training leaves behind.

A run directory is an HF model directory plus run.json: settings, seed, versions, steps, tokens, seconds, peak memory
(of the process that took most), the loss curve, the sha256 of the data, of the parent's weights and of each file that
belongs to the run. Its README.md is a model card, see lab/card.py.
"""

import hashlib
import os
import platform
import re
from pathlib import Path

import torch
from safetensors import SafetensorError

from common import HOME, UserError
from common.cli import differences
from common.files import check_file, files_in, sha256, strict_json, whole_dir, write_file
from common.hf import local_dir, say
from data import Tokenizer
from lab import parallel
from lab.card import card
from lab.lora import add_lora, changes, merge_lora, save_adapter
from lab.records import check_files, read_run, record_sha256
from model import Transformer

REPORTS = (".json", ".md", ".png", ".pt")       # what files in OUT end in
CARD = "README.md"
LONGEST_NAME = 120                              # bytes; a file's name may have 255, and scratch names are longer


# ------------------------------------------------------------------------------------------- run directories
def save_run(path, model, tokenizer, record, parent=""):
    """Write a run directory, all of it or nothing, and drop its checkpoint. -> sha256 of its weights

    A model with LoRA is merged, in place; parent: the model that it changes."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    state, hashes = parallel.gathered(parallel.settled(model).state_dict()) if parallel.sharded(model) else None, {}
    if parallel.rank == 0:
        own = read_run(path).get("files", ())
        with whole_dir(path, own) as d:
            if changes(model):
                save_adapter(model, d / "adapter", parent)
                if (lost := merge_lora(model)) > 0.1:
                    print(f"{path}: rounding to {model.dtype} lost {lost:.0%} of the change; {path}/adapter has all "
                          "of it, or train in float32", flush=True)
            check_finite(state or model.state_dict(), path)
            try:
                model.save_pretrained(d, state)
            except SafetensorError as e:
                raise UserError(f"{path} could not be written: {e}") from e
            tokenizer.save(d)
            sha = {file: sha256(d / file) for file in files_in(d)}
            hashes = {"model_sha256": sha["model.safetensors"], "tokenizer_sha256": sha["tokenizer.json"]}
            record = {**record, "versions": versions, **hashes, "sha256": sha, "files": [*sha, "run.json"]}
            if CARD in own or not (Path(path) / CARD).exists():         # else it is somebody's
                write_file(d / CARD, card(Path(path).name, record, parent))
                record["files"].append(CARD)
            write_file(d / "run.json", strict_json(record | {"record_sha256": record_sha256(record)}))
        checkpoint_of(path).unlink(missing_ok=True)
    elif changes(model):
        merge_lora(model)
    return parallel.from_first(hashes.get("model_sha256"))


def check_finite(state, where):
    """Raises UserError for weights that are nan or infinite."""
    for name, weight in state.items():
        if not torch.isfinite(weight).all():
            raise UserError(f"{where}: weight {name} holds values that are no numbers (nan or infinite); a run that "
                            "diverged is of no use, and a lower --lr may help")


def check_name(name):
    """Raises UserError for a run's name that is no plain name, or that other parts of the repository write in OUT."""
    taken = {"base", "target", "retrained", "data", *(path.stem for path in (HOME / "experiments").glob("[a-z]*.py"))}
    if not re.fullmatch(r"\w[\w.-]*", name) or name.lower() in taken:
        raise UserError(f"--name={name}: a plain name is needed that is none of {', '.join(sorted(taken))}")
    if Path(name).suffix.lower() in REPORTS:
        raise UserError(f"--name={name}: a run is a directory; a name that ends in {', '.join(REPORTS)} is a file's")
    if len(name.encode()) > LONGEST_NAME:
        raise UserError(f"--name={name[:20]}...: {len(name.encode())} bytes are more than the {LONGEST_NAME} that a "
                        "run's name may have")


def check_place(path, settings, overwrite, resume=True):
    """Refuse, before any work, to write a run where something else is: what is no run of ours, or, without
    --overwrite, a finished run of other settings. Say so where a finished run is made anew, which resume=True keeps."""
    path, hint = Path(path), "move it away, or choose another --out or --name"
    if not os.path.lexists(path) or path.is_dir() and not any(path.iterdir()):
        return
    if not path.is_dir():
        raise UserError(f"{path} is a file or a link to nothing, and a run is a directory; {hint}")
    record = read_run(path)
    if not isinstance(record.get("settings"), dict) or "model_sha256" not in record:
        first = next(iter(files_in(path)), "nothing that train.py or asu.py wrote")
        raise UserError(f"{path} is not a run of ours, it holds {first}; {hint}")
    changed = differences(record | record["settings"], settings)
    if changed and not overwrite:
        raise UserError(f"{path} is a finished run of other settings ({', '.join(changed)}); --overwrite replaces it, "
                        "another --out or --name keeps both")
    if not resume and parallel.rank == 0:
        print(f"replacing {path}, which had the same settings; --resume keeps it" if not changed else
              f"replacing {path}, a run of other settings ({', '.join(changed)})", flush=True)


def checkpoint_of(path):
    """out/target -> out/target.resume.pt: where an unfinished run keeps what --resume needs."""
    return Path(path).with_name(f"{Path(path).name}.resume.pt")


def load_tokenizer(path, args=None):
    """The Tokenizer of a model directory or hub id. args: flags, of which --template and --tokenizer count.

    Says once how a model is asked that somebody else has made."""
    dir = local_dir(path, weights=False)
    check_file(dir / "tokenizer.json")
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
    check_finite(model.state_dict(), path)
    if (token := tokenizer.beyond(model.config.vocab_size)) is not None:
        raise UserError(f"{dir}: the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}; "
                        f"it has no place for {token!r}")
    check_files(dir, record)
    return (parallel.shard(model, device) if shard else model).eval(), tokenizer, record


def made_by_train(path):
    """A Path must be there: it is one that train.py writes. -> path"""
    if isinstance(path, Path) and not path.is_dir():
        raise UserError(f"there is no {path}; run python train.py first")
    return path


def made_from(path):
    """What a model that train.py made was fine-tuned from: a directory or hub id, OUT/base without --init_from."""
    return read_run(local_dir(path)).get("settings", {}).get("init_from") or Path(path).parent / "base"


def weights_sha256(path):
    """Of a model directory or hub id without run.json: the sha256 of its weights, over all shards."""
    files = sorted(local_dir(path).glob("*.safetensors"))
    return sha256(files[0]) if len(files) == 1 else hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()


def prepare(model, args):
    """What --checkpointing and --lora make of a model before it is trained, in place."""
    model.checkpointing = args.checkpointing
    if args.lora:
        add_lora(model, args.lora, args.seed)
