"""Forget requests that keep coming, up to 90% of the authors: what is kept, and does the first request stay forgotten?

    python -m experiments.continual                    OUT/continual/continual.json and continual.png

Runs `asu.py --forget=forget90 --tasks=5` for ASU with the teacher from the latest weights and from the original ones,
and for four baselines, from OUT/target (so python train.py first); the settings of each are those of the comparison if
there is one.
"""

import json
from pathlib import Path

import asu
import data
from common import UserError, cli
from common.cli import Parser, positive_int, run
from common.files import check_writable, read_json, write_file
from experiments.trials import run_script
from lab.report import plt, save_figure
from lab.runs import read_run

METHODS = {     # label -> its name in experiments.compare, flags of asu.py
    "ASU": ("ASU_GD", ["--method=asu"]),
    "ASU, original teacher": ("ASU_GD", ["--method=asu", "--teacher_from=original"]),
    "GradDiff": ("GradDiff", ["--method=ga"]), "NPO": ("NPO_GD", ["--method=npo"]), "IDK": ("IDK_GD", ["--method=idk"]),
    "ME": ("ME_GD", ["--method=me"])}
SETTINGS = "lr", "c_forget", "tau", "layers", "heads", "alpha", "beta"      # that are taken from the comparison


def parse():
    p = Parser("continual.py", "Unlearn one request after another.")
    p.set_defaults(forget="forget90")
    p.add_argument("--tasks", type=positive_int, default=5, help="requests")
    p.add_argument("--epochs", type=positive_int, default=5, help="passes over each request's authors")
    p.add_argument("--settings", help="compare_*.json to take each method's settings from (default "
                                      "OUT/compare/compare_forget10.json)")
    return p.parse_args()


def requests(label, flags, args):
    """Unlearn request after request -> [a point of the report for each]. A method may stop early, but not at the first.

    flags: of asu.py, beside those of every method."""
    name = "continual_" + "".join(c if c.isalnum() else "_" for c in label)
    common = [f"--{flag}={getattr(args, flag)}"
              for flag in ("out", "data", "seed", "data_seed", "n_authors", "forget", "device", "dtype", "tasks",
                           "epochs")]
    flags, complaint = [*common, f"--name={name}", *flags], ""
    settings = cli.settings(asu.parse(flags), "run", "name")
    parent = read_run(Path(args.out) / "target").get("model_sha256")
    try:
        run_script("asu", [*flags, "--resume", "--overwrite"])
    except UserError as e:
        complaint = e
    points = []
    for task in range(args.tasks):
        record = read_run(Path(args.out) / f"{name}_{task + 1}of{args.tasks}")
        if record.get("settings") != settings or record["parent_sha256"] != parent:     # none, or of an earlier try
            break
        parent = record["model_sha256"]
        points.append({"share": (task + 1) / args.tasks * int(args.forget[-2:]) / 100,
                       "by_request": record["fact_accuracy_by_request"],
                       "retain": record["curve"][-1]["retain_fact_accuracy"], "seconds": record["seconds"]})
    if not points:
        raise UserError(f"{label}: {complaint}")
    if complaint:
        print(f"{label} stops after {len(points)} of {args.tasks}: {complaint}", flush=True)
    return points


def plot_continual(report, path):
    """Fact accuracy against the share forgotten: of the retain set, of the request just met, of the first request."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 4), sharey=True)
    for label, points in report.items():
        shares = [point["share"] for point in points]
        this = [point["by_request"][task] for task, point in enumerate(points)]
        first = [point["by_request"][0] for point in points]
        for axis, accuracies in zip(axes, ([point["retain"] for point in points], this, first)):
            axis.plot(shares, accuracies, marker=".", label=label)
    for axis, title in zip(axes, ("authors still kept", "authors of this request", "authors of the first request")):
        axis.set(title=title, xlabel="share of the authors forgotten so far", ylim=(-0.03, 1.03))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("fact accuracy")
    axes[0].legend(fontsize=7)
    save_figure(figure, path)


def main():
    args = parse()
    check_writable(args.out)
    out, file = Path(args.out) / "continual", Path(args.settings or Path(args.out) / "compare/compare_forget10.json")
    if args.settings and not file.exists():
        raise UserError(f"--settings={file} does not exist")
    rows = data.load(args.data, args.forget, args.out, args.data_seed, args.n_authors)
    for name, part in (("forget", rows.forget), ("retain", rows.retain)):
        if not any(row["facts"] for row in rows.questions(part)):
            raise UserError(f"--data={args.data} names no facts of the {name} set; their accuracy is compared")
    chosen = read_json(file, {"chosen": {}}).get("chosen")
    if not isinstance(chosen, dict) or not all(isinstance(settings, dict) for settings in chosen.values()):
        raise UserError(f"{file} is not a report of experiments.compare: it has no settings that were chosen")
    report = {}
    for label, (name, flags) in METHODS.items():
        settings = [f"--{k}={v}" for k, v in chosen.get(name, {}).items() if k in SETTINGS]
        report[label] = points = requests(label, [*flags, *settings], args)
        print(f"{label}: retain " + ", ".join(f"{point['retain']:.2f}" for point in points) + "; first request "
              + ", ".join(f"{point['by_request'][0]:.2f}" for point in points), flush=True)
    plot_continual(report, out / "continual.png")
    write_file(out / "continual.json", json.dumps(report, indent=1) + "\n")
    print(f"written: {out}/continual.json and continual.png")


if __name__ == "__main__":
    run(main)
