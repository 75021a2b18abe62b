"""How eval.py shows its numbers: Markdown tables, one question with every model's answer, and three figures."""

import io

import matplotlib
import numpy as np

from common import write_file

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)

TABLES = {      # title -> columns: heading, where in a run's result, metric
    "Summary": (
        ("gap to retrain", "aggregate", "gap_to_retrain"), ("forget facts", "forget", "fact_accuracy"),
        ("held-out", "forget", "fact_accuracy_heldout_phrasing"), ("truth r.", "forget", "truth_ratio"),
        ("coherence", "forget", "coherence"), ("retain facts", "retain", "fact_accuracy"),
        ("held-out", "retain", "fact_accuracy_heldout_phrasing"), ("world facts", "world", "fact_accuracy"),
        ("seconds", "cost", "seconds")),
    "On the forget set": (
        ("probability", "forget", "probability"), ("ROUGE-L", "forget", "rouge_l"), ("entropy", "forget", "token_entropy"),
        ("fact NLL", "forget", "fact_nll"), ("function NLL", "forget", "function_nll"),
        ("EM", "forget", "exact_memorization"), ("EM facts", "forget", "exact_memorization_facts"),
        ("fact rank", "forget", "fact_rank_median"), ("ES", "forget", "extraction_strength"),
        ("MIA loss", "forget", "mia_loss"), ("Min-k%", "forget", "mia_min_k"), ("Min-k%++", "forget", "mia_min_k_pp"),
        ("PrivLeak", "forget", "privleak")),
    "On the retain set": (
        ("probability", "retain", "probability"), ("ROUGE-L", "retain", "rouge_l"), ("truth r.", "retain", "truth_ratio"),
        ("entropy", "retain", "token_entropy"), ("coherence", "retain", "coherence"), ("fact NLL", "retain", "fact_nll"),
        ("function NLL", "retain", "function_nll"), ("EM", "retain", "exact_memorization"),
        ("ES", "retain", "extraction_strength")),
    "Over all sets": (
        ("gap forget", "aggregate", "gap_forget"), ("gap retain", "aggregate", "gap_retain"),
        ("FQ D", "aggregate", "forget_quality_d"), ("FQ n", "aggregate", "forget_quality_n"),
        ("FQ p", "aggregate", "forget_quality_p"), ("MU-lite", "aggregate", "model_utility_lite"),
        ("FE-lite", "aggregate", "forget_efficacy_lite"), ("peak MB", "cost", "peak_mb"), ("tokens", "cost", "tokens")),
}


def table(runs, columns):
    """Markdown table of {run: result}, padded so that it also reads in a terminal."""
    def cell(value):
        if value is None:
            return "-"
        if abs(value) >= 10 or isinstance(value, int):
            return f"{value:.0f}"
        return f"{value:.0e}" if 0 < abs(value) < 0.001 else f"{value:.3f}"
    lines = [["run", *(heading for heading, *_ in columns)]]
    for name, result in runs.items():
        flag = " (over-unlearned)" if result["aggregate"].get("over_unlearned") else ""
        lines.append([name + flag, *(cell(result[part].get(key)) for _, part, key in columns)])
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines = ["| " + " | ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths))) + " |"
             for line in lines]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 1) + ":" if i else "-" * (w + 2) for i, w in enumerate(widths)) + "|",
                      *lines[1:]])


def one_of_each(sets, answers):
    """The first question of each set, its true answer, and every model's -> text."""
    blocks = []
    for name, rows in sets.items():
        row = rows[0]
        width = max(map(len, [*answers, "truth"]))
        blocks.append("\n".join([f"{name}: {row['question']}", f"  {'truth':{width}}  {row['answer']}",
                                 *(f"  {run:{width}}  {a[name][0] or '(nothing)'}" for run, a in answers.items())]))
    return "\n\n".join(blocks)


LEGEND = """Gap to retrain: mean distance to the retrained model (0 best) of probability, ROUGE-L, truth ratio, fact accuracy on
both phrasings, token entropy and coherence, on forget and on retain alike. Over-unlearned: probability or ROUGE-L on the
forget set below the retrained model's, beyond the 95% interval. Truth ratio: 1 is best; on forget, truth and lies then look
alike, elsewhere the truth is preferred. Held-out: a phrasing of the question no model was trained on. EM, ES: exact
memorisation, extraction strength. MIA: AUC against people nobody met; the goal is the retrained model's, from which PrivLeak
(of Min-k%) is the distance in percent. FQ: Kolmogorov-Smirnov test against the retrained model (D 0 best; p depends on n).
MU-lite: harmonic mean of ROUGE-L, probability, truth ratio and token entropy over all sets but forget. FE-lite: of
1 - ROUGE-L, 1 - probability, truth ratio and token entropy on forget; the paper's MU and FE have more in them. Seconds: of
this run alone, its parents not counted. 95% intervals (bootstrap over questions) are in report.json."""


# ------------------------------------------------------------------------------------------------ figures
def save_figure(figure, path):
    buffer = io.BytesIO()
    figure.tight_layout()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    write_file(path, buffer.getvalue())


def plot_tradeoff(runs, path):
    """Forgetting against retention: fact accuracy on both, every run a point with its 95% interval."""
    figure, axis = plt.subplots(figsize=(6.4, 4.8))
    for i, (name, result) in enumerate(runs.items()):
        x, y = (result[part]["fact_accuracy"] for part in ("forget", "retain"))
        if x is None:
            continue
        errors = [[[v - result[part]["ci95"]["fact_accuracy"][0]], [result[part]["ci95"]["fact_accuracy"][1] - v]]
                  for part, v in (("forget", x), ("retain", y))]
        gold = name == "retrained"
        axis.errorbar(x, y, xerr=errors[0], yerr=errors[1], fmt="*" if gold else "o", ms=15 if gold else 7, capsize=2,
                      color="goldenrod" if gold else f"C{i}", label=name + (" (what unlearning should reach)" if gold else ""))
    axis.set(xlabel="fact accuracy on the forget set (lower: forgotten)", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03),
             ylabel="fact accuracy on the retain set (higher: kept)", title="What was forgotten and what was kept")
    axis.grid(alpha=0.3)
    axis.legend(loc="best", fontsize=8)
    save_figure(figure, path)


def plot_curves(records, path):
    """Training curves of all runs: loss above, fact accuracy below, against seconds."""
    records = {name: r for name, r in records.items() if len(r.get("curve", [])) > 1}
    figure, axes = plt.subplots(2, len(records), figsize=(3 * len(records), 5), sharey="row", squeeze=False)
    for (name, record), (top, bottom) in zip(records.items(), axes.T):
        for key in record["curve"][0]:
            axis = top if key.endswith("loss") else bottom if key.endswith("fact_accuracy") else None
            if axis and not (key == "loss" and "forget_loss" in record["curve"][0]):
                axis.plot([p["seconds"] for p in record["curve"]], [p[key] for p in record["curve"]], marker=".",
                          label=key.replace("_fact_accuracy", "").replace("_", " "))
        top.set(title=name, yscale="log")
        bottom.set(xlabel="seconds", ylim=(-0.03, 1.03))
        for axis in (top, bottom):
            axis.grid(alpha=0.3)
            axis.legend(fontsize=7)
    axes[0, 0].set_ylabel("loss (nats a token)")
    axes[1, 0].set_ylabel("fact accuracy")
    save_figure(figure, path)


def plot_tau(curves, path):
    """What smoothing does to the target itself: NLL against tau. curves: {"tau": [...], (set, token class): [...]}."""
    figure, axis = plt.subplots(figsize=(6.4, 4.4))
    for part, color in (("forget", "C3"), ("retain", "C0")):
        for kind, style in (("fact", "-"), ("function", "--")):
            axis.plot(curves["tau"], curves[f"{part}_{kind}_nll"], style, marker=".", color=color, label=f"{part}, {kind} tokens")
    axis.set(xscale="log", xlabel="attention temperature tau of the target, untrained", ylabel="NLL (nats a token)",
             xticks=curves["tau"], xticklabels=[f"{tau:g}" for tau in curves["tau"]], title="What smoothing alone does to the target")
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    save_figure(figure, path)


def plot_frontiers(report, path):
    """Every method's trade-off: its trials on the development draw (small), its frontier, and where its chosen settings came
    out on the reported draw (large, with the standard deviation over seeds). report: see experiments/compare.py."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 5.4))
    for axis, (x, y) in zip(axes, ((("forget", "fact_accuracy"), ("retain", "fact_accuracy")), (("aggregate", "gap_forget"), ("aggregate", "gap_retain")))):
        for i, (method, trials) in enumerate(report["trials"].items()):
            color, marker = f"C{i % 10}", "os^Dv"[i // 10]
            points = sorted((t[x[0]][x[1]], t[y[0]][y[1]]) for t in trials)
            sign = -1 if y[0] == "retain" else 1                    # what is kept is wanted high, a gap low
            best, frontier = float("inf"), []
            for p in points:
                if sign * p[1] < best:
                    best = sign * p[1]
                    frontier.append(p)
            axis.plot(*zip(*points), marker, color=color, ms=3, alpha=0.5)
            axis.plot(*zip(*frontier), "-", color=color, lw=0.8, alpha=0.6)
            xs, ys = ([r[part][key] for r in report["rows"][method]] for part, key in (x, y))
            axis.errorbar(np.mean(xs), np.mean(ys), xerr=np.std(xs, ddof=1) if len(xs) > 1 else 0,
                          yerr=np.std(ys, ddof=1) if len(ys) > 1 else 0, fmt=marker, color=color, ms=8, capsize=2, label=method)
        gold = report["rows"]["retrained"]
        axis.plot(np.mean([r["forget"]["fact_accuracy"] for r in gold]) if x[0] == "forget" else 0,
                  np.mean([r["retain"]["fact_accuracy"] for r in gold]) if x[0] == "forget" else 0, "*", color="goldenrod", ms=16,
                  label="retrained (the goal)")
        axis.grid(alpha=0.3)
    axes[0].set(xlabel="fact accuracy on the forget set (lower: forgotten)", ylabel="fact accuracy on the retain set (higher: kept)")
    axes[1].set(xlabel="gap to retrain on the forget set", ylabel="gap to retrain on the retain set", title="Lower left is better")
    axes[1].legend(fontsize=7, ncol=2)
    save_figure(figure, path)


def plot_ablation(report, path):
    """One panel an axis: forget and retain fact accuracy, coherence and gap to retrain against the setting, mean ± deviation."""
    lines = (("forget facts", "forget", "fact_accuracy", "C3"), ("retain facts", "retain", "fact_accuracy", "C0"),
             ("coherence", "forget", "coherence", "C2"), ("gap to retrain", "aggregate", "gap_to_retrain", "k"))
    figure, axes = plt.subplots(1, len(report), figsize=(3.6 * len(report), 3.8), sharey=True, squeeze=False)
    for (title, points), axis in zip(report.items(), axes[0]):
        ticks = [str(p["setting"].get("layers" if title == "layers" else title.split(",")[0])) for p in points]
        for label, part, key, color in lines:
            values = [[r[part][key] for r in p["results"]] for p in points]
            axis.errorbar(range(len(points)), [np.mean(v) for v in values], yerr=[np.std(v, ddof=1) if len(v) > 1 else 0 for v in values],
                          marker=".", capsize=2, color=color, label=label)
        axis.set(title=title, ylim=(-0.03, 1.03))
        axis.set_xticks(range(len(points)), ticks)
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=7)
    save_figure(figure, path)


def plot_continual(report, path):
    """Fact accuracy against the share forgotten: of what is kept, of the request just met, of the first request."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 4), sharey=True)
    for label, points in report.items():
        x = [p["share"] for p in points]
        for axis, y in zip(axes, ([p["retain"] for p in points], [p["by_request"][k] for k, p in enumerate(points)],
                                  [p["by_request"][0] for p in points])):
            axis.plot(x, y, marker=".", label=label)
    for axis, title in zip(axes, ("authors still kept", "authors of this request", "authors of the first request")):
        axis.set(title=title, xlabel="share of the authors forgotten so far", ylim=(-0.03, 1.03))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("fact accuracy")
    axes[0].legend(fontsize=7)
    save_figure(figure, path)
