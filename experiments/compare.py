"""Every method under one protocol, with error bars.

    python -m experiments.compare                      OUT/compare/compare_forget10.md, .json and .png
    python -m experiments.compare --forget=forget05    another split, with the settings chosen on forget10

These rules were fixed before any number of the comparison was seen; asu.py's default tau and the ranges of the knobs
were not, see docs/comparison.md:
1. Every method gets the same number of trials, at the same points of a Sobol sequence, over its learning rate, its
   forget coefficient and its own knob (tau or alpha for ASU, beta elsewhere), all on logarithmic scales.
2. Trials run on a development draw of authors (--dev_seed), which no reported number comes from.
3. The rule: the smallest gap to retrain among the trials that keep at least 95% of the target's fact accuracy on the
   retain set; if none does, the one that keeps most.
4. The chosen settings then run on the reported draw (--data_seed) for --seeds training seeds: each seed has its own
   base, target, retrained and unlearned models. Differences are paired by seed, against ASU_GD, asu.py's default form;
   intervals are Student's t.
"""

from pathlib import Path

import numpy as np
import scipy.stats

from common import UserError
from common.cli import Parser, positive_int, run, whole
from common.files import check_writable, strict_json, write_file
from experiments.trials import (
    NO_FLAGS,
    OTHER_SEED,
    draws,
    gaps,
    report_draw,
    run_trials,
    spec_of,
    trial_flags,
    values_of,
)
from lab.report import markdown, mean_sd, plt, save_figure

LR, C_FORGET, ENOUGH = (1e-4, 3e-3), (0.1, 3.0), 0.95
PAPER_FORM = dict(layers="all", heads="all", alpha=1.0)
BEYOND = dict(tau=8.0, layers="all", heads="all")                   # asu.py's default: alpha goes beyond the teacher
SELECTIVE = dict(tau=1000.0, layers="all", heads="auto")            # for a model whose language smoothing breaks
METHODS = {     # name -> flags of asu.py, its knob and the knob's range
    "ASU_GD, paper": (dict(method="asu", retain="gd", **PAPER_FORM), "tau", (2, 32)),
    "ASU_GD, layers 1-": (dict(method="asu", retain="gd", **PAPER_FORM | {"layers": "1-"}), "tau", (16, 1000)),
    "ASU_GD": (dict(method="asu", retain="gd", **BEYOND), "alpha", (1, 1.5)),
    "ASU_GD, selective": (dict(method="asu", retain="gd", **SELECTIVE), "alpha", (1, 2)),
    "ASU_KL": (dict(method="asu", retain="kl", **BEYOND), "alpha", (1, 1.5)),
    "ASU+IDK": (dict(method="asu_idk", retain="gd", **BEYOND), "alpha", (1, 1.5)),
    "GA": (dict(method="ga", retain="none"), None, None),
    "GradDiff": (dict(method="ga", retain="gd"), None, None),
    "NPO_GD": (dict(method="npo", retain="gd"), "beta", (0.03, 1)),
    "SimNPO_GD": (dict(method="simnpo", retain="gd"), "beta", (0.5, 8)),
    "DPO_GD": (dict(method="dpo", retain="gd"), "beta", (0.03, 1)),
    "IDK_GD": (dict(method="idk", retain="gd"), None, None),
    "IDK+AP": (dict(method="idk", retain="ap"), None, None),
    "ME_GD": (dict(method="me", retain="gd"), None, None),
    "UNDIAL_GD": (dict(method="undial", retain="gd"), "beta", (2, 30)),
    "WGA_GD": (dict(method="wga", retain="gd"), "beta", (0.2, 5)),
    "SatImp_GD": (dict(method="satimp", retain="gd"), "beta", (0.5, 8)),
    "CE-U_GD": (dict(method="ceu", retain="gd"), None, None),
    "DUET_GD": (dict(method="duet", retain="gd"), "beta", (0.1, 10)),
    "RMU": (dict(method="rmu", retain="hidden"), "beta", (0.5, 8)),
}
PAPER = {       # MU / FE on TOFU forget10, Llama-2-7b-chat, as the ASU paper reports them; not ours
    "ASU_GD, paper": "- / 78.16", "ASU+IDK": "75.60 / 86.94", "IDK+AP": "- / 61.27"}
WHOLE = 0.9     # of the retrained model's coherence: a row below it says broken sentences, and the table names it
COLUMNS = (     # heading, part of the result, metric; one that no row has is left out
    ("gap to retrain", "aggregate", "gap_to_retrain"), ("coherence", "forget", "coherence"),
    ("recovered", "attack", "recovered"), ("forget facts", "forget", "fact_accuracy"),
    ("held-out", "forget", "fact_accuracy_heldout_phrasing"),
    ("prob.", "forget", "probability"), ("ROUGE-L", "forget", "rouge_l"), ("truth r.", "forget", "truth_ratio"),
    ("FQ D", "aggregate", "forget_quality_d"), ("FQ p", "aggregate", "forget_quality_p"),
    ("Min-k% AUC", "forget", "mia_min_k"), ("PrivLeak", "forget", "privleak"),
    ("retain facts", "retain", "fact_accuracy"), ("held-out", "retain", "fact_accuracy_heldout_phrasing"),
    ("prob.", "retain", "probability"), ("ROUGE-L", "retain", "rouge_l"),
    ("MU-lite", "aggregate", "model_utility_lite"), ("FE-lite", "aggregate", "forget_efficacy_lite"))


def parse():
    p = Parser("compare.py", "Compare every unlearning method under one protocol.", without=NO_FLAGS)
    add = p.add_argument
    add("--dev_seed", type=whole, default=1, help="the draw of authors that settings are chosen on")
    add("--trials", type=positive_int, default=8, help="settings tried for each method")
    add("--epochs", type=positive_int, default=5, help="passes over the forget set, for every method")
    add("--methods", help="semicolon-separated, default all: " + ";".join(METHODS))
    trial_flags(p, seeds=5)
    return p.parse_args()


# ------------------------------------------------------------------------------ 1 to 3: the development draw
def points(n):
    """n points in the unit cube, the same for every method: -> (n, 3)."""
    return scipy.stats.qmc.Sobol(3, scramble=False).random(2 ** int(np.ceil(np.log2(n + 1))))[1:n + 1]


def settings_at(point, method, epochs):
    """A point of the unit cube -> flags of asu.py as a dict: learning rate, forget coefficient, knob."""
    fixed, knob, span = METHODS[method]

    def between(low, high, x):
        return float(f"{low * (high / low) ** x:.3g}")
    settings = dict(fixed, lr=between(*LR, point[0]), c_forget=between(*C_FORGET, point[1]), epochs=epochs)
    if knob:
        settings[knob] = between(*span, point[2])
    return settings


def retain_facts(trial):
    return trial["result"]["retain"]["fact_accuracy"]


def choose(trials, target):
    """Rule 3. trials: {key: trial with its gap} -> the key of the one chosen, the first at a tie."""
    enough = [key for key in trials if retain_facts(trials[key]) >= ENOUGH * retain_facts(target)]
    if enough:
        return min(enough, key=lambda key: trials[key]["result"]["aggregate"]["gap_to_retrain"])
    return max(trials, key=lambda key: retain_facts(trials[key]))


def develop(methods, spec, key, args):
    """Run the trials of every method -> {method: the settings chosen}, {method: [result of each trial]}.

    spec: (name, key, ...) -> spec of a trial; key: of the development draw."""
    settings, specs = {}, {"target": spec("target", key), "retrained": spec("retrained", key, "retrained")}
    for method in methods:
        for i, point in enumerate(points(args.trials)):
            settings[method, i] = settings_at(point, method, args.epochs)
            specs[method, i] = spec(f"{method}_{i}", key, unlearn=settings[method, i])
    done = run_trials(specs, args.jobs, "trials")
    target, retrained = done.pop("target"), done.pop("retrained")
    gaps(done.values(), retrained)
    chosen, tried = {}, {}
    for method in methods:
        chosen[method] = settings[choose({(method, i): done[method, i] for i in range(args.trials)}, target)]
        tried[method] = [done[method, i]["result"] for i in range(args.trials)]
    return chosen, tried


# ------------------------------------------------------------------------------------ 4: the reported draw
def rows_of(chosen):
    """The rows of the table: train.py's models, the forget-teachers, the methods -> {row: more of its trial's spec}"""
    rows = {"target": {}, "retrained": {"run": "retrained"}, OTHER_SEED: None}
    for method, settings in chosen.items():
        if (settings["method"], settings["retain"]) == ("asu", "gd"):
            rows[f"teacher of {method}"] = {"smoothing": {flag: settings[flag] for flag in ("tau", "layers", "heads")}}
    return rows | {method: {"unlearn": settings} for method, settings in chosen.items()}


def measure_costs(chosen, spec, key):
    """Two epochs of each method, alone on the machine and in a process of its own -> {method: {seconds, peak_mb,
    ms_per_step}}, seconds of the whole run. What comes before the first step (choosing heads, asking theta_0) is paid
    once, and is in no step."""
    specs = {method: spec(f"cost_{method}", key, unlearn=s | {"epochs": 2}) for method, s in chosen.items()}
    costs = {}
    for method, done in run_trials(specs, 1, "cost", fresh=True).items():
        cost = done["result"]["cost"]
        seconds = cost["seconds"] + cost["step_seconds"] * cost["steps"] / 2 * (chosen[method]["epochs"] - 2)
        costs[method] = {"ms_per_step": 1000 * cost["step_seconds"], "peak_mb": cost["peak_mb"], "seconds": seconds}
    return costs


def paired(differences):
    """Mean of paired differences and its 95% interval (Student's t) -> (mean, low, high)."""
    d = np.asarray(differences, float)
    half = scipy.stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d)) if len(d) > 1 else float("nan")
    return float(d.mean()), float(d.mean() - half), float(d.mean() + half)


def differences(results, methods, reference):
    """Of the gap to retrain, method minus reference, paired by seed -> {method: (mean, low, high)}. results: as of
    report_draw."""
    def gap(row, seed):
        return results[row][seed]["aggregate"]["gap_to_retrain"]
    return {method: paired([gap(method, seed) - gap(reference, seed) for seed in results[method]])
            for method in methods if method != reference}


# ------------------------------------------------------------------------------------------- what is written
def broken(results, retrained):
    """Whether a row's answers are sentences much less often than the retrained model's, in the mean over seeds."""
    coherence, wanted = (np.mean(values_of(rows, "forget", "coherence")) for rows in (results, retrained))
    return bool(coherence < WHOLE * wanted)


def settings_text(settings, flags):
    return ", ".join(f"{k} {v}" for k, v in settings.items() if k in flags)


def table(report, reference):
    """The Markdown of the comparison: mean ± sample standard deviation over seeds."""
    columns, every = [], [result for results in report["rows"].values() for result in results]
    for column in COLUMNS:
        if any(value is not None for value in values_of(every, *column[1:])):
            columns.append(column)
    lines = [["method", *(heading for heading, *_ in columns), f"gap minus {reference}'s, 95%", "seconds", "peak MB",
              "step", "paper MU / FE"]]
    for row, results in report["rows"].items():
        cells = [mean_sd(values_of(results, part, metric)) for _, part, metric in columns]
        cells[0] += " (broken)" * broken(results, report["rows"]["retrained"])
        difference = costs = None
        if row in report["differences"]:
            difference = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*report["differences"][row])
        if row in report["costs"]:
            cost, base = report["costs"][row], report["costs"][reference]
            costs = [f"{cost['seconds']:.0f}", f"{cost['peak_mb']:.0f}",
                     f"{cost['ms_per_step'] / base['ms_per_step']:.2f}x"]
        elif row in ("target", "retrained"):
            costs = [f"{results[0]['cost']['seconds']:.0f}", "-", "-"]
        paper = PAPER.get(row, "") if report["settings"]["forget"] == "forget10" else ""
        lines.append([row, *cells, difference or "-", *(costs or ["-"] * 3), paper])
    n = report["rows"]["target"][0]["aggregate"]["forget_quality_n"]
    flags = "lr", "c_forget", "tau", "layers", "alpha", "beta"
    chosen = [f"- {method}: {settings_text(settings, flags)}" for method, settings in report["chosen"].items()]
    notes = [f"(broken): coherence below {WHOLE} of the retrained model's. A broken sentence states no fact, so facts "
             f"are easily gone there. Forget quality (FQ) is of n = {n} questions."]
    if report["settings"]["dev_seed"] == report["settings"]["data_seed"]:
        notes.append("The settings were chosen on the reported draw of authors itself, so these numbers flatter them.")
    return "\n".join([markdown(lines), "", *notes, "", "Chosen on the development draw:", "", *chosen, ""])


PANELS = (      # of the figure: x axis and y axis (part of the result, metric, label), whether more of y is better
    (("forget", "fact_accuracy", "fact accuracy on the forget set (lower: forgotten)"),
     ("retain", "fact_accuracy", "fact accuracy on the retain set (higher: kept)"), True),
    (("aggregate", "gap_forget", "gap to retrain on the forget set"),
     ("aggregate", "gap_retain", "gap to retrain on the retain set"), False))


def frontier(points, higher):
    """The points (x, y) that none with a smaller x beats in y, by growing x. higher: whether more of y is better.

    frontier([(1, 5), (2, 7), (3, 6)], False) -> [(1, 5)]"""
    best = []
    for x, y in sorted(points):
        if not best or (y > best[-1][1] if higher else y < best[-1][1]):
            best.append((x, y))
    return best


def plot_frontiers(report, path):
    """Every method's trade-off: its trials on the development draw (small), their frontier, and where its chosen
    settings came out on the reported draw (large, with the standard deviation over seeds). report: see main."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 5.4))
    for axis, (x, y, higher) in zip(axes, PANELS):
        for i, (method, trials) in enumerate(report["trials"].items()):
            color, marker = f"C{i % 10}", "os^Dv"[i // 10]
            xs, ys = values_of(trials, *x[:2]), values_of(trials, *y[:2])
            axis.plot(xs, ys, marker, color=color, ms=3, alpha=0.5)
            axis.plot(*np.transpose(frontier(zip(xs, ys), higher)), "-", color=color, lw=0.8, alpha=0.6)
            xs, ys = (values_of(report["rows"][method], *quantity[:2]) for quantity in (x, y))
            spread = [np.std(v, ddof=1) if len(v) > 1 else 0 for v in (xs, ys)]
            axis.errorbar(np.mean(xs), np.mean(ys), xerr=spread[0], yerr=spread[1], fmt=marker, color=color, ms=8,
                          capsize=2, label=method)
        gold = [values_of(report["rows"]["retrained"], *quantity[:2]) for quantity in (x, y)]
        gold = [0.0 if None in values else np.mean(values) for values in gold]      # its gap to itself
        axis.plot(*gold, "*", color="goldenrod", ms=16, label="retrained (the goal)")
        axis.set(xlabel=x[2], ylabel=y[2])
        axis.grid(alpha=0.3)
    axes[1].set_title("Lower left is better")
    axes[1].legend(fontsize=7, ncol=2)
    save_figure(figure, path)


def main():
    args = parse()
    check_writable(args.out)
    out = Path(args.out) / "compare"
    methods = list(METHODS) if args.methods is None else args.methods.split(";")
    if unknown := [method for method in methods if method not in METHODS]:
        raise UserError(f"--methods: {unknown[0]} is not one of {';'.join(METHODS)}")
    keys, development = {}, (args.dev_seed, 0, "forget10")
    for seed in range(args.seeds):
        keys[seed] = args.data_seed, seed, args.forget
    folders = draws([keys[0]], args, out, jobs=1)               # alone on the machine: its seconds stand in the table
    folders |= draws([development, *list(keys.values())[1:]], args, out)

    def spec(name, key, run="target", **more):
        data_seed, seed, forget = key
        name += "_attacked" * more.get("attack", False)
        file = out / "trials" / forget / f"draw{data_seed}_seed{seed}_{name}.json".replace(" ", "")
        return spec_of(file, folders[key], key, args, run, **more)
    chosen, tried = develop(methods, spec, development, args)
    reference = "ASU_GD" if "ASU_GD" in methods else methods[0]
    print("chosen:", *(f"  {method}: {settings_text(chosen[method], chosen[method])}" for method in methods), sep="\n",
          flush=True)
    results = report_draw(rows_of(chosen), spec, keys, args.jobs)
    settings = {k: v for k, v in vars(args).items() if k != "out"}
    report = {"protocol": __doc__, "settings": settings, "chosen": chosen,
              "rows": {row: list(by_seed.values()) for row, by_seed in results.items()},
              "costs": measure_costs(chosen, spec, keys[0]), "trials": tried,
              "differences": differences(results, methods, reference)}
    text, name = table(report, reference), f"compare_{args.forget}"
    plot_frontiers(report, out / f"{name}.png")
    write_file(out / f"{name}.json", strict_json(report))
    write_file(out / f"{name}.md", text)
    print(f"\n{text}\nwritten: {out / name}.md, .json and .png")


if __name__ == "__main__":
    run(main)
