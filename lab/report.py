"""How eval.py shows its numbers: Markdown tables, one question with every model's answer, and three figures."""

import io
import json
import textwrap

import matplotlib
import numpy as np

from common.files import write_file

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)

TABLES = {      # title -> columns: heading, where in a run's result, metric
    "Summary": (
        ("gap to retrain", "aggregate", "gap_to_retrain"), ("forget facts", "forget", "fact_accuracy"),
        ("held-out", "forget", "fact_accuracy_heldout_phrasing"), ("truth r.", "forget", "truth_ratio"),
        ("coherence", "forget", "coherence"), ("retain facts", "retain", "fact_accuracy"),
        ("held-out", "retain", "fact_accuracy_heldout_phrasing"), ("world facts", "world", "fact_accuracy"),
        ("seconds", "cost", "seconds")),
    "Passages and options": (
        ("choices", "forget", "choice_accuracy"), ("retain", "retain", "choice_accuracy"),
        ("VerbMem", "forget_text", "verbmem"), ("retain", "retain_text", "verbmem"), ("KnowMem", "forget", "knowmem"),
        ("retain", "retain", "knowmem"), ("PrivLeak", "forget_text", "privleak"),
        ("Min-k%", "forget_text", "mia_min_k"), ("NLL", "forget_text", "nll"),
        ("retain", "retain_text", "nll"), ("general", "general", "nll"),
        ("seconds", "cost", "seconds")),
    "On the forget set": (
        ("probability", "forget", "probability"), ("ROUGE-L", "forget", "rouge_l"),
        ("entropy", "forget", "token_entropy"), ("fact NLL", "forget", "fact_nll"),
        ("function NLL", "forget", "function_nll"), ("similarity", "forget", "cosine_similarity"),
        ("entailed", "forget", "entailment"), ("EM", "forget", "exact_memorization"),
        ("EM facts", "forget", "exact_memorization_facts"), ("fact rank", "forget", "fact_rank_median"),
        ("ES", "forget", "extraction_strength"), ("MIA loss", "forget", "mia_loss"), ("Min-k%", "forget", "mia_min_k"),
        ("Min-k%++", "forget", "mia_min_k_pp"), ("PrivLeak", "forget", "privleak")),
    "On the retain set": (
        ("probability", "retain", "probability"), ("ROUGE-L", "retain", "rouge_l"),
        ("truth r.", "retain", "truth_ratio"), ("entropy", "retain", "token_entropy"),
        ("coherence", "retain", "coherence"), ("fact NLL", "retain", "fact_nll"),
        ("function NLL", "retain", "function_nll"), ("similarity", "retain", "cosine_similarity"),
        ("entailed", "retain", "entailment"), ("EM", "retain", "exact_memorization"),
        ("ES", "retain", "extraction_strength")),
    "Over all sets": (
        ("gap forget", "aggregate", "gap_forget"), ("gap retain", "aggregate", "gap_retain"),
        ("FQ D", "aggregate", "forget_quality_d"), ("FQ n", "aggregate", "forget_quality_n"),
        ("FQ p", "aggregate", "forget_quality_p"), ("MU-lite", "aggregate", "model_utility_lite"),
        ("FE-lite", "aggregate", "forget_efficacy_lite"), ("MU", "aggregate", "model_utility"),
        ("FE", "aggregate", "forget_efficacy"), ("MU TOFU", "aggregate", "model_utility_tofu"),
        ("peak MB", "cost", "peak_mb"), ("tokens", "cost", "tokens")),
}


def tables(runs, metrics):
    """-> {title: Markdown}, those of TABLES that have something to show.

    metrics: names of the metrics of a question set; one that no column shows gets its own, on forget and on retain."""
    texts, shown = {}, {(part, key) for columns in TABLES.values() for _, part, key in columns}
    for title, columns in TABLES.items():
        for part in ("forget", "retain"):
            if title == f"On the {part} set":
                columns = [*columns, *((name, part, name) for name in metrics if (part, name) not in shown)]
        if text := table(runs, columns):
            texts[title] = text
    return texts


def table(runs, columns):
    """Markdown table of {run: result}, padded so that it also reads in a terminal; "" without any columns.

    columns: as in TABLES; those that no run has are left out."""
    columns = [(heading, part, key) for heading, part, key in columns
               if any(result.get(part, {}).get(key) is not None for result in runs.values())]
    if {part for _, part, _ in columns} <= {"cost"}:
        return ""
    lines = [["run", *(heading for heading, _, _ in columns)]]
    for name, result in runs.items():
        flag = " (over-unlearned)" if result["aggregate"].get("over_unlearned") else ""
        lines.append([name + flag, *(cell(result.get(part, {}).get(key)) for _, part, key in columns)])
    return markdown(lines)


def cell(value):
    """A number as tables show it: cell(0.1234) -> "0.123", cell(0.0002) -> "2e-04", cell(12.3) -> "12"."""
    if value is None:
        return "-"
    if abs(value) >= 10 or isinstance(value, int):
        return f"{value:.0f}"
    return f"{value:.0e}" if 0 < abs(value) < 0.001 else f"{value:.3f}"


def markdown(lines):
    """Lists of cells, the headings first -> a Markdown table, padded; the first column left, the others right."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    rule = "|".join("-" * (width + 1) + ":" if i else "-" * (width + 2) for i, width in enumerate(widths))
    texts = []
    for line in lines:
        padded = [text.rjust(width) if i else text.ljust(width) for i, (text, width) in enumerate(zip(line, widths))]
        texts.append(f"| {' | '.join(padded)} |")
    return "\n".join([texts[0], f"|{rule}|", *texts[1:]])


def one_of_each(sets, answers):
    """The first question of each set, its true answer, and every model's -> text."""
    width, blocks = max(map(len, [*answers, "truth"])), []
    for part, rows in sets.items():
        if part == "general":                                       # nothing is said there
            continue
        question, truth = rows[0]["question"], rows[0]["answer"]
        if not question:                                            # a passage, of which a quarter is given
            given = len(truth) // 4
            question, truth = truth[:given] + " ...", "... " + truth[given:]
        lines = [f"{part}: {question}"]
        for run, text in [("truth", truth), *((run, texts[part][0]) for run, texts in answers.items())]:
            lines.append(f"  {run:{width}}  {textwrap.shorten(text, 160, placeholder=' ...') or '(nothing)'}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


LEGEND = """Gap to retrain: mean distance to the retrained model (0 best) of probability, ROUGE-L, truth ratio, fact accuracy on
both phrasings, token entropy and coherence, on forget and on retain alike. Over-unlearned: probability or ROUGE-L on the
forget set below the retrained model's, beyond the 95% interval. Truth ratio: 1 is best; on forget, truth and lies then look
alike, elsewhere the truth is preferred. Held-out: a phrasing of the question no model was trained on. EM, ES: exact
memorisation, extraction strength. MIA: AUC against people nobody met; the goal is the retrained model's, from which PrivLeak
(of Min-k%) is the distance in percent. FQ: Kolmogorov-Smirnov test against the retrained model (D 0 best; p depends on n).
MU-lite: harmonic mean of ROUGE-L, probability, truth ratio and token entropy over all sets but forget. FE-lite: of
1 - ROUGE-L, 1 - probability, truth ratio and token entropy on forget. MU and FE, with --encoder and --nli: the paper's, with
cosine similarity and entailment (MU), 1 - entailment (FE) beside those. MU TOFU: of probability, ROUGE-L and truth ratio on
retain, real authors and world. Choices: the right option likelier than all others; chance is one in their number. VerbMem: ROUGE-L
F1 of the continuation of a passage of which a quarter is given; KnowMem: of the answer to a question about it; general: NLL of
plain sentences, nats a token. Entailed: on forget the truth by the answer, elsewhere the answer by the truth. Seconds: of
this run alone, its parents not counted. 95% intervals (bootstrap over questions) are in report.json."""  # noqa: E501  (lines of the report)


def write_report(out, about, results, records, curves, examples, metrics):
    """Write report.json, report.md and the figures of eval.py. -> the summary

    about: what was measured; results: {run: result} after eval.compare; records: {run: run.json}; curves: of
    lab/scores.tau_curves, or None; examples: the text of one_of_each; metrics: see tables."""
    text = tables(results, metrics)
    summary = "\n\n".join(text.pop(title) for title in ("Summary", "Passages and options") if title in text)
    if any(result["forget"]["fact_accuracy"] is not None for result in results.values()):
        plot_tradeoff(results, out / "tradeoff.png")
    if any(len(record.get("curve", [])) > 1 for record in records.values()):
        plot_curves(records, out / "curves.png")
    if curves:
        plot_tau(curves, out / "tau.png")
    report = {"data": about, "runs": results, "target_at_tau": curves}
    write_file(out / "report.json", json.dumps(report, indent=1) + "\n")
    blocks = [f"# {about['forget']} of {about['name']}", summary, f"```\n{examples}\n```",
              *(f"## {title}\n\n{markdown}" for title, markdown in text.items()), LEGEND, *about["notes"]]
    write_file(out / "report.md", "\n\n".join(blocks) + "\n")
    return summary


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
        x, y = (result[part].get("fact_accuracy") for part in ("forget", "retain"))
        if x is None or y is None:
            continue
        errors = []
        for part, value in (("forget", x), ("retain", y)):
            low, high = result[part]["ci95"]["fact_accuracy"]
            errors.append([[value - low], [high - value]])
        gold = name == "retrained"
        axis.errorbar(x, y, xerr=errors[0], yerr=errors[1], fmt="*" if gold else "o", ms=15 if gold else 7, capsize=2,
                      color="goldenrod" if gold else f"C{i}",
                      label=name + (" (what unlearning should reach)" if gold else ""))
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
    """What smoothing does to the target itself: NLL against tau. curves: see lab/scores.tau_curves."""
    figure, axis = plt.subplots(figsize=(6.4, 4.4))
    for part, color in (("forget", "C3"), ("retain", "C0")):
        for kind, style in (("fact", "-"), ("function", "--")):
            axis.plot(curves["tau"], curves[f"{part}_{kind}_nll"], style, marker=".", color=color,
                      label=f"{part}, {kind} tokens")
    axis.set(xscale="log", xlabel="attention temperature tau of the target, untrained", ylabel="NLL (nats a token)",
             xticks=curves["tau"], xticklabels=[f"{tau:g}" for tau in curves["tau"]],
             title="What smoothing alone does to the target")
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


# The figures of experiments/analyze.py. A value with its interval is [value, low, high]; (3, ...) is the same for many.
def interval_line(axis, x, values, style="-", **kw):
    """A line through [value, low, high] points with their 95% intervals."""
    value, low, high = np.array(values, float).T
    axis.errorbar(x, value, yerr=np.maximum([value - low, high - value], 0), fmt=style, capsize=2, **kw)


def tau_axis(axis, taus, more=(), **labels):
    """A log axis of tau; behind it, separated by a line, a place for each of `more` -> their x."""
    places = [taus[-1] * 4 * 2**i for i in range(len(more))]
    axis.set(xscale="log", **labels)
    axis.set_xticks([*taus, *places], [*(f"{tau:g}" for tau in taus), *more])
    for label in axis.get_xticklabels()[len(taus):]:
        label.set(rotation=30, ha="right")
    if more:
        axis.axvline(taus[-1] * 2, color="0.7", lw=0.8)
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    return places


def plot_tokens(part, path, tau):
    """Attention entropy and NLL of each class of tokens against tau; beside it the other models, at tau = 1."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4))
    for axis, key, label in zip(axes, ("entropy", "nll"), ("attention entropy / log prefix length", "NLL (nats a token)")):
        places = tau_axis(axis, part["tau"], list(part["runs"]), ylabel=label,
                          xlabel="tau of the target        other models, tau = 1")
        for i, kind in enumerate(part["target"][0][key]):
            interval_line(axis, part["tau"], [t[key][kind] for t in part["target"]], ".-", color=f"C{i}", label=f"{kind} tokens")
            if part["runs"]:
                interval_line(axis, places, [r[key][kind] for r in part["runs"].values()], "s", color=f"C{i}", ms=5)
    axes[0].set_title("Entropy rises on all tokens alike ...")
    axes[1].set_title("... but what it costs differs")
    axes[0].legend(fontsize=8)
    save_figure(figure, path)


def plot_heads(part, path, tau):
    """NLL gained on fact and on function tokens when one head alone is smoothed; last column: all heads of the layer."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 1.6 + 0.5 * len(part["layers"]["fact"][0])))
    for axis, kind in zip(axes, ("fact", "function")):
        gain = np.c_[np.array(part["heads"][kind][0], float), np.array(part["layers"][kind][0], float)]     # (n_layer, nh + 1)
        n_layer, columns = gain.shape
        # A few heads may matter hundreds of times more than the rest: the square root of the gain shows both.
        image = axis.imshow(np.sign(gain) * np.sqrt(abs(gain)), cmap="Reds", vmin=0, aspect="auto")
        if n_layer <= 12:
            for i, j in np.ndindex(*gain.shape):
                color = "white" if abs(gain[i, j]) > 0.4 * np.nanmax(abs(gain)) else "black"
                axis.text(j, i, f"{round(gain[i, j], 2) + 0:.2f}", ha="center", va="center", fontsize=8, color=color)
        axis.axvline(columns - 1.5, color="black", lw=1)
        axis.set(title=f"NLL gained on {kind} tokens", ylabel="layer", yticks=range(n_layer))
        axis.set_xticks(range(columns), [*(f"head {h}" for h in range(columns - 1)), "whole\nlayer"], fontsize=8)
        figure.colorbar(image, ax=axis, label="square root of nats")
    figure.suptitle(f"One head, or one layer, alone at tau = {tau:g}")
    save_figure(figure, path)


def plot_attention(part, path, tau):
    """What one head reads (columns) where it predicts each token of the answer (rows; the fact in red)."""
    rows, columns = len(part["predicted"]), len(part["read"])
    figure, axes = plt.subplots(1, len(part["maps"]), sharey=True, squeeze=False,
                                figsize=(2 + 0.2 * columns * len(part["maps"]), 2 + 0.28 * rows))
    shown = [token.strip() or "_" for token in part["read"]]
    for axis, (name, weights) in zip(axes[0], part["maps"].items()):
        axis.imshow(np.array(weights), cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axis.set_title(f"{name}, tau = {tau:g}" if name == "teacher" else name, fontsize=10)
        axis.set_xticks(range(columns), shown, rotation=90, fontsize=7)
        axis.set_yticks(range(rows), [token.strip() or "_" for token in part["predicted"]], fontsize=8)
        for label, is_fact in zip(axis.get_yticklabels(), part["is_fact"]):
            label.set(color="C3" if is_fact else "black", weight="bold" if is_fact else "normal")
    axes[0, 0].set_ylabel("token to predict")
    figure.suptitle(f"Layer {part['layer']}, head {part['head']}: where it looks. {part['question']}", fontsize=10)
    save_figure(figure, path)


def plot_teacher(part, path, tau):
    """The forget-teacher as a model of its own, on forget and retain, against tau."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.8), sharey=True)
    for axis, name in zip(axes, ("forget", "retain")):
        tau_axis(axis, part["tau"], xlabel="tau", title=f"the teacher on the {name} set", ylim=(-0.03, 1.03))
        for i, (metric, values) in enumerate(part[name].items()):
            note = {"forget": " (1: truth and lies look alike)", "retain": " (high: the truth is preferred)"}[name]
            interval_line(axis, part["tau"], values, ".-", color=f"C{i}",
                          label=metric.replace("_", " ") + (note if metric == "truth_ratio" else ""))
        axis.axvline(tau, color="0.5", ls=":", label="tau of the run")
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncol=2)
    save_figure(figure, path)


def plot_head_entropy(part, path, tau):
    """Each head's attention entropy in the target (x) and in the other models (y): on the line, nothing changed."""
    figure, axes = plt.subplots(1, len(part), figsize=(10, 4.8), sharey=True)
    for axis, (name, models) in zip(axes, part.items()):
        x = np.array(models["target"], float).reshape(3, -1)
        axis.plot((0, 1), (0, 1), color="0.6", lw=0.8)
        for i, (run, values) in enumerate((run, v) for run, v in models.items() if run != "target"):
            y = np.array(values, float).reshape(3, -1)
            errors = [np.maximum([v[0] - v[1], v[2] - v[0]], 0) for v in (x, y)]
            axis.errorbar(x[0], y[0], xerr=errors[0], yerr=errors[1], fmt="os^Dv"[i % 5], ms=4, alpha=0.8, color=f"C{i}", label=run)
        axis.set(title=f"heads on the {name} set", xlabel="attention entropy in the target", xlim=(0, 1.02), ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("attention entropy in the other model (1: uniform)")
    axes[0].legend(fontsize=8)
    save_figure(figure, path)


def plot_lens(part, path, tau):
    """Logit lens: median rank and log-probability of the true fact's first token after each layer."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2))
    for axis, key in zip(axes, ("rank", "logp")):
        for i, (name, values) in enumerate(part.items()):
            points = np.array(values[key], float).T[1:]                                 # (n_layer, 3): not the embedding
            interval_line(axis, np.arange(1, len(points) + 1), points, "*-" if name == "retrained" else ".-",
                          color="goldenrod" if name == "retrained" else f"C{i}", label=name)
        axis.set(xlabel="layers the token has gone through")
        axis.grid(alpha=0.3)
    axes[0].set(yscale="log", ylabel="median rank of the true fact (1: first)")
    axes[1].set(ylabel="log-probability of the true fact (nats)")
    axes[0].legend(fontsize=8)
    save_figure(figure, path)
