"""What a forgetting that holds costs: where the student starts and how long it learns, against what comes back.

    python -m experiments.frontier                     OUT/frontier/frontier.json, .md and .png

Every run has the settings of config/lasting.args but for --start and --epochs, on the models of experiments.compare.
Beside them, from the same start and for as long: other methods, and no forget loss at all. What comes back is the
recovered share of lab/recover.py; the cost is in tokens that the student runs over, as a share of those that
retraining takes, its base included, because that does not depend on what else the machine is doing. Without a forget
loss half of its tokens, the forget set's, teach nothing.
"""

from pathlib import Path

import numpy as np

import asu
from common.cli import Parser, expand_preset, run
from common.files import check_writable, strict_json, write_file
from experiments.trials import NO_FLAGS, draws, report_draw, spec_of, trial_flags, values_of
from lab.report import markdown, mean_sd, plt, save_figure
from lab.runs import read_run

STARTS, EPOCHS = (0.0, 0.15, 0.3, 0.5, 1.0), (8, 16, 35)
OTHERS = {"NPO": {"method": "npo"}, "swap": {"method": "swap"}, "IDK": {"method": "idk"},
          "no forget loss": {"c_forget": 0.0}}
COLUMNS = (     # heading, part of the result, metric
    ("gap to retrain", "aggregate", "gap_to_retrain"), ("recovered", "attack", "recovered"),
    ("rank, halfway back", "attack", "halfway_auc"), ("forget facts", "forget", "fact_accuracy"),
    ("coherence", "forget", "coherence"), ("retain facts", "retain", "fact_accuracy"),
    ("world facts", "world", "fact_accuracy"), ("cost", "cost", "share"))
KEEPS = (       # part, metric, its lowest and highest: a run beyond them is drawn hollow
    ("aggregate", "gap_to_retrain", 0, 0.03), ("forget", "coherence", 0.97, 1), ("retain", "fact_accuracy", 0.98, 1),
    ("world", "fact_accuracy", 0.98, 1))


def preset():
    """The flags of config/lasting.args that are not asu.py's defaults, as a dict; not its name."""
    plain, lasting = vars(asu.parse([])), vars(asu.parse(expand_preset("@config/lasting.args", "asu.py")))
    return {flag: value for flag, value in lasting.items() if value != plain[flag] and flag != "name"}


def rows():
    """{(what, start, epochs): flags of asu.py}"""
    lasting, made = preset(), {}
    for start in STARTS:
        for epochs in EPOCHS:
            made["ASU", start, epochs] = lasting | {"start": start, "epochs": epochs}
    for name, change in OTHERS.items():
        made[name, lasting["start"], lasting["epochs"]] = lasting | change
    return made


def mean(results, part, metric):
    """Over seeds; nan where none has a number: a target that an attack breaks gives no share."""
    values = [value for value in values_of(results, part, metric) if value is not None]
    return float(np.mean(values)) if values else float("nan")


def keeps(results):
    """Whether the mean over seeds stays within every limit of KEEPS."""
    return all(low <= mean(results, part, metric) <= high for part, metric, low, high in KEEPS)


def table(results):
    """Markdown, mean ± sample standard deviation over seeds. results: {row: [result of each seed]}"""
    lines = [["method", "start", "epochs", *(heading for heading, *_ in COLUMNS)]]
    for (what, start, epochs), by_seed in results.items():
        cells = [mean_sd(values_of(by_seed, part, metric)) for _, part, metric in COLUMNS]
        lines.append([what, f"{start:g}", str(epochs), *cells])
    return markdown(lines)


def plot(results, path):
    """What comes back, against what it costs and against the gap; hollow: a run that does not keep the rest."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 5), sharey=True)
    quantities = (("cost", "share"), ("aggregate", "gap_to_retrain"))
    for axis, quantity in zip(axes, quantities):
        def at(result):
            return mean(result, *quantity), mean(result, "attack", "recovered")
        for i, start in enumerate(STARTS):
            runs = [results["ASU", start, epochs] for epochs in EPOCHS]
            axis.plot(*zip(*map(at, runs)), "-", color=f"C{i}", lw=1)
            for result in runs:
                axis.plot(*at(result), "o", color=f"C{i}", mfc=f"C{i}" if keeps(result) else "none", ms=7)
            axis.plot([], [], "o-", color=f"C{i}", label=f"ASU, start {start:g}, {', '.join(map(str, EPOCHS))} epochs")
        others = [(what, result) for (what, *_), result in results.items() if what != "ASU"]
        for i, (what, result) in enumerate(others, len(STARTS)):
            color = f"C{i}"
            axis.plot(*at(result), "s", color=color, mfc=color if keeps(result) else "none", ms=8, label=what)
        axis.plot(float(quantity[0] == "cost"), 0, "*", color="goldenrod", ms=16, label="retrained")
        axis.grid(alpha=0.3)
    axes[0].set(xscale="log", xlabel="tokens learnt from, as a share of retraining's", ylabel="recovered share")
    axes[1].set(xlabel="gap to retrain")
    axes[1].legend(fontsize=7, loc="upper right")
    axes[0].set_title("Lower left: cheap, and it holds; hollow: the rest is not kept")
    save_figure(figure, path)


def main():
    p = Parser("frontier.py", "What does a forgetting that holds cost?", without=NO_FLAGS)
    trial_flags(p, seeds=3)
    args = p.parse_args()
    check_writable(args.out)
    out = Path(args.out) / "frontier"
    keys = {seed: (args.data_seed, seed, args.forget) for seed in range(args.seeds)}
    folders = draws(list(keys.values()), args, Path(args.out) / "compare")

    def spec(row, key, run="target", **more):
        name = row if isinstance(row, str) else "{}_start{:g}_{}epochs".format(*row).replace(" ", "_")
        file = out / f"trials/{args.forget}_draw{key[0]}_seed{key[1]}_{name}.json"
        return spec_of(file, folders[key], key, args, run, **more)
    models, runs = {"target": {}, "retrained": {"run": "retrained"}}, rows()
    results = report_draw(models | {row: {"unlearn": flags} for row, flags in runs.items()}, spec, keys, args.jobs)
    for seed, key in keys.items():
        retraining = sum(read_run(folders[key] / name)["tokens"] for name in ("base", "retrained"))
        for by_seed in results.values():
            by_seed[seed]["cost"]["share"] = by_seed[seed]["cost"]["tokens"] / retraining
    results = {row: list(results[row].values()) for row in runs}
    text = table(results)
    plot(results, out / "frontier.png")
    write_file(out / "frontier.json", strict_json([
        {"method": what, "start": start, "epochs": epochs, "keeps": keeps(by_seed), "results": by_seed}
        for (what, start, epochs), by_seed in results.items()]))
    write_file(out / "frontier.md", text + "\n")
    print(f"\n{text}\n\nwritten: {out}/frontier.json, .md and .png")


if __name__ == "__main__":
    run(main)
