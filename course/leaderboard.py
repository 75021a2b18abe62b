"""Problem 8, all methods side by side, on draws of authors that nobody has seen.

    python -m course.leaderboard SUBMISSIONS/ --seed=SECRET      OUT/leaderboard.md

SUBMISSIONS holds a folder for each student, with course/method.py in it. Each draw's models are trained once and kept
in OUT; a method that has run on a draw does not run there again. A method gets the target and so many seconds of one
core, in a process that is shut in as the grader's are. What it leaves, the weights, is measured and attacked out here.
"""

import contextlib
import copy
import hashlib
import io
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import asu
import data
import eval
import train
from common import HOME, UserError, cli
from common.cli import positive_int
from common.files import check_writable, strict_json, write_file
from course.answers import worst_excess
from experiments.trials import draw as train_draw
from lab import recover
from lab.optim import Log
from lab.runs import check_finite, load_run
from lab.statistics import bootstrap
from model import Transformer

SETTINGS = ("tau", "layers", "alpha", "retain_loss", "beta", "c_forget", "c_retain", "epochs", "lr", "batch_size",
            "warmup", "weight_decay", "grad_clip")      # of asu.unlearn, that a method may choose
HOUSE = {"ASU (house)": ("asu", {"tau": 8.0, "alpha": 1.1}),         # asu.py's defaults
         "NPO (house)": ("npo", {"lr": 2e-4, "beta": 0.8, "c_forget": 0.3})}    # as chosen in docs/comparison.md
METHOD = "course/method.py"


# ------------------------------------------------------------------------------------------------------- one method
class Over(Exception):
    """The seconds are over."""


class Seconds(Log):
    """A log that stops the loop when this process has used so many seconds of its core."""

    def __init__(self, seconds):
        super().__init__("method")
        self.end_at = time.process_time() + seconds

    def end(self, step):
        super().end(step)
        if time.process_time() > self.end_at:
            raise Over


def read_method():
    """-> (loss, settings) of course/method.py. Raises UserError for settings that are none."""
    from course import method
    settings = method.settings()
    if not isinstance(settings, dict) or set(settings) - set(SETTINGS):
        raise UserError(f"settings() is a dict with keys of {', '.join(SETTINGS)}")
    return method.loss, settings


def unlearned(target, forget, retain, loss, settings, seconds):
    """A method on a copy of the target, stopped when its seconds are over -> (model, record)

    loss: a function of tensors, or the name of one in asu.METHODS."""
    model, start, log = copy.deepcopy(target), time.process_time(), Seconds(seconds)
    name, quiet = loss if isinstance(loss, str) else "submission", io.StringIO()
    asu.METHODS |= {} if isinstance(loss, str) else {name: loss}
    with contextlib.suppress(Over), contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        asu.unlearn(model, forget, retain, method=name, **settings, log=log)
    return model.eval(), log.record | {"cpu_seconds": time.process_time() - start}


def inside(job, shut):
    """What inside.py runs: the job's target read, the doors shut, the method let in, its weights left behind."""
    target, tokenizer, _ = load_run(Path(job["target"]), "cpu")
    dataset = data.load(**job["data"])
    forget, retain = (data.training_examples(tokenizer, rows) for rows in (dataset.forget, dataset.retain))
    scratch = Path(job["scratch"])
    shut()
    loss, settings = HOUSE[job["house"]] if job["house"] else read_method()
    model, record = unlearned(target, forget, retain, loss, settings, job["budget"])
    save_file({name: p.contiguous().clone() for name, p in model.state_dict().items()}, scratch / "weights")
    (scratch / "record").write_text(json.dumps({"cpu_seconds": record["cpu_seconds"]}))


# ------------------------------------------------------------------------------------------------------ what is left
def attacked(model, tokenizer, rows, phrasings=None, samples=4, steps=8, bits=4):
    """Of each forgotten row, whether the model states its facts when asked and under three attacks -> {name: (N,)}

    relearnt: after `steps` steps at 1e-3 on the other half of the facts; sampled: one of `samples` answers at
    temperature 1; quantised: rounded to `bits` bits."""
    halves, after = recover.halves(rows), []
    for shown, asked in (halves, halves[::-1]):
        examples = data.training_examples(tokenizer, shown, phrasings)
        [(_, relearnt)] = recover.relearned(model, examples, 1e-3, (steps,))
        after += recover.stated(relearnt, tokenizer, asked)
    right = {"asked": recover.stated(model, tokenizer, rows), "relearnt": after,
             "sampled": recover.sampled(model, tokenizer, rows, samples) > 0,
             "quantised": recover.stated(recover.quantised(model, bits), tokenizer, rows)}
    return {name: np.array(values, float) for name, values in right.items()}


def measured(model, tokenizer, dataset, max_rows):
    """-> {"forget", "retain": {metric: (N,)}, "attacks": {name: (N,)}}"""
    sets = {part: data.subset(dataset.sets[part], max_rows) for part in ("forget", "retain")}
    slot_values = data.slot_values([row for rows in dataset.sets.values() for row in rows])
    values = eval.measure(model, tokenizer, sets, [], slot_values, {})[1]
    forget = [row for row in dataset.forget if row["facts"]]
    return {part: {m: v for m, v in values[part].items() if m in eval.GAP_METRICS} for part in values} | {
        "attacks": attacked(model, tokenizer, forget)}


def kept(file, make):
    """What make() measures, kept in a JSON file: it is not made again."""
    if not file.exists():
        made = make()
        write_file(file, strict_json({name: {key: np.asarray(v).tolist() for key, v in part.items()}
                                      for name, part in made.items()}))
    return {name: {key: np.array(v) for key, v in part.items()} for name, part in json.loads(file.read_text()).items()}


def run_method(files, source, house, folder, dataset, seconds):
    """A method in a process of its own -> (model, tokenizer, seconds that it used). Raises UserError where it fails.

    source: of course/method.py, None for a house method."""
    from course.grade import sandbox
    made = {path: content for path, content in files.items() if path.endswith((".py", ".toml"))}
    with tempfile.TemporaryDirectory(prefix="course-") as place:
        for path, content in (made | ({METHOD: source} if source else {})).items():
            (Path(place) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(place) / path).write_bytes(content)
        job = {"kind": "method", "target": str(folder / "target"), "data": dataset, "house": house, "budget": seconds,
               "forbidden": [str(HOME), str(folder.parent.parent.resolve())]}
        messages, why = sandbox(job, Path(place), seconds=60 + 5 * seconds)
        if reasons := [message["violation"] for message in messages if "violation" in message] + [why] * bool(why):
            raise UserError(reasons[0])
        target, tokenizer, _ = load_run(folder / "target", "cpu")
        try:
            model = Transformer(target.config)
            model.load_state_dict(load_file(Path(place) / "scratch/weights"))
            check_finite(model.state_dict(), "the model")
            used = float(json.loads((Path(place) / "scratch/record").read_text())["cpu_seconds"])
        except Exception as e:
            raise UserError(f"what it left is no model ({type(e).__name__})") from e
    return model.eval(), tokenizer, used


# ---------------------------------------------------------------------------------------------------------- the table
def numbers(rows, golds):
    """What a method left on each draw, and the retrained models -> {column: (value, [low, high])}, and the attack"""
    def gap(draw=None):
        picks = [slice(None) if draw is None else draw(len(gold[part]["coherence"]))
                 for gold in golds for part in ("forget", "retain")]
        pairs = [(row[part], gold[part]) for row, gold in zip(rows, golds) for part in ("forget", "retain")]
        return float(np.mean([eval.gap(*pair, pick) for pair, pick in zip(pairs, picks)]))

    def worst(draw=None):
        picks = [slice(None) if draw is None else draw(len(gold["attacks"]["asked"])) for gold in golds]
        shares = [{name: float(np.mean([side["attacks"][name][pick].mean() for side, pick in zip(sides, picks)]))
                   for name in golds[0]["attacks"]} for sides in (rows, golds)]
        return worst_excess(*shares)

    def coherence(draw=None):
        picks = [slice(None) if draw is None else draw(len(row["forget"]["coherence"])) for row in rows]
        return float(np.mean([row["forget"]["coherence"][pick].mean() for row, pick in zip(rows, picks)]))
    columns = {"gap": gap, "worst": lambda draw=None: worst(draw)[0], "coherence": coherence}
    return {name: (f(), bootstrap(f, 300)) for name, f in columns.items()}, worst()[1]


def markdown(board, failed, about):
    """-> the table's text, best first: the least gap + what the worst attack brings back."""
    lines = ["| method | gap to retrain | worst attack | by | coherence | seconds |", "|---|---:|---:|---|---:|---:|"]
    for name, (columns, attack, used) in sorted(board.items(), key=lambda row: score(row[1][0])):
        cells = [f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, (low, high) in columns.values()]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {attack} | {cells[2]} | {used:.0f} |")
    lines += ["", "Gap to retrain: see eval.py, forget and retain. Worst attack: share of the forgotten facts stated "
              "under the strongest of four attacks (asked, relearnt, sampled, quantised) beyond what the retrained "
              "model states under it. In brackets 95% intervals over questions. Ordered by gap + worst attack, "
              "which counts 0 where it is below. " + about]
    return "\n".join([*lines, *(f"\n{name}: {why}" for name, why in failed.items())]) + "\n"


def score(columns):
    return columns["gap"][0] + max(0.0, columns["worst"][0])


def found(folder):
    """The methods in a folder of submissions -> ({name: source}, {name: why there is none})"""
    from course.grade import submitted
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder of submissions")
    methods, failed = {}, {}
    for submission in sorted(path for path in folder.iterdir() if path.is_dir()):
        try:
            methods[submission.name] = submitted(submission, METHOD)
        except UserError as e:
            failed[submission.name] = str(e)
    return methods, failed


def main():
    if not (HOME / "course/grade.py").exists():
        raise UserError("a starter kit has no grader; the leaderboard runs in the repository that the kit came from")
    from course.grade import secret_of
    from course.make import parser, tree
    p = parser("All methods of problem 8 on the same draws.")
    add = p.add_argument
    add("submissions", help="a folder with a folder for each student")
    add("--seed", help="the secret that the draws are made from")
    add("--seed_file", help="a file with the secret")
    add("--out", default="out_leaderboard", help="models, measurements and leaderboard.md")
    add("--draws", type=positive_int, default=2, help="of authors")
    add("--seconds", type=positive_int, default=60, help="of one core that a method gets on each draw")
    add("--max_rows", type=positive_int, default=120, help="questions of each set, drawn at random")
    add("--train_flags", default="", help="flags for train.py, blank-separated, as in @config/tiny.args")
    args = p.parse_args()
    secret, flags = secret_of(args), args.train_flags.split()
    n_authors = train.parse(flags).n_authors
    methods, failed = found(Path(args.submissions))
    check_writable(args.out)
    out, files, golds, jobs = Path(args.out).resolve(), tree(), [], {}
    for i in range(args.draws):
        number = int(hashlib.sha256(f"{secret} draw {i}".encode()).hexdigest(), 16) % 2**31
        folder = train_draw(out / "models", number, 0, flags=flags)
        dataset = {"out": str(folder), "data_seed": number, "n_authors": n_authors}
        gold, tokenizer, _ = load_run(folder / "retrained", "cpu")
        golds.append(kept(out / "measured" / f"retrained_{i}_{number}_{args.max_rows}.json",
                          lambda: measured(gold, tokenizer, data.load(**dataset), args.max_rows)))
        jobs[number] = folder, dataset

    board = {}
    for name, source in {**dict.fromkeys(HOUSE), **methods}.items():
        rows, code = [], hashlib.sha256(source or repr(HOUSE[name]).encode()).hexdigest()[:16]
        try:
            for number, (folder, dataset) in jobs.items():
                def measure():
                    house = "" if source else name
                    model, tokenizer, used = run_method(files, source, house, folder, dataset, args.seconds)
                    left = measured(model, tokenizer, data.load(**dataset), args.max_rows)
                    return left | {"cost": {"seconds": used}}
                rows.append(kept(out / "measured" / f"{code}_{number}_{args.seconds}_{args.max_rows}.json", measure))
        except UserError as e:
            failed[name] = str(e)
            print(f"{name}: {e}", file=sys.stderr)
            continue
        board[name] = *numbers(rows, golds), float(np.mean([row["cost"]["seconds"] for row in rows]))
        print(f"{name}: measured on {len(rows)} draws", flush=True)
    about = f"{args.draws} draws, {args.seconds} seconds of one core for each method on each."
    write_file(out / "leaderboard.md", markdown(board, failed, about))
    print(f"\n{markdown(board, failed, about)}\n{out / 'leaderboard.md'}")
    if failed:
        sys.exit(2)


if __name__ == "__main__":
    torch.set_num_threads(1)
    cli.run(main)
