"""A trial: unlearn a target as asu.py does, measure what is left, keep it in one JSON file.

Comparisons and ablations are made of trials. A file that is there is not made again, so whatever was interrupted goes
on where it stopped.
"""

import concurrent.futures
import contextlib
import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

import asu
import data
import eval
from common import HOME, UserError
from common.cli import positive_int
from common.files import whole_dir, write_file
from experiments.processes import workers
from lab import recover
from lab.choose import smoothing
from lab.entries import other_data
from lab.optim import Log
from lab.runs import load_run

NO_FLAGS = "data", "seed", "device", "dtype"       # of trials: they are of generated authors, in float32 on the CPU


def trial_flags(p, seeds):
    """The flags of every experiment that is made of trials."""
    p.add_argument("--seeds", type=positive_int, default=seeds, help="training seeds of the reported draw")
    p.add_argument("--max_rows", type=positive_int, default=200, help="questions of each set, drawn at random")
    p.add_argument("--jobs", type=positive_int, default=os.cpu_count(), help="trials at a time, the cores shared out")
    p.add_argument("--train_flags", default="", help="flags for train.py, blank-separated, as in '@config/tiny.args'")


# ------------------------------------------------------------------------------------------------- models
def run_script(name, flags, threads=None):
    """Run "train", "experiments.capitals", ... in a process of its own -> the last line that it prints.

    Raises UserError with the last line of what it complains about."""
    inside = "." in name                                    # a module of a package is found from the repository's root
    command = [sys.executable, *(["-m", name] if inside else [str(HOME / f"{name}.py")]), *flags]
    env = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=HOME if inside else None)
    if done.returncode:
        complaint = done.stderr.strip().splitlines() or ["killed"]
        raise UserError(f"{name} {' '.join(flags)} failed: {complaint[-1]}")
    return done.stdout.strip().splitlines()[-1]


def draw(out, data_seed, seed, forget="forget10", flags=(), threads=None):
    """Train base, target and retrained model of one draw of authors and one training seed, or find them -> folder"""
    data.rest_of(forget)                                    # refuses what is no split before anything is trained
    folder = Path(out) / f"draw{data_seed}_seed{seed}" / forget
    if forget != "forget10" and not (folder / "target").exists():       # base and target are the same for every split
        tenth = draw(out, data_seed, seed, "forget10", flags, threads)
        for name in ("base", "target"):
            with whole_dir(folder / name) as d:
                shutil.copytree(tenth / name, d, dirs_exist_ok=True)
    run_script("train", [*flags, f"--out={folder}", f"--data_seed={data_seed}", f"--seed={seed}", f"--forget={forget}",
                         "--resume"], threads)
    return folder


def draws(keys, args, out, *more, jobs=None):
    """draw() of several (data_seed, seed, forget), `jobs` (default --jobs) at a time, by --n_authors, --train_flags and
    more flags of train.py. -> {(data_seed, seed, forget): folder}"""
    jobs, flags = jobs or args.jobs, [*args.train_flags.split(), *more, f"--n_authors={args.n_authors}"]
    threads = max(1, os.cpu_count() // jobs)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = {}
        for data_seed, seed, forget in keys:
            futures[data_seed, seed, forget] = pool.submit(draw, out, data_seed, seed, forget, flags, threads)
        return {key: future.result() for key, future in tqdm(futures.items(), desc="models", disable=None)}


# ------------------------------------------------------------------------------------------------- trials
def spec_of(file, folder, key, args, run="target", **more):
    """The spec of a trial, see trial(): on model `run` of a draw's folder, key as in draws()."""
    data_seed, _, forget = key
    dataset = {"out": str(folder), "data_seed": data_seed, "forget": forget, "n_authors": args.n_authors}
    return {"file": str(file), "run": str(folder / run), "random_rows": args.max_rows, "data": dataset, **more}


def trial(spec):
    """Run one trial, or read its file. -> {"spec", "result", "values"}: see eval.measure.

    spec: file (where it is kept), run (the model to start from), data (keywords of data.load), random_rows (how many of
    each set), attack (whether the quick attacks of lab/recover.py are made too), and flags of asu.py as a dict, either
    under unlearn or under smoothing, which measures the forget-teacher itself; with neither the model is measured as it
    is.
    """
    file = Path(spec["file"])
    if file.exists():
        return read_trial(file, spec)
    model, tokenizer, record = load_run(Path(spec["run"]), "cpu")
    dataset, teacher = data.load(**spec["data"]), {}
    if why := other_data(spec["run"], record, dataset):
        raise UserError(why)
    settings = spec.get("unlearn") or spec.get("smoothing") or {}
    args = asu.parse(["--device=cpu", *(f"--{k}={v}" for k, v in settings.items() if v is not None)])
    with open(os.devnull, "w") as devnull, contextlib.redirect_stdout(devnull), contextlib.redirect_stderr(devnull):
        if spec.get("unlearn"):
            log = Log(args.method)
            asu.forget_rows(model, tokenizer, dataset, dataset.forget, dataset.retain, args, log,
                            base=Path(spec["run"]).parent / "base")
            record = log.record
        elif spec.get("smoothing"):
            tau, layers = smoothing(model, tokenizer, dataset.forget, dataset, args.tau, args.layers, args.heads,
                                    args.phrasings)
            teacher = {"tau": tau, "layers": layers}
    sets = {name: data.subset(rows, spec["random_rows"]) for name, rows in dataset.sets.items()}
    slot_values = data.slot_values([row for rows in dataset.sets.values() for row in rows])
    result, values, _ = eval.measure(model, tokenizer, sets, dataset.holdout, slot_values, teacher)
    if spec.get("attack"):
        base = load_run(Path(spec["run"]).parent / "base", "cpu")[0]
        result["attack"] = recover.quick(model, base, tokenizer, dataset)
    result["cost"] = {k: record.get(k) for k in ("seconds", "peak_mb", "tokens", "steps")}
    result["cost"]["step_seconds"] = step_seconds(record.get("curve", []))
    for part in values:
        values[part] = {metric: np.asarray(v).tolist() for metric, v in values[part].items() if metric != "scores"}
    write_file(file, json.dumps({"spec": spec, "result": result, "values": values}) + "\n")
    return read_trial(file, spec)


def step_seconds(curve):
    """Seconds a step between the last two points of a training curve, None where there is only one.

    So what is done once, before the first step, does not count: heads are chosen, theta_0 is asked."""
    if len(curve) < 2:
        return None
    before, last = curve[-2:]
    return (last["seconds"] - before["seconds"]) / (last["step"] - before["step"])


def read_trial(file, spec):
    """Read a trial's file; refuse one that is damaged, or was made by another trial."""
    try:
        done = json.loads(Path(file).read_text())
        for part, values in done["values"].items():
            done["values"][part] = {metric: np.array(v) for metric, v in values.items()}
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{file} is damaged ({type(e).__name__}); remove it, and it is made again") from e
    if done["spec"] != json.loads(json.dumps(spec)):
        raise UserError(f"{file} was made with other settings; remove it, or choose another --out")
    return done


def run_trials(specs, jobs, label, fresh=False):
    """Trials in `jobs` processes, the cores shared out evenly. {key: spec} -> {key: its trial}.

    fresh: a new process for each, so that its peak memory is its own."""
    waiting = [spec for spec in specs.values() if not Path(spec["file"]).exists()]
    for part in [[spec] for spec in waiting] if fresh else [waiting]:
        with workers(jobs) as pool:
            for _ in tqdm(pool.map(trial, part), total=len(part), desc=label, disable=None):
                pass
    return {key: read_trial(spec["file"], spec) for key, spec in specs.items()}


def gaps(trials, retrained):
    """Add to each trial's result what is measured against the retrained model, which is a trial too."""
    for done in trials:
        eval.compare({"trial": done["result"], "retrained": retrained["result"]},
                     {"trial": done["values"], "retrained": retrained["values"]})


# --------------------------------------------------------------------------------------- rows by seeds
OTHER_SEED = "retrained, other seed"            # a row: how far apart two retrained models are


def report_draw(rows, spec, keys, jobs):
    """Run every row for every seed -> {row: {seed: result}}, held against the retrained model of the same seed.

    rows: {row: more of its trial's spec, see trial()}, and None for OTHER_SEED; keys: {seed: key of the draw}."""
    specs = {}
    for seed, key in keys.items():
        for row, settings in rows.items():
            if "unlearn" in (settings or {}):
                settings = {"unlearn": settings["unlearn"] | {"seed": seed}}
            if row != OTHER_SEED:
                specs[row, seed] = spec(row, key, attack="smoothing" not in settings, **settings)
    done = run_trials(specs, jobs, "reported")
    seeds = list(keys)
    for seed, other in zip(seeds, seeds[1:] + seeds[:1]):
        if other != seed and OTHER_SEED in rows:
            done[OTHER_SEED, seed] = copy.deepcopy(done["retrained", other])
    results = {}
    for row in rows:
        for seed in seeds:
            if (row, seed) in done:
                results.setdefault(row, {})[seed] = done[row, seed]["result"]
                if row != "retrained":
                    gaps([done[row, seed]], done["retrained", seed])
    add_recovered(results)
    return results


def add_recovered(results):
    """The recovered share (lab/recover.py) of every row that was attacked, against the models of the same seed. Not of
    the other seed's retrained model: each is once the model and once what it is held against, so the mean over seeds
    would be about 0 whatever they are."""
    for row, by_seed in results.items():
        for seed, result in by_seed.items():
            if "attack" in result and row != OTHER_SEED:
                models = result, results["retrained"][seed], results["target"][seed]
                result["attack"]["recovered"] = recover.attacked(*(model["attack"] for model in models))


def values_of(results, part, metric):
    """One quantity of many results; None where a result has none."""
    return [result.get(part, {}).get(metric) for result in results]
