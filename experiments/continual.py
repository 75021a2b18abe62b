"""Forget requests that keep coming, up to 90% of the authors: what is kept, and does the first request stay forgotten?

    python -m experiments.continual                    OUT/continual/continual.json and continual.png

Runs `asu.py --forget=forget90 --tasks=5` for ASU with the teacher from the latest weights and from the original ones, and for
four baselines, from OUT/target (so python train.py first); the settings of each are those of the comparison if there is one.
"""

import itertools
import json
import subprocess
import sys
from pathlib import Path

from common import HOME, UserError
from common.cli import Parser, positive_int, run
from common.files import check_writable, write_file
from lab.report import plot_continual
from lab.runs import read_run

METHODS = {     # label -> its name in experiments.compare, flags of asu.py
    "ASU": ("ASU_GD, selective", ["--method=asu"]), "ASU, original teacher": ("ASU_GD, selective", ["--method=asu", "--teacher_from=original"]),
    "GradDiff": ("GradDiff", ["--method=ga"]), "NPO": ("NPO_GD", ["--method=npo"]), "IDK": ("IDK_GD", ["--method=idk"]), "ME": ("ME_GD", ["--method=me"])}


def parse():
    p = Parser("Unlearn one request after another.")
    p.set_defaults(forget="forget90")
    p.add_argument("--tasks", type=positive_int, default=5, help="requests")
    p.add_argument("--epochs", type=positive_int, default=5, help="passes over each request's authors")
    p.add_argument("--settings", help="compare_*.json to take each method's settings from (default OUT/compare/compare_forget10.json)")
    return p.parse_args()


def main():
    args = parse()
    check_writable(args.out)
    file = Path(args.settings or Path(args.out) / "compare/compare_forget10.json")
    if args.settings and not file.exists():
        raise UserError(f"--settings={file} does not exist")
    chosen = json.loads(file.read_text())["chosen"] if file.exists() else {}
    report = {}
    for label, (name, flags) in METHODS.items():
        settings = [f"--{k}={v}" for k, v in chosen.get(name, {}).items() if k in ("lr", "c_forget", "tau", "layers", "heads", "alpha", "beta")]
        run_name = "continual_" + "".join(c if c.isalnum() else "_" for c in label)
        done = subprocess.run([sys.executable, str(HOME / "asu.py"), f"--out={args.out}", f"--data={args.data}", f"--seed={args.seed}",
                               f"--data_seed={args.data_seed}", f"--n_authors={args.n_authors}", f"--forget={args.forget}",
                               f"--tasks={args.tasks}", f"--epochs={args.epochs}", f"--name={run_name}", *flags, *settings, "--resume"],
                              capture_output=True, text=True)
        records = [read_run(Path(args.out) / f"{run_name}_{k + 1}of{args.tasks}") for k in range(args.tasks)]
        records = list(itertools.takewhile(bool, records))
        if not records:
            raise UserError(f"{label}: {done.stderr.strip().splitlines()[-1]}")
        if done.returncode:
            print(f"{label} stops after {len(records)} of {args.tasks}: {done.stderr.strip().splitlines()[-1]}", flush=True)
        report[label] = [{"share": (k + 1) / args.tasks * int(args.forget[-2:]) / 100, "by_request": r["fact_accuracy_by_request"],
                          "retain": r["curve"][-1]["retain_fact_accuracy"], "seconds": r["seconds"]} for k, r in enumerate(records)]
        print(f"{label}: retain " + ", ".join(f"{p['retain']:.2f}" for p in report[label]) + "; first request "
              + ", ".join(f"{p['by_request'][0]:.2f}" for p in report[label]), flush=True)
    plot_continual(report, Path(args.out) / "continual/continual.png")
    write_file(Path(args.out) / "continual/continual.json", json.dumps(report, indent=1) + "\n")
    print(f"written: {Path(args.out) / 'continual'}/continual.json and continual.png")


if __name__ == "__main__":
    run(main)
