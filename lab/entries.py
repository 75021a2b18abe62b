"""Which models stand in a report: the runs, those that do not fit, and the forget-teachers of the others."""

import contextlib
from pathlib import Path

from common import UserError
from common.cli import differences, mistake
from lab.runs import read_run


def find_runs(out, only, retrained=None):
    """-> {name: path}. All run directories in `out`; or those named (in `out`, or anywhere, or a hub id), and the
    retrained model they are held against where there is one.

    retrained: in place of OUT/retrained a directory or hub id, or a file, the log of one, which is no run."""
    out = Path(out)
    if only:
        paths = named_runs(out, only, retrained)
    else:
        paths = {path.parent.name: path.parent for path in sorted(out.glob("[!.]*/run.json"))}     # not half-written
        if "target" not in paths or "retrained" not in paths and not retrained:
            raise UserError(f"no target and retrained model in {out}; run python train.py first, or name models "
                            "with --runs")
    if retrained:
        paths.pop("retrained", None)
        if not Path(retrained).is_file():
            paths["retrained"] = Path(retrained) if Path(retrained).is_dir() else retrained
    first = [name for name in ("base", "target", "retrained") if name in paths] if not only else []
    return {name: paths[name] for name in dict.fromkeys([*first, *paths])}


def named_runs(out, only, retrained):
    """--runs -> {name: path}, the path of a hub id a str. retrained: what stands for the retrained model, if not
    OUT/retrained."""
    runs = only.split(",")
    if bad := [run for run in runs if not run.strip() or Path(run).name.startswith(".")]:
        raise UserError(f"--runs={only}: {bad[0]!r} is no name of a run")
    if not retrained and "retrained" not in [Path(run).name for run in runs] and (out / "retrained").is_dir():
        runs = [*runs, "retrained"]
    paths = {Path(run).name: out / run if (out / run).is_dir() else run for run in runs}
    if len(paths) < len(runs):
        raise UserError(f"--runs={only}: two runs of one name; the report calls a run by the last part of its path")
    for path in paths.values():
        if isinstance(path, str) and "/" not in path:
            raise UserError(f"--runs: no run {path} in {out}")
    return paths


def other_data(name, record, dataset):
    """Why a run does not go with this data, or None: it was trained on other. A target has learnt all rows: which of
    them are to be forgotten does not count, so it may be asked to forget other people than its own split names."""
    split_free = dataset.any_split_sha256                   # none of a benchmark, whose splits are its own
    if record.get("kind") == "target" and split_free and record.get("any_split_sha256") == split_free:
        return None
    if record.get("data_sha256", dataset.sha256) != dataset.sha256:
        return f"{name} was trained on other data than --data, --data_seed and --n_authors give"


def misfit(name, record, records, dataset, forget):
    """Why a run cannot stand in this report, or None."""
    if why := other_data(name, record, dataset):
        return why
    kind = record.get("kind")
    if kind in ("retrained", "unlearned") and record["settings"]["forget"] != forget:
        return f"{name} was made for --forget={record['settings']['forget']}, not {forget}"
    if kind == "unlearned" and "model_sha256" in records.get("target", {}):
        parents = {r.get("model_sha256") for n, r in records.items() if n == "target" or r.get("kind") == "unlearned"}
        if record.get("parent_sha256") not in parents:
            return f"{name} was unlearned from another model than this target; run it again"


def fitting(paths, dataset, forget, named):
    """The runs that can stand in this report -> (paths, {name: run.json}, notes, {name: why it cannot be measured}).

    named: whether somebody named them; of others, those that do not fit are left out with a note. Raises UserError
    where target or retrained are of other data."""
    paths, records, notes, failures = dict(paths), {}, [], {}
    for name, path in paths.items():
        records[name] = {}
        with noting(failures, name):
            records[name] = read_run(path)
    for name in list(paths):
        if not (why := misfit(name, records[name], records, dataset, forget)):
            continue
        if name in ("target", "retrained"):
            raise UserError(why)
        if named:
            failures[name] = why
        else:
            notes.append(f"left out: {why}")
            del paths[name], records[name]
    target, retrained = (records.get(name, {}).get("settings") for name in ("target", "retrained"))
    if target and retrained and (changed := differences(target, retrained | {"forget": target.get("forget")})):
        notes.append(f"the retrained model differs from the target in more than its data: {', '.join(changed)}")
    return paths, records, notes, failures


@contextlib.contextmanager
def noting(failures, name):
    """What goes wrong in the block, and is no bug of ours, becomes failures[name], one line."""
    try:
        yield
    except Exception as e:
        if not (why := mistake(e)):
            raise
        failures[name] = why
        print(f"{name}: not measured: {why}", flush=True)


def teacher(record):
    """The forget-teacher of a run that had one -> name, (tau, layers): tau a number, or a table of heads; layers a text
    as --layers has it. None of any other run."""
    if record.get("kind") != "unlearned" or record.get("tau") is None:
        return None
    tau, layers = record["tau"], record["settings"]["layers"]
    if isinstance(tau, list):                                                   # of each head: tau, or 1
        heads = [t for row in tau for t in row]
        return f"teacher_tau{max(heads):g}_{sum(t != 1 for t in heads)}heads", (tau, "all")
    return f"teacher_tau{tau:g}" + ("" if layers == "all" else f"_layers{layers}"), (tau, layers)


def teachers(records):
    """The forget-teachers of the runs that had one -> {name: (tau, layers)}, see teacher. One that was healed is gone
    with its run: the target smoothed is another."""
    found = [teacher(record) for record in records.values() if not record.get("settings", {}).get("heal")]
    return dict(pair for pair in found if pair)


def with_teachers(paths, records):
    """{name: path of a run} -> {name: (path, None, or (tau, layers) that smooth it)}: after target and retrained come
    the forget-teachers, which are the target smoothed."""
    entries, last = {}, "retrained" if "retrained" in paths else "target"
    for name, path in paths.items():
        entries[name] = path, None
        if name == last and "target" in paths:
            entries |= {teacher: (paths["target"], smoothing) for teacher, smoothing in teachers(records).items()}
    return entries
