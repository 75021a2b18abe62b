"""run.json, what a run tells of itself: read with a check of every value, and held against the files beside it."""

import hashlib
import json
import math
import os
import re
from pathlib import Path

from common import UserError
from common.cli import LAYERS
from common.files import read_json, sha256, strict_json
from common.hf import AROUND


def is_number(x):
    return type(x) in (int, float) and math.isfinite(x) and abs(x) < 1e300


def is_curve(x):
    points = x if isinstance(x, list) else [None]
    return all(isinstance(point, dict) and point.keys() == points[0].keys() and is_number(point.get("seconds"))
               and all(v is None or is_number(v) for v in point.values()) for point in points)


def is_tau(x):
    return x is None or is_number(x) and x > 0 or isinstance(x, list) and all(
        isinstance(row, list) and row and all(is_number(t) and t > 0 for t in row) for row in x)


TEXT, NUMBER = (lambda x: isinstance(x, str), "a text"), (lambda x: x is None or is_number(x), "a number")
RECORD = {      # what run.json's values may be
    "kind": TEXT, "forget": TEXT, "model_sha256": TEXT, "tokenizer_sha256": TEXT, "parent_sha256": TEXT,
    "data_sha256": TEXT, "world_sha256": TEXT, "record_sha256": TEXT, "seconds": NUMBER, "peak_mb": NUMBER,
    "tokens": NUMBER, "steps": NUMBER, "settings": (lambda x: isinstance(x, dict), "an object"),
    "curve": (is_curve, "a list of points of the same numbers, seconds among them"),
    "tau": (is_tau, "a number above 0, or a table of them"),
    "files": (lambda x: isinstance(x, list) and all(isinstance(file, str) for file in x), "a list of names"),
    "sha256": (lambda x: isinstance(x, dict) and all(isinstance(sha, str) for sha in x.values()), "names and hashes")}


def read_run(dir):
    """run.json of a run directory as a dict; {} where there is none. Raises UserError for a value it cannot have."""
    file = Path(dir) / "run.json"
    record = read_json(file) if os.path.lexists(file) else {}
    for key, (good, words) in RECORD.items():
        if key in record and not good(record[key]):
            raise UserError(f"{file}: {key}={repr(record[key])[:60]} is not {words}")
    settings = record.get("settings", {})
    if record.get("kind") in ("retrained", "unlearned") and not isinstance(settings.get("forget"), str):
        raise UserError(f"{file}: its settings have no forget set")
    if record.get("kind") == "unlearned" and not re.fullmatch(f"all|{LAYERS}", str(settings.get("layers"))):
        raise UserError(f"{file}: its settings have no layers")
    return record


def check_files(dir, record):
    """Raises UserError, naming the file, where one that a run wrote is gone or another, or one has come that is read
    beside it. record: its run.json; what an older one does not tell is not checked."""
    known = record.get("sha256", {})
    older = {"model.safetensors": record.get("model_sha256"), "tokenizer.json": record.get("tokenizer_sha256")}
    for file, sha in (older | known).items():
        if sha and not (dir / file).is_file():
            if not file.startswith("adapter/") and file in known:       # the change by itself is read by nobody here
                raise UserError(f"{dir / file}, which this run wrote, is missing")
        elif sha and sha256(dir / file) != sha:
            raise UserError(f"{dir / file} is not the one this run wrote: its sha256 differs from run.json's")
    if foreign := [file for file in AROUND if known and file not in (*known, "run.json") and (dir / file).exists()]:
        raise UserError(f"{dir / foreign[0]} is not of this run, and would change what the model says; move it away")
    if record.get("record_sha256", record_sha256(record)) != record_sha256(record):
        raise UserError(f"{dir / 'run.json'} was changed by hand: its sha256 differs from the one that stands in it")


def record_sha256(record):
    """Of what run.json says, itself left out."""
    text = strict_json({key: value for key, value in record.items() if key != "record_sha256"})
    return hashlib.sha256(json.dumps(json.loads(text), sort_keys=True).encode()).hexdigest()
