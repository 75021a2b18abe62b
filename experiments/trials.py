"""A trial: unlearn a target, measure what is left, keep it in one JSON file. Comparisons and ablations are made of these.

A file that is there is not made again, so whatever was interrupted goes on where it stopped.
"""

import concurrent.futures
import contextlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import asu
import data
import eval
from common import HOME, UserError
from common.cli import positive_int
from common.files import write_file
from lab.choose import smoothing
from lab.runs import load_run, peak_mb


def trial_flags(p, seeds):
    """The flags of every experiment that is made of trials."""
    p.add_argument("--seeds", type=positive_int, default=seeds, help="training seeds of the reported draw")
    p.add_argument("--max_rows", type=positive_int, default=200, help="questions of each set, evenly spaced")
    p.add_argument("--jobs", type=positive_int, default=os.cpu_count(), help="trials at a time, the cores shared out")
    p.add_argument("--train_flags", default="", help="flags for train.py, blank-separated, as in '@config/tiny.args'")


def draw(out, data_seed, seed, forget="forget10", flags=(), threads=None):
    """Train base, target and retrained model of one draw of authors and one training seed, or find them. -> their folder"""
    folder = Path(out) / f"draw{data_seed}_seed{seed}" / forget
    tenth = folder.with_name("forget10")
    if forget != "forget10" and not (folder / "target").exists():       # base and target are the same for every split
        draw(out, data_seed, seed, "forget10", flags, threads)
        for name in ("base", "target"):
            shutil.copytree(tenth / name, folder / name, dirs_exist_ok=True)
    command = [sys.executable, str(HOME / "train.py"), *flags, f"--out={folder}", f"--data_seed={data_seed}",
               f"--seed={seed}", f"--forget={forget}", "--resume"]
    env = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{' '.join(command[1:])} failed: {done.stderr.strip().splitlines()[-1]}")
    return folder


def draws(wanted, jobs, **kw):
    """draw() of several (data_seed, seed, forget), `jobs` at a time. -> {(data_seed, seed, forget): folder}"""
    threads = max(1, os.cpu_count() // jobs)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = {key: pool.submit(draw, data_seed=key[0], seed=key[1], forget=key[2], threads=threads, **kw) for key in wanted}
        return {key: future.result() for key, future in tqdm(futures.items(), desc="models", disable=None)}


def spec_of(file, folder, key, args, run="target", **more):
    """The spec of a trial, see trial(): on model `run` of a draw's folder, key as in draws()."""
    data_seed, _, forget = key
    return {"file": str(file), "run": str(folder / run), "max_rows": args.max_rows,
            "data": {"out": str(folder), "data_seed": data_seed, "forget": forget, "n_authors": args.n_authors}, **more}


def trial(spec):
    """Run one trial, or read its file. -> {"spec", "result", "values"}: see eval.measure.

    spec: file (where it is kept), run (the model to start from), data (keywords of data.load), max_rows, and unlearn
    (keywords of asu.unlearn, beside them layers, heads, phrasings and answers as asu.py's flags; None measures the model as it is) or smoothing (tau, layers, heads: measures the model so smoothed).
    """
    file = Path(spec["file"])
    if file.exists():
        return read_trial(file, spec)
    model, tokenizer, record = load_run(Path(spec["run"]), "cpu")
    rows = data.load(**spec["data"])
    cost = {k: record.get(k) for k in ("seconds", "peak_mb", "tokens")}
    if spec.get("unlearn"):
        cost = {}
        unlearn, start = dict(spec["unlearn"]), time.perf_counter()
        layers, heads = unlearn.pop("layers", "all"), unlearn.pop("heads", "all")
        phrasings, answers = unlearn.pop("phrasings", None), unlearn.pop("answers", "true")
        with open(os.devnull, "w") as devnull, contextlib.redirect_stdout(devnull), contextlib.redirect_stderr(devnull):
            if "tau" in unlearn:
                unlearn["tau"], unlearn["layers"] = smoothing(model, tokenizer, rows.forget, rows, unlearn["tau"], layers, heads)
            forget = data.training_examples(tokenizer, rows.forget, phrasings)
            if answers == "teacher":
                forget = asu.answered_by_teacher(model, tokenizer, rows.forget, phrasings, unlearn["tau"], unlearn["layers"])
            choosing = time.perf_counter() - start
            asu.unlearn(model, forget, data.training_examples(tokenizer, rows.retain), record=cost,
                        refusals=[data.encode(tokenizer, "", text).answer for text in data.REFUSALS], **unlearn)
        cost = {"seconds": cost["seconds"] + choosing, "choosing_seconds": choosing, "tokens": cost["tokens"], "steps": cost["steps"],
                "peak_mb": peak_mb(model.device)}
    sets = {name: some[::-(-len(some) // spec["max_rows"])] for name, some in rows.sets.items()}
    slot_values = data.slot_values([row for some in rows.sets.values() for row in some])
    smoothed = {}
    if flags := spec.get("smoothing"):
        smoothed = dict(zip(("tau", "layers"), smoothing(model, tokenizer, rows.forget, rows, *(flags[k] for k in ("tau", "layers", "heads")))))
    result, values, _ = eval.measure(model, tokenizer, sets, rows.holdout[:spec["max_rows"]], slot_values, smoothed)
    values = {part: {k: np.asarray(v).tolist() for k, v in some.items() if k != "scores"} for part, some in values.items()}
    done = {"spec": spec, "result": result | {"cost": cost}, "values": values}
    write_file(file, json.dumps(done) + "\n")
    return read_trial(file, spec)


def read_trial(file, spec):
    """Read a trial's file; refuse one that is damaged, or was made by another trial."""
    try:
        done = json.loads(Path(file).read_text())
        done["values"] = {part: {k: np.array(v) for k, v in some.items()} for part, some in done["values"].items()}
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{file} is damaged ({type(e).__name__}); remove it, and it is made again") from e
    if done["spec"] != json.loads(json.dumps(spec)):
        raise UserError(f"{file} was made with other settings; remove it, or choose another --out")
    return done


def _set_threads(n):
    torch.set_num_threads(n)


def run_trials(specs, jobs, label, fresh=False):
    """Trials in `jobs` processes, the cores shared out evenly. -> their results in order.

    fresh: a new process for each, so that its peak memory is its own."""
    workers = dict(max_workers=jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_set_threads,
                   initargs=(max(1, os.cpu_count() // jobs),))
    waiting = [s for s in specs if not Path(s["file"]).exists()]
    if waiting:
        with concurrent.futures.ProcessPoolExecutor(**workers, max_tasks_per_child=1 if fresh else None) as pool:
            list(tqdm(pool.map(trial, waiting), total=len(waiting), desc=label, disable=None))
    return [read_trial(s["file"], s) for s in specs]


def gaps(done, retrained):
    """Add to each trial's result what is measured against the retrained model (another trial). -> the trials"""
    for one in done:
        results, values = {"one": one["result"], "retrained": retrained["result"]}, {"one": one["values"], "retrained": retrained["values"]}
        eval.compare(results, values)
    return done
