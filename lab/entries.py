"""Which models stand in a report: the runs, those that do not fit, and the forget-teachers of the others."""

from pathlib import Path

from common import UserError
from common.cli import differences
from lab.runs import read_run


def find_runs(out, only):
    """-> {name: path}. All run directories in `out`; or those named (in `out`, or anywhere, or a hub id), and the
    retrained model they are held against where there is one."""
    if only:
        return named_runs(Path(out), only.split(","), only)
    names = sorted(path.parent.name for path in Path(out).glob("[!.]*/run.json"))      # not what is half-written
    first = [name for name in ("base", "target", "retrained") if name in names]
    if "target" not in first or "retrained" not in first:
        raise UserError(f"no target and retrained model in {out}; run python train.py first, or name models "
                        "with --runs")
    return {name: Path(out) / name for name in first + [name for name in names if name not in first]}


def named_runs(out, runs, only):
    """--runs as it was given (only) and as a list -> {name: path}, the path of a hub id a str."""
    if bad := [run for run in runs if not run.strip() or Path(run).name.startswith(".")]:
        raise UserError(f"--runs={only}: {bad[0]!r} is no name of a run")
    if "retrained" not in [Path(run).name for run in runs] and (out / "retrained").is_dir():
        runs = [*runs, "retrained"]
    paths = {Path(run).name: out / run if (out / run).is_dir() else run for run in runs}
    if len(paths) < len(runs):
        raise UserError(f"--runs={only}: two runs of one name; the report calls a run by the last part of its path")
    for path in paths.values():
        if isinstance(path, str) and "/" not in path:
            raise UserError(f"--runs: no run {path} in {out}")
    return paths


def same_data(record, dataset):
    """Whether a run was trained on this data. A target has learnt all rows: which of them are to be forgotten does not
    count, so it may be asked to forget other people than its own split names."""
    split_free = dataset.any_split_sha256                   # none of a benchmark, whose splits are its own
    if record.get("kind") == "target" and split_free and record.get("any_split_sha256") == split_free:
        return True
    return record.get("data_sha256", dataset.sha256) == dataset.sha256


def misfit(name, record, records, rows, forget):
    """Why a run cannot stand in this report, or None."""
    if not same_data(record, rows):
        return f"{name} was trained on other data than --data, --data_seed and --n_authors give"
    kind = record.get("kind")
    if kind in ("retrained", "unlearned") and record["settings"]["forget"] != forget:
        return f"{name} was made for --forget={record['settings']['forget']}, not {forget}"
    if kind == "unlearned" and "model_sha256" in records.get("target", {}):
        parents = {r.get("model_sha256") for n, r in records.items() if n == "target" or r.get("kind") == "unlearned"}
        if record.get("parent_sha256") not in parents:
            return f"{name} was unlearned from another model than this target; run it again"


def fitting(paths, rows, forget, must):
    """The runs that can stand in this report -> (paths, {name: run.json}, a note on each that is left out).

    must: whether all have to, as those that somebody named. Raises UserError where one that has to cannot."""
    paths, records, notes = dict(paths), {name: read_run(path) for name, path in paths.items()}, []
    for name in list(paths):
        if why := misfit(name, records[name], records, rows, forget):
            if must or name in ("target", "retrained"):
                raise UserError(why)
            notes.append(f"left out: {why}")
            del paths[name], records[name]
    target, retrained = (records.get(name, {}).get("settings") for name in ("target", "retrained"))
    if target and retrained and (changed := differences(target, retrained | {"forget": target.get("forget")})):
        notes.append(f"the retrained model differs from the target in more than its data: {', '.join(changed)}")
    return paths, records, notes


def teachers(records):
    """The forget-teachers of the runs that had one -> {name: (tau, layers)}: tau a number, or a table of heads;
    layers a text as --layers has it."""
    smoothings = {}
    for record in records.values():
        if record.get("kind") != "unlearned" or record.get("tau") is None:          # its method has no smoothed teacher
            continue
        tau, layers = record["tau"], record["settings"]["layers"]
        if isinstance(tau, list):                                               # of each head: tau, or 1
            heads, layers = [t for row in tau for t in row], "all"
            name = f"teacher_tau{max(heads):g}_{sum(t != 1 for t in heads)}heads"
        else:
            name = f"teacher_tau{tau:g}" + ("" if layers == "all" else f"_layers{layers}")
        smoothings[name] = tau, layers
    return smoothings


def with_teachers(paths, records):
    """{name: path of a run} -> {name: (path, None, or (tau, layers) that smooth it)}: after target and retrained come
    the forget-teachers, which are the target smoothed."""
    entries, last = {}, "retrained" if "retrained" in paths else "target"
    for name, path in paths.items():
        entries[name] = path, None
        if name == last and "target" in paths:
            entries |= {teacher: (paths["target"], smoothing) for teacher, smoothing in teachers(records).items()}
    return entries
