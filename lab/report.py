"""How eval.py shows its numbers: Markdown tables, one question with every model's answer, and three figures."""

import io
import textwrap

import matplotlib
import numpy as np

from common.files import strict_json, write_file

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)

TABLES = {      # title -> columns: heading, where in a run's result, metric
    "Summary": (
        ("gap to retrain", "aggregate", "gap_to_retrain"), ("recovered", "aggregate", "recovered"),
        ("worst", "aggregate", "recovered_worst"), ("forget facts", "forget", "fact_accuracy"),
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
        flag = " (over-unlearned)" if result.get("aggregate", {}).get("over_unlearned") else ""
        flag += " (not measured)" if "not_measured" in result else ""
        lines.append([name + flag, *(cell(result.get(part, {}).get(key)) for _, part, key in columns)])
    return markdown(lines)


def mean_sd(values):
    """Mean ± sample standard deviation as text; "-" where there are no values."""
    values = [v for v in values if v is not None]
    if not values:
        return "-"
    digits = ".0e" if 0 < max(map(abs, values)) < 1e-3 else ".3f"
    return f"{np.mean(values):{digits}}" + (f" ± {np.std(values, ddof=1):{digits}}" if len(values) > 1 else "")


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
        said = {run: texts[part][0] for run, texts in answers.items() if part in texts}
        for run, text in [("truth", truth), *said.items()]:
            lines.append(f"  {run:{width}}  {textwrap.shorten(text, 160, placeholder=' ...') or '(nothing)'}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


REPORT = "report.json", "report.md", "tradeoff.png", "curves.png", "tau.png"
MOST_CURVES = 20        # panels of curves.png: each takes a third of a second
LEGEND = """Gap to retrain: mean distance to the retrained model (0 best) of probability, ROUGE-L, truth ratio, fact
accuracy on both phrasings, token entropy and coherence, on forget and on retain alike. Recovered: what eight steps on
half of the forgotten facts bring back of the other half, 0 as from the retrained model, 1 as from the target; worst:
the most that any attack gave (python -m experiments.attack, docs/attacks.md). Over-unlearned: probability or ROUGE-L on
the forget set below the retrained model's, beyond the 95% interval. Truth ratio: 1 is best; on forget, truth and lies
then look alike, elsewhere the truth is preferred. Held-out: a phrasing of the question no model was trained on. EM, ES:
exact memorisation, extraction strength. MIA: AUC against people nobody met; the goal is the retrained model's, from
which PrivLeak (of Min-k%) is the distance in percent, above 0 where too little was forgotten. FQ: Kolmogorov-Smirnov
test against the retrained model (D 0 best; p depends on n). MU-lite: harmonic mean of ROUGE-L, probability, truth ratio
and token entropy over all sets but forget. FE-lite: of 1 - ROUGE-L, 1 - probability, truth ratio and token entropy on
forget. MU and FE, with --encoder and --nli: the paper's, with cosine similarity and entailment (MU), 1 - entailment
(FE) beside those. MU TOFU: of probability, ROUGE-L and truth ratio on retain, real authors and world. Choices: the
right option likelier than all others; chance is one in their number. VerbMem: ROUGE-L F1 of the continuation of a
passage of which a quarter is given; KnowMem: of the answer to a question about it; general: NLL of plain sentences,
nats a token. Entailed: on forget the truth by the answer, elsewhere the answer by the truth. Seconds: of this run
alone, its parents not counted. 95% intervals (bootstrap over questions) are in report.json."""


def write_report(out, about, results, records, curves, sets, answers, metrics):
    """Write report.json, report.md and the figures of eval.py. -> what of it is printed

    about: what was measured; results: {run: result} after eval.compare, or {run: {"not_measured": why}}; records: {run:
    run.json}; curves: of lab/scores.tau_curves, or None; sets, answers: see one_of_each; metrics: see tables."""
    text, examples = tables(results, metrics), one_of_each(sets, answers)
    summary = "\n\n".join(text.pop(title) for title in ("Summary", "Passages and options") if title in text)
    if any(result.get("forget", {}).get("fact_accuracy") is not None for result in results.values()):
        plot_tradeoff(results, out / "tradeoff.png")
    notes = about["notes"]
    curved = {name: record for name, record in records.items() if len(record.get("curve", [])) > 1}
    if len(curved) > MOST_CURVES:
        notes = [*notes, f"curves.png shows the newest {MOST_CURVES} of {len(curved)} runs"]
    if curved:
        plot_curves(newest(curved, out), out / "curves.png")
    if curves:
        plot_tau(curves, out / "tau.png")
    about = about | {"questions": {part: len(asked) for part, asked in sets.items()}, "notes": notes}
    report = {"data": about, "runs": results, "target_at_tau": curves}
    write_file(out / "report.json", strict_json(report))
    blocks = [f"# {about['forget']} of {about['name']}", summary, f"```\n{examples}\n```",
              *(f"## {title}\n\n{markdown}" for title, markdown in text.items()), LEGEND, *notes]
    write_file(out / "report.md", "\n\n".join(blocks) + "\n")
    return "\n".join(["", summary, "", examples, "", *notes, f"written: {out / 'report.md'}, report.json and figures"])


def newest(records, out):
    """{run: run.json} -> of those in `out` that were written last, MOST_CURVES; in the order that they had."""
    def written(name):
        file = out / name / "run.json"
        return file.stat().st_mtime if file.exists() else 0.0
    last = set(sorted(records, key=written)[-MOST_CURVES:])
    return {name: record for name, record in records.items() if name in last}


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
        x, y = (result.get(part, {}).get("fact_accuracy") for part in ("forget", "retain"))
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
