"""The seven figures of experiments/analyze.py.

A value with its interval is [value, low, high]; an array (3, ...) is the same for many. Each plot_ function takes its
part of the report, the file to write, and the tau of the run.
"""

import numpy as np

from lab.report import plt, save_figure


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
    labels = {"entropy": "attention entropy / log prefix length", "nll": "NLL (nats a token)"}
    for axis, (key, label) in zip(axes, labels.items()):
        places = tau_axis(axis, part["tau"], list(part["runs"]), ylabel=label,
                          xlabel="tau of the target        other models, tau = 1")
        for i, kind in enumerate(part["target"][0][key]):
            interval_line(axis, part["tau"], [target[key][kind] for target in part["target"]], ".-", color=f"C{i}",
                          label=f"{kind} tokens")
            if part["runs"]:
                interval_line(axis, places, [r[key][kind] for r in part["runs"].values()], "s", color=f"C{i}", ms=5)
    axes[0].set_title("Entropy rises on all tokens alike ...")
    axes[1].set_title("... but what it costs differs")
    axes[0].legend(fontsize=8)
    save_figure(figure, path)


def plot_heads(part, path, tau):
    """NLL gained on fact and on function tokens by smoothing one head alone; last column: all heads of the layer."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 1.6 + 0.5 * len(part["layers"]["fact"][0])))
    for axis, kind in zip(axes, ("fact", "function")):
        heads, layers = np.array(part["heads"][kind][0], float), np.array(part["layers"][kind][0], float)
        gain = np.c_[heads, layers]                                                     # (n_layer, nh + 1)
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
        axis.set_title(f"{name}, tau = {tau:g}" if name in ("teacher", "not healed") else name, fontsize=10)
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
        others = [run for run in models if run != "target"]
        for i, run in enumerate(others):
            y = np.array(models[run], float).reshape(3, -1)
            errors = [np.maximum([v[0] - v[1], v[2] - v[0]], 0) for v in (x, y)]
            axis.errorbar(x[0], y[0], xerr=errors[0], yerr=errors[1], fmt="os^Dv"[i % 5], ms=4, alpha=0.8,
                          color=f"C{i}", label=run)
        axis.set(title=f"heads on the {name} set", xlabel="attention entropy in the target", xlim=(0, 1.02),
                 ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("attention entropy in the other model (1: uniform)")
    axes[0].legend(fontsize=8)
    save_figure(figure, path)


def plot_lens(part, path, tau):
    """Logit lens: median rank and log-probability of the true fact's first token after each layer."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2))
    for axis, key in zip(axes, ("rank", "logp")):
        for i, (name, values) in enumerate(part.items()):
            points = np.array(values[key], float).T[1:]                         # (n_layer, 3): not the embedding
            interval_line(axis, np.arange(1, len(points) + 1), points, "*-" if name == "retrained" else ".-",
                          color="goldenrod" if name == "retrained" else f"C{i}", label=name)
        axis.set(xlabel="layers the token has gone through")
        axis.grid(alpha=0.3)
    axes[0].set(yscale="log", ylabel="median rank of the true fact (1: first)")
    axes[1].set(ylabel="log-probability of the true fact (nats)")
    axes[0].legend(fontsize=8)
    save_figure(figure, path)


def plot_student(part, path, tau):
    """Each model as it speaks: attention entropy by class of token, and the mean reciprocal rank of the true token."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4))
    ranks = {name: {place: rank["reciprocal"] for place, rank in places.items()}
             for name, places in part["rank"].items()}
    for axis, models in zip(axes, (part["entropy"], ranks)):
        for i, (name, groups) in enumerate(models.items()):
            x = np.arange(len(groups)) + 0.8 * (i - (len(models) - 1) / 2) / len(models)
            interval_line(axis, x, list(groups.values()), "*" if name == "retrained" else "o",
                          color="goldenrod" if name == "retrained" else f"C{i}",
                          label=f"{name}, tau = {tau:g}" if name in ("teacher", "not healed") else name)
        axis.set_ylim(-0.03, 1.03)
        axis.grid(alpha=0.3)
    axes[0].set_xticks(range(3), [f"{kind} tokens" for kind in part["entropy"]["target"]])
    axes[0].set(ylabel="attention entropy / log prefix length", title="How sharply it looks")
    axes[1].set_xticks(range(3), ["fact slots", "all fact tokens", "all answer tokens"])
    axes[1].set(ylabel="mean reciprocal rank of the true token", title="What it would say")
    axes[1].legend(fontsize=8)
    save_figure(figure, path)
