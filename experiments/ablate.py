"""The paper's ablations: temperature, layers, forget coefficient, epochs. One setting moves, the rest stay at asu.py's defaults
(but 5 epochs, as in the comparison).

    python -m experiments.ablate                       OUT/ablate/ablate.json and ablate.png
    python -m experiments.ablate --axes="tau;epochs"

Each point is the mean over --seeds training seeds of the reported draw, with its standard deviation; the models are those
of experiments.compare where they are there.
"""

import json
from pathlib import Path

from common import UserError
from common.cli import Parser, run
from common.files import check_writable, write_file
from experiments.trials import draws, gaps, run_trials, spec_of, trial_flags
from lab.report import plot_ablation

DEFAULT = {"method": "asu", "retain_loss": "gd", "tau": 1000.0, "layers": "all", "heads": "auto", "alpha": 1.2, "c_forget": 1.0, "epochs": 5, "lr": 1e-3}
PAPER = {"heads": "all", "alpha": 1.0}
AXES = {        # name -> settings that differ from DEFAULT
    "tau": [{"tau": tau, **PAPER} for tau in (1.5, 2.3, 4.0, 8.0, 16.0)],
    "tau, layers 1-": [{"tau": tau, "layers": "1-", **PAPER} for tau in (4.0, 16.0, 64.0, 1000.0)],
    "layers": [{"layers": layers, **PAPER} for layers in ("0", "1", "2-3", "4-5", "2-", "1-", "all")],
    "alpha": [{"alpha": alpha} for alpha in (1.0, 1.2, 1.5, 2.0)],
    "c_forget": [{"c_forget": c} for c in (0.1, 0.3, 1.0, 3.0)],
    "phrasings": [{"phrasings": n, "epochs": 25 // n} for n in (1, 2, 5)],                # of the forget questions, in as many steps
    "answers": [{"answers": whose} for whose in ("true", "teacher")],
    "tau, auto": [{"tau": tau, "layers": "1-", **PAPER} for tau in (2.0, 2.83, 4.0, 5.66, 8.0, 11.31, 16.0, 22.63, 32.0, 64.0, 256.0, "auto")],
    "epochs": [{"epochs": n} for n in (1, 2, 5, 10)],
}


def parse():
    p = Parser("Move one setting of ASU at a time.")
    add = p.add_argument
    add("--axes", help="semicolon-separated, default all: " + "; ".join(AXES))
    trial_flags(p, seeds=3)
    return p.parse_args()


def main():
    args = parse()
    check_writable(args.out)
    axes = list(AXES) if args.axes is None else [a.strip() for a in args.axes.split(";")]
    if unknown := [a for a in axes if a not in AXES]:
        raise UserError(f"--axes: {unknown[0]} is not one of {'; '.join(AXES)}")
    keys = [(args.data_seed, seed, args.forget) for seed in range(args.seeds)]
    folders = draws(keys, args.jobs, out=Path(args.out) / "compare", flags=args.train_flags.split())

    def spec(name, key, run="target", **more):
        file = Path(args.out) / "ablate/trials" / f"{args.forget}_seed{key[1]}_{name}.json"
        return spec_of(file, folders[key], key, args, run, **more)
    settings = {json.dumps(DEFAULT | change): DEFAULT | change for axis in axes for change in AXES[axis]}
    found = {}
    for key in keys:
        specs = [spec("-".join(f"{k}{v}" for k, v in s.items() if v != DEFAULT[k]) or "default", key, unlearn=s | {"seed": key[1]})
                 for s in settings.values()]
        target, retrained, *done = run_trials([spec("target", key), spec("retrained", key, "retrained"), *specs], args.jobs, f"seed {key[1]}")
        gaps([target, *done], retrained)
        for name, t in zip(settings, done):
            found.setdefault(name, []).append(t["result"])
    report = {axis: [{"setting": change, "results": found[json.dumps(DEFAULT | change)]} for change in AXES[axis]] for axis in axes}
    plot_ablation(report, Path(args.out) / "ablate/ablate.png")
    write_file(Path(args.out) / "ablate/ablate.json", json.dumps({"default": DEFAULT, "axes": report}, indent=1) + "\n")
    print(f"written: {Path(args.out) / 'ablate'}/ablate.json and ablate.png")


if __name__ == "__main__":
    run(main)
