"""The paper's ablations: temperature, layers, forget coefficient, epochs; and ours: alpha, phrasings, tau=auto.

One setting moves, the rest stay at asu.py's defaults (but 5 epochs, as in the comparison).

    python -m experiments.ablate                       OUT/ablate/ablate.json and ablate.png
    python -m experiments.ablate --axes="tau;epochs"

Each point is the mean over --seeds training seeds of the reported draw, with its standard deviation; the models are
those of experiments.compare where they are there.
"""

import json
from pathlib import Path

import numpy as np

import asu
from common import UserError
from common.cli import Parser, run
from common.files import check_writable, write_file
from experiments.trials import NO_FLAGS, draws, gaps, run_trials, spec_of, trial_flags
from lab.report import plt, save_figure

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
    "phrasings": [{"phrasings": n, "epochs": 25 // n} for n in (1, 2, 5)],      # of each question, in as many steps
    "tau, auto": [{"tau": tau, "layers": "1-", **PAPER} for tau in TAUS],
    "epochs": [{"epochs": n} for n in (1, 2, 5, 10)],
}
LINES = (       # of the figure: label, part of the result, metric, colour
    ("forget facts", "forget", "fact_accuracy", "C3"), ("retain facts", "retain", "fact_accuracy", "C0"),
    ("coherence", "forget", "coherence", "C2"), ("gap to retrain", "aggregate", "gap_to_retrain", "k"))


def parse():
    p = Parser("Move one setting of ASU at a time.", without=NO_FLAGS)
    p.add_argument("--axes", help="semicolon-separated, default all: " + "; ".join(AXES))
    trial_flags(p, seeds=3)
    return p.parse_args()


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
    axes[0, 0].legend(fontsize=7)
    save_figure(figure, path)


def main():
    args = parse()
    check_writable(args.out)
    out = Path(args.out) / "ablate"
    axes = list(AXES) if args.axes is None else [axis.strip() for axis in args.axes.split(";")]
    if unknown := [axis for axis in axes if axis not in AXES]:
        raise UserError(f"--axes: {unknown[0]} is not one of {'; '.join(AXES)}")
    keys = [(args.data_seed, seed, args.forget) for seed in range(args.seeds)]
    folders = draws(keys, args.jobs, out=Path(args.out) / "compare", flags=args.train_flags.split())
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


if __name__ == "__main__":
    run(main)
