"""Files that are there whole or not at all, and files that are read with a word for people when they are broken."""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

from common import UserError


def write_file(path, data):
    """Write bytes or text so that `path` is either the old file or the whole new one: aside, fsync, rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(aside, "wb") as f:
            f.write(data.encode() if isinstance(data, str) else data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_dir(path):
    """`with whole_dir("out/target") as d:` fill d; it takes the place of out/target only when the block ends well."""
    path = Path(path)
    aside, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    aside.mkdir(parents=True)
    try:
        yield aside
        if path.exists():
            path.rename(old)
        aside.rename(path)
    finally:
        if old.exists() and not path.exists():              # stopped between the two renames
            old.rename(path)
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while chunk := f.read(2**20):                       # a file may be larger than memory
            digest.update(chunk)
    return digest.hexdigest()


def check_writable(out):
    """Fail before the work, not after it."""
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        write_file(Path(out) / ".probe", b"")
        (Path(out) / ".probe").unlink(missing_ok=True)        # other processes may be at it too
    except OSError as e:
        raise UserError(f"cannot write to --out={out}: {e.strerror}") from e


def read_json(path):
    """A JSON file of a model directory -> dict. Raises UserError if it is missing or damaged."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as e:
        raise UserError(f"{path} is missing: not a model directory") from e
    except ValueError as e:         # not JSON, or not text
        raise UserError(f"{path} is not valid JSON ({e})") from e
    if not isinstance(value, dict):
        raise UserError(f"{path}: a JSON object is needed, this is {type(value).__name__}")
    return value
