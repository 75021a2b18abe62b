"""Files that are there whole or not at all, and files that are read with a word for people when they are broken.

What is being written has a name of its own, a *scratch* name: .NAME.PLACE-PID-START-RANDOM.tmp (or .old: what is about
to be replaced). PLACE stands for machine and container, START tells a process from an older one of the same number.
"""

import contextlib
import hashlib
import json
import math
import os
import platform
import re
import secrets
import shutil
import time
from pathlib import Path

from common import UserError

SCRATCH = re.compile(r"\.(.+)\.([0-9a-f]{8})-(\d+)-(\d+)-[0-9a-f]{8}\.(tmp|old)")
FORGOTTEN = 24 * 3600   # seconds after which scratch of another machine or container counts as left behind


# ----------------------------------------------------------------------------------------------- scratch names
def place():
    """Eight letters for this machine and this container, in which process numbers mean something."""
    namespace = Path("/proc/self/ns/pid")
    name = platform.node() + (os.readlink(namespace) if namespace.is_symlink() else "")
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def started(pid):
    """When a process started, in ticks since the machine did; 0 where the system does not say; None: it is not there"""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            return int(stat.read_bytes().rpartition(b")")[2].split()[19])
        except (OSError, IndexError):
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:                                 # somebody else's, but there
        pass
    return 0


def scratch(path, end):
    """A name beside `path` that nobody has used, nor will."""
    pid = os.getpid()
    return path.with_name(f".{path.name}.{place()}-{pid}-{started(pid)}-{secrets.token_hex(4)}.{end}")


def tidy(folder):
    """Remove what dead processes left half-written in a directory. What they were about to replace is put back."""
    left = sorted((path for path in Path(folder).glob(".*") if SCRATCH.fullmatch(path.name)),
                  key=lambda path: not path.name.endswith(".old"))
    for path in left:
        name, where, pid, start, end = SCRATCH.fullmatch(path.name).groups()
        with contextlib.suppress(OSError):                  # another process may be tidying too
            if where == place():
                alive = started(int(pid)) == int(start)
            else:
                alive = time.time() - path.lstat().st_ctime < FORGOTTEN
            if alive:
                continue
            if end == "old" and not os.path.lexists(path.with_name(name)):
                path.rename(path.with_name(name))
            else:
                remove(path)


def remove(path):
    """A file, a link or a directory; nothing where there is none. What a link points to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------- whole files
def write_file(path, data):
    """Write bytes or text so that `path` is either the old file or the whole new one: aside, fsync, rename. What a
    killed process left half-written beside it goes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tidy(path.parent)
    aside = scratch(path, "tmp")
    try:
        with open(aside, "wb") as f:
            f.write(data.encode() if isinstance(data, str) else data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(aside, path)
    except OSError as e:
        if e.errno:
            e.filename = str(path)                          # a full disk does not say which file
        raise
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_dir(path, own=()):
    """`with whole_dir("out/target") as d:` fill d; it takes the place of out/target only when the block ends well.

    own: the files of the old directory, as "adapter/config.json", that may go with it. Any other is somebody's: it
    stays, in the new directory, unless that has a file of its name."""
    path = Path(path)
    aside, old = scratch(path, "tmp"), scratch(path, "old")
    aside.mkdir(parents=True)
    try:
        yield aside
        mode = aside.stat().st_mode & 0o666                 # safetensors makes files that nobody else can read
        for file in aside.rglob("*"):
            if file.is_file():
                file.chmod(mode)
        for file in files_in(path):
            if file not in own and not os.path.lexists(aside / file):
                (aside / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path / file, aside / file, follow_symlinks=False)
        if os.path.lexists(path):
            path.rename(old)
        aside.rename(path)
    finally:
        if os.path.lexists(old) and not os.path.lexists(path):      # stopped between the two renames
            old.rename(path)
        remove(aside)
        remove(old)


def files_in(path):
    """The files of a directory and those below it, as names from it: ["run.json", "adapter/config.json"]"""
    path = Path(path)
    if not path.is_dir() or path.is_symlink():
        return []
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*")
                  if file.is_symlink() or not file.is_dir())


def check_file(path):
    """Raises UserError where what has a file's name is none: a directory, a link to nothing, a pipe, which would never
    end."""
    if os.path.lexists(path) and not os.path.isfile(path):
        raise UserError(f"{path} is not a file, but a directory, a pipe or a link to nothing")


def sha256(path, size=None):
    """Of a file, or of its first `size` bytes."""
    digest = hashlib.sha256()
    left = os.path.getsize(path) if size is None else size
    with open(path, "rb") as f:
        while chunk := f.read(min(2**20, left)):            # a file may be larger than memory
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()


def check_writable(out, names=()):
    """Fail before the work, not after it; and clear away what killed processes left. names: of files that will be
    written there."""
    for name in names:
        check_file(Path(out) / name)
    try:
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        probe = scratch(out / "probe", "tmp")
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise UserError(f"cannot write to --out={out}: {e.strerror}") from e
    tidy(out)


def strict_json(value):
    """-> JSON text, one space of indent. JSON knows no nan and no infinity: they become null."""
    def finite(x):
        if isinstance(x, dict):
            return {key: finite(v) for key, v in x.items()}
        if isinstance(x, (list, tuple)):
            return [finite(v) for v in x]
        return None if isinstance(x, float) and not math.isfinite(x) else x
    return json.dumps(finite(value), indent=1, allow_nan=False) + "\n"


def from_json(text):
    """JSON text -> value. Raises ValueError for what is none, or holds half a character, RecursionError if too deep."""
    value = json.loads(text)
    if re.search(r"\\u[dD][89a-fA-F]", text):
        json.dumps(value, ensure_ascii=False).encode()
    return value


def read_json(path, default=None):
    """A JSON file of a model or a result, in UTF-8 whatever the locale -> dict; `default`, if given, where none is.

    Raises UserError where it is missing or damaged."""
    check_file(path)
    try:
        value = from_json(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError as e:
        if default is not None:
            return default
        raise UserError(f"{path} is missing: not a model directory") from e
    except (ValueError, RecursionError) as e:               # not JSON, not text, or nested without end
        raise UserError(f"{path} is not valid JSON and so damaged ({e})") from e
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: a JSON object is needed, this is {type(value).__name__}")
    return value
