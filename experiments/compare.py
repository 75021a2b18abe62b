"""Every method under one protocol, with error bars.

    python -m experiments.compare                      OUT/compare/compare.md, compare.json, tradeoff.png
    python -m experiments.compare --forget=forget05    another split, with the settings chosen on forget10

Fixed before any number was seen:
1. Every method gets the same number of trials, at the same points of a Sobol sequence, over its learning rate, its forget
   coefficient and its own knob (tau or alpha for ASU, beta elsewhere), all on logarithmic scales.
2. Trials run on a development draw of authors (--dev_seed), which no reported number comes from.
3. The rule: the smallest gap to retrain among the trials that keep at least 95% of the target's fact accuracy on the retain
   set; if none does, the one that keeps most.
4. The chosen settings then run on the reported draw (--data_seed) for --seeds training seeds: each seed has its own base,
   target, retrained and unlearned models. Differences are paired by seed, against the form of ASU that rule 3 likes best on
   the development draw; intervals are Student's t.
"""

import json
from pathlib import Path

import numpy as np
import scipy.stats

from common import UserError
from common.cli import Parser, positive_int, run, whole
from common.files import check_writable, write_file
from experiments.trials import draws, gaps, run_trials, spec_of, trial_flags
from lab.report import markdown, plot_frontiers

LR, C_FORGET = (1e-4, 3e-3), (0.1, 3.0)
METHODS = {     # name -> settings of asu.unlearn, its knob and the knob's range
    "ASU_GD": (dict(method="asu", retain_loss="gd", layers="all", heads="all"), "tau", (2, 32)),           # the paper's
    "ASU_GD, layers 1-": (dict(method="asu", retain_loss="gd", layers="1-", heads="all"), "tau", (16, 1000)),
    "ASU_GD, selective": (dict(method="asu", retain_loss="gd", tau=1000.0, layers="all", heads="auto"), "alpha", (1, 2)),
    "ASU_KL, selective": (dict(method="asu", retain_loss="kl", tau=1000.0, layers="all", heads="auto"), "alpha", (1, 2)),
    "ASU+IDK, selective": (dict(method="asu_idk", retain_loss="gd", tau=1000.0, layers="all", heads="auto"), "alpha", (1, 2)),
    "GA": (dict(method="ga", retain_loss="none"), None, None),
    "GradDiff": (dict(method="ga", retain_loss="gd"), None, None),
    "NPO_GD": (dict(method="npo", retain_loss="gd"), "beta", (0.03, 1)),
    "SimNPO_GD": (dict(method="simnpo", retain_loss="gd"), "beta", (0.5, 8)),
    "DPO_GD": (dict(method="dpo", retain_loss="gd"), "beta", (0.03, 1)),
    "IDK_GD": (dict(method="idk", retain_loss="gd"), None, None),
    "IDK+AP": (dict(method="idk", retain_loss="ap"), None, None),
    "ME_GD": (dict(method="me", retain_loss="gd"), None, None),
    "UNDIAL_GD": (dict(method="undial", retain_loss="gd"), "beta", (2, 30)),
    "RMU": (dict(method="rmu", retain_loss="hidden"), "beta", (0.5, 8)),
}
PAPER = {       # MU / FE on TOFU forget10, Llama-2-7b-chat, as the ASU paper reports them; not ours
    "ASU_GD": "- / 78.16", "ASU+IDK, selective": "75.60 / 86.94", "IDK+AP": "- / 61.27"}
COLUMNS = (     # heading, part of the result, metric
    ("gap to retrain", "aggregate", "gap_to_retrain"), ("forget facts", "forget", "fact_accuracy"),
    ("held-out", "forget", "fact_accuracy_heldout_phrasing"), ("prob.", "forget", "probability"), ("ROUGE-L", "forget", "rouge_l"),
    ("truth r.", "forget", "truth_ratio"), ("coherence", "forget", "coherence"), ("FQ D", "aggregate", "forget_quality_d"),
    ("FQ p", "aggregate", "forget_quality_p"), ("retain facts", "retain", "fact_accuracy"),
    ("held-out", "retain", "fact_accuracy_heldout_phrasing"), ("prob.", "retain", "probability"), ("ROUGE-L", "retain", "rouge_l"),
    ("MU-lite", "aggregate", "model_utility_lite"), ("FE-lite", "aggregate", "forget_efficacy_lite"))


def points(n):
    """n points in the unit cube, the same for every method: -> (n, 3)."""
    return scipy.stats.qmc.Sobol(3, scramble=False).random(2 ** int(np.ceil(np.log2(n + 1))))[1:n + 1]


def settings_at(point, method, epochs):
    """A point of the unit cube -> keywords of asu.unlearn: learning rate, forget coefficient, knob."""
    fixed, knob, span = METHODS[method]

    def between(low, high, x):
        return float(f"{low * (high / low) ** x:.3g}")
    found = dict(fixed, lr=between(*LR, point[0]), c_forget=between(*C_FORGET, point[1]), epochs=epochs)
    if knob:
        found[knob] = between(*span, point[2])
    return found


def choose(trials, target):
    """The rule of the docstring. trials: with gaps; -> the index of the one chosen"""
    def kept(t):
        return t["result"]["retain"]["fact_accuracy"]
    enough = [i for i, t in enumerate(trials) if kept(t) >= 0.95 * kept(target)]
    if enough:
        return min(enough, key=lambda i: trials[i]["result"]["aggregate"]["gap_to_retrain"])
    return max(range(len(trials)), key=lambda i: kept(trials[i]))


def paired(differences):
    """Mean of paired differences and its 95% interval (Student's t) -> (mean, low, high)."""
    d = np.asarray(differences, float)
    half = scipy.stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d)) if len(d) > 1 else float("nan")
    return float(d.mean()), float(d.mean() - half), float(d.mean() + half)


def mean_sd(values):
    values = [v for v in values if v is not None]
    if not values:
        return "-"
    digits = ".0e" if 0 < max(map(abs, values)) < 1e-3 else ".3f"
    return f"{np.mean(values):{digits}}" + (f" ± {np.std(values, ddof=1):{digits}}" if len(values) > 1 else "")


def parse():
    p = Parser("Compare every unlearning method under one protocol.")
    add = p.add_argument
    add("--dev_seed", type=whole, default=1, help="the draw of authors that settings are chosen on")
    add("--trials", type=positive_int, default=8, help="settings tried for each method")
    add("--epochs", type=positive_int, default=5, help="passes over the forget set, for every method")
    add("--methods", help="semicolon-separated, default all: " + ";".join(METHODS))
    trial_flags(p, seeds=5)
    return p.parse_args()


def main():
    args = parse()
    check_writable(args.out)
    out = Path(args.out) / "compare"
    methods = list(METHODS) if args.methods is None else args.methods.split(";")
    if unknown := [m for m in methods if m not in METHODS]:
        raise UserError(f"--methods: {unknown[0]} is not one of {';'.join(METHODS)}")
    kw = {"out": out, "flags": args.train_flags.split()}
    reported = [(args.data_seed, seed, args.forget) for seed in range(args.seeds)]
    dev = args.dev_seed, 0, "forget10"
    folders = draws(reported[:1], 1, **kw)                    # alone on the machine: its seconds stand in the table
    folders |= draws([dev, *reported[1:]], args.jobs, **kw)

    def spec(name, key, run="target", **more):
        data_seed, seed, forget = key
        file = out / "trials" / forget / f"draw{data_seed}_seed{seed}_{name}.json".replace(" ", "")
        return spec_of(file, folders[key], key, args, run, **more)

    # 1 to 3: choose settings on the development draw
    grid = {m: [settings_at(p, m, args.epochs) for p in points(args.trials)] for m in methods}
    specs = [spec(f"{m}_{i}", dev, unlearn=s) for m in methods for i, s in enumerate(grid[m])]
    target, retrained, *tried = run_trials([spec("target", dev), spec("retrained", dev, "retrained"), *specs], args.jobs, "trials")
    gaps([target, *tried], retrained)
    tried = {m: tried[i * args.trials:(i + 1) * args.trials] for i, m in enumerate(methods)}
    chosen = {m: grid[m][choose(tried[m], target)] for m in methods}
    print("chosen:", *(f"  {m}: " + ", ".join(f"{k}={v}" for k, v in chosen[m].items()) for m in methods), sep="\n", flush=True)

    # 4: the reported draw
    taught = {f"teacher of {m}": chosen[m] for m in methods if chosen[m]["method"] == "asu" and chosen[m]["retain_loss"] == "gd"}
    rows = {row: {} for row in ("target", "retrained", "retrained, other seed", *taught, *methods)}
    specs = []
    for key in reported:
        specs += [spec("target", key), spec("retrained", key, "retrained")]
        specs += [spec(name, key, smoothing={k: s[k] for k in ("tau", "layers", "heads")}) for name, s in taught.items()]
        specs += [spec(m, key, unlearn=chosen[m] | {"seed": key[1]}) for m in methods]
    done = run_trials(specs, args.jobs, "reported")
    per_seed = len(done) // len(reported)
    for i, key in enumerate(reported):
        some = dict(zip([r for r in rows if r != "retrained, other seed"], done[i * per_seed:(i + 1) * per_seed]))
        if len(reported) > 1:
            other = done[(i + 1) % len(reported) * per_seed + 1]
            some["retrained, other seed"] = {**other, "result": dict(other["result"])}
        gaps([t for r, t in some.items() if r != "retrained"], some["retrained"])
        for r, t in some.items():
            rows[r][key[1]] = t["result"]
    rows = {r: results for r, results in rows.items() if results}
    costs = measure_costs(methods, chosen, spec, reported[0])

    forms = [m for m in methods if chosen[m]["method"] == "asu"] or methods[:1]
    reference = forms[choose([tried[m][grid[m].index(chosen[m])] for m in forms], target)]
    report = {"protocol": __doc__, "settings": {k: v for k, v in vars(args).items() if k not in ("out", "device")}, "chosen": chosen,
              "rows": {r: [results[s] for s in sorted(results)] for r, results in rows.items()}, "costs": costs,
              "trials": {m: [t["result"] for t in tried[m]] for m in methods}}
    report["differences"] = {m: paired([rows[m][s]["aggregate"]["gap_to_retrain"] - rows[reference][s]["aggregate"]["gap_to_retrain"]
                                        for s in rows[m]]) for m in methods if m != reference}
    text = table(report, reference)
    name = f"compare_{args.forget}"
    plot_frontiers(report, out / f"{name}.png")
    write_file(out / f"{name}.json", json.dumps(report, indent=1) + "\n")
    write_file(out / f"{name}.md", text)
    print(f"\n{text}\nwritten: {out / name}.md, .json and .png")


def measure_costs(methods, chosen, spec, key):
    """One epoch of each method, alone on the machine and in a process of its own -> {method: seconds, peak_mb, ms_per_step}."""
    specs = [spec(f"cost_{m}", key, unlearn=chosen[m] | {"epochs": 1}) for m in methods]
    costs = {}
    for m, t in zip(methods, run_trials(specs, 1, "cost", fresh=True)):
        c = t["result"]["cost"]
        training = c["seconds"] - c["choosing_seconds"]                         # heads are chosen once, not every epoch
        costs[m] = {"ms_per_step": 1000 * training / c["steps"], "peak_mb": c["peak_mb"],
                    "seconds": c["choosing_seconds"] + training * chosen[m]["epochs"]}
    return costs


def table(report, reference):
    """The Markdown of the comparison: mean ± sample standard deviation over seeds."""
    lines = [["method", *(heading for heading, *_ in COLUMNS), f"gap minus {reference}'s, 95%", "seconds", "peak MB", "step", "paper MU / FE"]]
    for row, results in report["rows"].items():
        d, cost = report["differences"].get(row), report["costs"].get(row)
        base = report["costs"][reference]["ms_per_step"]
        lines.append([row, *(mean_sd([r[part].get(metric) for r in results]) for _, part, metric in COLUMNS),
                      "{:+.3f} [{:+.3f}, {:+.3f}]".format(*d) if d else "-",
                      *([f"{cost['seconds']:.0f}", f"{cost['peak_mb']:.0f}", f"{cost['ms_per_step'] / base:.2f}x"] if cost
                        else [f"{results[0]['cost']['seconds']:.0f}" if row in ("target", "retrained") else "-", "-", "-"]),
                      PAPER.get(row, "") if report["settings"]["forget"] == "forget10" else ""])
    return markdown(lines) + "\n\n" + \
        f"Forget quality (FQ) is of n = {report['rows']['target'][0]['aggregate']['forget_quality_n']} questions.\n\n" \
        "Chosen on the development draw:\n\n" + "\n".join(f"- {m}: " + ", ".join(f"{k} {v}" for k, v in s.items() if k in ("lr", "c_forget", "tau", "layers", "alpha", "beta"))
                                                         for m, s in report["chosen"].items()) + "\n"


if __name__ == "__main__":
    run(main)
