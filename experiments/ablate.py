"""The paper's ablations: temperature, layers, forget coefficient, epochs; and ours: alpha, phrasings, tau=auto.

One setting moves, the rest stay at asu.py's defaults, but for 5 epochs, as in the comparison, and alpha 1, as in the
paper, where tau or the layers move.

    python -m experiments.ablate                       OUT/ablate/ablate.json and ablate.png
    python -m experiments.ablate --axes="tau;epochs"
    python -m experiments.ablate --axes=temper         OUT/ablate/temper.json and temper.png: the dial, see dial()
    python -m experiments.ablate --axes=temper --run=out_smollm2/target

Each point is the mean over --seeds training seeds of the reported draw, with its standard deviation; the models are
those of experiments.compare where they are there.
"""

import json
from pathlib import Path

import numpy as np

import asu
import data
import train
from common import UserError
from common.cli import Parser, pick_device, run
from common.files import check_writable, strict_json, write_file
from experiments.trials import draws, gaps, run_trials, spec_of, trial_flags
from lab.report import markdown, mean_sd, plt, save_figure
from lab.runs import load_run
from lab.scores import TAUS as CURVE
from lab.scores import by_class, score

DEFAULT = {flag: vars(asu.parse([]))[flag] for flag in ("tau", "layers", "heads", "alpha", "c_forget", "phrasings")}
DEFAULT["epochs"] = 5
PAPER = {"heads": "all", "alpha": 1.0}
TAUS = (2.0, 2.83, 4.0, 5.66, 8.0, 11.31, 16.0, 22.63, 32.0, 64.0, 256.0, "auto")
AXES = {        # name -> settings that differ from DEFAULT; what stands before a comma is the one that moves
    "tau": [{"tau": tau, **PAPER} for tau in (2.3, 4.0, 8.0, 16.0, 32.0)],
    "tau, layers 1-": [{"tau": tau, "layers": "1-", **PAPER} for tau in (4.0, 16.0, 64.0, 1000.0)],
    "layers": [{"layers": layers, "tau": 16.0, **PAPER} for layers in ("0", "1", "2-3", "4-5", "2-", "1-", "all")],
    "alpha": [{"alpha": alpha} for alpha in (1.0, 1.1, 1.3, 1.5)],
    "c_forget": [{"c_forget": c} for c in (0.1, 0.3, 1.0, 3.0)],
    "phrasings": [{"phrasings": n, "epochs": 25 // n} for n in (1, 2, 5)],      # of each question; about as many steps
    "tau, auto": [{"tau": tau, "layers": "1-", **PAPER} for tau in TAUS],
    "epochs": [{"epochs": n} for n in (1, 2, 5, 10)],
}
LINES = (       # of the figure: label, part of the result, metric, colour
    ("forget facts", "forget", "fact_accuracy", "C3"), ("retain facts", "retain", "fact_accuracy", "C0"),
    ("coherence", "forget", "coherence", "C2"), ("gap to retrain", "aggregate", "gap_to_retrain", "k"))


TEMPERS, TEMPER_TAUS = (1.0, 2.0, 4.0, 8.0, 16.0), (4.0, 8.0, 16.0)        # of the dial: --temper, --tau
CLASSES = {"fact": data.FACT, "function": data.FUNCTION, "name": data.NAME}
DIAL = {        # what is said of each teacher and student: label -> part of the result, metric
    "fact NLL": ("forget", "fact_nll"), "function NLL": ("forget", "function_nll"), "name NLL": ("forget", "name_nll"),
    "forget facts": ("forget", "fact_accuracy"), "coherence": ("forget", "coherence"),
    "retain facts": ("retain", "fact_accuracy"), "gap to retrain": ("aggregate", "gap_to_retrain")}


def parse():
    p = Parser("ablate.py", "Move one setting of ASU at a time.", without=("seed",))
    p.add_argument("--axes", help="semicolon-separated, default all but temper, which trains models of its own: "
                   + "; ".join([*AXES, "temper"]))
    p.add_argument("--run", help="with --axes=temper: a model (directory or hub id) to show beside the tempered ones, "
                   "smoothed, nothing trained; its data are those of its run.json, else those of the flags")
    trial_flags(p, seeds=3)
    args = p.parse_args()
    if args.run and "temper" not in (args.axes or ""):
        p.error("--run goes with --axes=temper")
    if not args.run and (given := [flag for flag in ("data", "device", "dtype") if flag in p.given]):
        p.error(f"--{given[0]} is about --run; the models trained here are of generated authors, in float32 on the CPU")
    return args


def name_of(change):
    """The settings that differ from the default, as part of a file's name."""
    return "-".join(f"{k}{v}" for k, v in change.items() if v != DEFAULT[k]) or "default"


def plot_ablation(report, path):
    """One panel an axis: forget and retain fact accuracy, coherence and gap to retrain against the setting."""
    figure, axes = plt.subplots(1, len(report), figsize=(3.6 * len(report), 3.8), sharey=True, squeeze=False)
    for (title, points), axis in zip(report.items(), axes[0]):
        moves = title.split(",")[0]
        for label, part, metric, color in LINES:
            values = [[result[part][metric] for result in point["results"]] for point in points]
            deviations = [np.std(v, ddof=1) if len(v) > 1 else 0 for v in values]
            axis.errorbar(range(len(points)), [np.mean(v) for v in values], yerr=deviations, marker=".", capsize=2,
                          color=color, label=label)
        axis.set(title=title, ylim=(-0.03, 1.03))
        axis.set_xticks(range(len(points)), [str(point["setting"][moves]) for point in points])
        axis.grid(alpha=0.3)
    axes[0, -1].legend(fontsize=7, loc="center right")
    save_figure(figure, path)


def move(axes, keys, args, out):
    """Every setting of the axes on every draw and seed: OUT/ablate/ablate.json and ablate.png."""
    folders = draws(keys, args, Path(args.out) / "compare")
    changes = {name_of(change): change for axis in axes for change in AXES[axis]}
    results = {name: [] for name in changes}
    for key in keys:
        _, seed, forget = key

        def spec(name, run="target", **more):
            return spec_of(out / "trials" / f"{forget}_seed{seed}_{name}.json", folders[key], key, args, run, **more)
        specs = {"target": spec("target"), "retrained": spec("retrained", "retrained")}
        for name, change in changes.items():
            specs[name] = spec(name, unlearn={**DEFAULT, **change, "seed": seed})
        done = run_trials(specs, args.jobs, f"seed {seed}")
        gaps([done[name] for name in changes], done["retrained"])
        for name in changes:
            results[name].append(done[name]["result"])
    report = {}
    for axis in axes:
        report[axis] = [{"setting": change, "results": results[name_of(change)]} for change in AXES[axis]]
    plot_ablation(report, out / "ablate.png")
    write_file(out / "ablate.json", json.dumps({"default": DEFAULT, "axes": report}, indent=1) + "\n")
    print(f"written: {out}/ablate.json and ablate.png")


# ------------------------------------------------------------------------------------------------ the dial
def dial(keys, args, out):
    """How ASU depends on how well language survives smoothing: models trained at every highest temperature T in
    TEMPERS, the paper's form of ASU (every head, alpha 1) on each at TEMPER_TAUS. OUT/ablate/temper.json and
    temper.png; in the figure also --run, a model that nobody tempered."""
    points, curves, compared = [], {}, train.parse(args.train_flags.split()).temper
    for temper in TEMPERS:
        folder = Path(args.out) / "compare" if temper == compared else out / f"temper{temper:g}"
        folders = draws(keys, args, folder, f"--temper={temper:g}")
        points += dial_points(temper, folders, args, out)
        models = [(folders[key] / "target", forget_rows(args, key)) for key in keys]
        curves[f"T = {temper:g}"] = [nll_curves(*load_run(path)[:2], rows) for path, rows in models]
    if args.run:
        model, tokenizer, record = load_run(args.run, *pick_device(args))
        curves[Path(args.run).as_posix()] = [nll_curves(model, tokenizer, taught_rows(record, args))]
    plot_dial(points, curves, out / "temper.png")
    write_file(out / "temper.json", strict_json({"points": points, "tau": list(CURVE), "curves": curves}))
    print(dial_table(points) + f"\nwritten: {out}/temper.json and temper.png")


def dial_points(temper, folders, args, out):
    """Teacher and student at each of TEMPER_TAUS on models of one T -> a list of {"temper", "tau", "who", and of each
    quantity in DIAL its values, one a seed}. folders: as of draws."""
    specs = {}
    for key, folder in folders.items():
        _, seed, forget = key

        def spec(name, run="target", **more):
            file = out / "trials" / f"temper{temper:g}" / f"{forget}_seed{seed}_{name}.json"
            return spec_of(file, folder, key, args, run, **more)
        specs["retrained", None, key] = spec("retrained", "retrained")
        specs["target", 1.0, key] = spec("target")
        for tau in TEMPER_TAUS:
            teacher = {"tau": tau, "layers": "all", "heads": "all"}
            specs["teacher", tau, key] = spec(f"teacher_tau{tau:g}", smoothing=teacher)
            specs["student", tau, key] = spec(f"student_tau{tau:g}", unlearn=DEFAULT | PAPER | teacher | {"seed": seed})
    done, points = run_trials(specs, args.jobs, f"T = {temper:g}"), []
    for who, tau in dict.fromkeys((who, tau) for who, tau, _ in specs):
        trials = [done[who, tau, key] for key in folders]
        for trial, key in zip(trials, folders) if who != "retrained" else ():
            gaps([trial], done["retrained", None, key])
        values = {label: [trial["result"][part].get(metric) for trial in trials]
                  for label, (part, metric) in DIAL.items() if who != "retrained" or part != "aggregate"}
        points.append({"temper": temper, "tau": tau, "who": who, **values})
    return points


def forget_rows(args, key):
    """The forget questions of a draw that eval.py asks, --max_rows of them."""
    data_seed, _, forget = key
    dataset = data.load("authors", forget, args.out, data_seed, args.n_authors)
    return data.subset(dataset.sets["forget"], args.max_rows)


def taught_rows(record, args):
    """The forget questions of the data that --run learnt, as its run.json says; of the flags' data without one."""
    settings = {flag: getattr(args, flag) for flag in ("data", "forget", "data_seed", "n_authors")}
    settings |= {flag: value for flag, value in record.get("settings", {}).items() if flag in settings}
    rows = data.load(out=args.out, **settings).sets["forget"]
    if not all(row["facts"] for row in rows):
        raise UserError(f"--run={args.run}: rows whose answers state facts (key facts) are needed")
    return data.subset(rows, args.max_rows)


def nll_curves(model, tokenizer, rows):
    """NLL of a model's fact, function and name tokens, every head at each temperature in CURVE, forward passes alone
    -> {class: [nats a token]}, nan for a class without tokens."""
    curves, pairs = {name: [] for name in CLASSES}, [(row["question"], row["answer"]) for row in rows]
    for tau in CURVE:
        scores = score(model, tokenizer, pairs, tau=tau)
        for name, kind in CLASSES.items():
            logp = by_class(scores, rows, tokenizer, kind)
            curves[name].append(float(-logp.mean()) if logp.size else float("nan"))
    return curves


def dial_table(points):
    """The points as Markdown, mean ± sample standard deviation over seeds."""
    lines = [["T", "model", "tau", *DIAL]]
    for point in points:
        tau = "-" if point["tau"] is None else f"{point['tau']:g}"
        lines.append([f"{point['temper']:g}", point["who"], tau, *(mean_sd(point.get(label, [])) for label in DIAL)])
    return markdown(lines)


def plot_dial(points, curves, path):
    """Above, what smoothing costs each class of tokens, a line for each T; below, against T, what is left in teacher
    (dashed) and student, a line for each tau."""
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.6))
    for axis, name in zip(axes[0], CLASSES):
        for i, (label, runs) in enumerate(curves.items()):
            color = plt.cm.viridis(i / len(TEMPERS)) if label.startswith("T = ") else "k"
            axis.plot(CURVE, np.mean([run[name] for run in runs], axis=0), ".-", color=color, label=label)
        axis.set(xscale="log", title=f"the smoothed target: {name} tokens", xlabel="attention temperature tau",
                 ylabel="NLL (nats a token)")
        axis.set_xticks(CURVE, [f"{tau:g}" for tau in CURVE])
        axis.minorticks_off()
    for axis, label in zip(axes[1], ("forget facts", "coherence", "gap to retrain")):
        for i, tau in enumerate(TEMPER_TAUS):
            for who, style in (("teacher", "--"), ("student", "-")):
                of = [point for point in points if (point["who"], point["tau"]) == (who, tau)]
                spread = [np.std(point[label], ddof=1) if len(point[label]) > 1 else 0 for point in of]
                axis.errorbar([point["temper"] for point in of], [np.mean(point[label]) for point in of], yerr=spread,
                              fmt=style, marker=".", capsize=2, color=f"C{i}", label=f"{who}, tau {tau:g}")
        axis.set(xscale="log", title=label, xlabel="T: highest temperature the base was trained at")
        axis.set_xticks(TEMPERS, [f"{temper:g}" for temper in TEMPERS])
        axis.minorticks_off()
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=7)
    axes[1, 2].legend(fontsize=7, handlelength=4, loc="upper right")
    save_figure(figure, path)


def main():
    args = parse()
    check_writable(args.out)
    out = Path(args.out) / "ablate"
    axes = list(AXES) if args.axes is None else [axis.strip() for axis in args.axes.split(";")]
    if unknown := [axis for axis in axes if axis not in (*AXES, "temper")]:
        raise UserError(f"--axes: {unknown[0]} is not one of {'; '.join([*AXES, 'temper'])}")
    keys = [(args.data_seed, seed, args.forget) for seed in range(args.seeds)]
    if moved := [axis for axis in axes if axis != "temper"]:
        move(moved, keys, args, out)
    if "temper" in axes:
        dial(keys, args, out)


if __name__ == "__main__":
    run(main)
