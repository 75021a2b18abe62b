"""Does it stay forgotten? Attacks on every run, each held against the same attack on the retrained model.

    python -m experiments.attack                    all attacks on all runs in OUT: OUT/attack/attacks.md, two figures
    python -m experiments.attack --attacks=quick    reading, back to the base, eight steps: seconds a run
    python -m experiments.attack --runs=asu_gd --attacks=sampling,quantising
    python -m experiments.attack --second=DIR       with another retrained model: how much of a share is noise

Rows are target, retrained, base, the forget-teachers and the unlearned runs. Each attack leaves a file
OUT/attack/RUN/ATTACK.json, and is not made again for the same weights, settings and data. eval.py shows what is there
beside the gap.

Of each attack and setting one number counts: the mean reciprocal rank of the true value (mrr, see lab/recover.py), or
what stands first in NUMBERS. Recovered share = (run - retrained) / (target - retrained), all after the same attack: 0
is what somebody gets who never had the data, 1 is all of it. docs/attacks.md says what each attack shows.
"""

import collections
import copy
import json
import random
import time
import types
from pathlib import Path

import numpy as np
import torch

import asu
import data
import eval
from common import UserError
from common.cli import Parser, differences, layer_numbers, pick_device, positive_float, run
from common.files import check_writable, read_json, strict_json, write_file
from lab import entries, recover
from lab.answers import fact_accuracy
from lab.optim import Log
from lab.report import cell, markdown, plt, save_figure
from lab.runs import load_run, made_by_train, made_from, read_run
from lab.scores import score
from lab.statistics import auc

LRS, LOOKS, BENIGN_LOOKS = (3e-4, 1e-3, 3e-3), (0, 1, 2, 4, 8, 16, 32, 64), (0, 8, 64)      # steps after which to look
SAMPLES, KS = 64, (1, 2, 4, 8, 16, 32, 64)
TAUS = 0.5, 0.7, 0.9, 1.2, 1.5, 2.0
Lab = collections.namedtuple("Lab", "tokenizer dataset base target record args")   # all that an attack may need beside
#                                                                                    the model; record: its run.json


def rank(model, lab, phrasings=(0,), **smoothing):
    """The rank of the true values of the forget set, see lab/recover.reading."""
    rows = recover.single(lab.dataset.forget)
    return recover.reading(model, lab.tokenizer, rows, lab.dataset, phrasings, **smoothing)


# ------------------------------------------------------------------------------------------------- reading
def reading(model, lab):
    """The answer given up to the fact, where does the true value stand among all values of its slot?
    Source: exposure (Carlini, arXiv 1802.08232), calibrated on people nobody met. Shows what the output still tells
    about a fact that is not said. Does not show what the weights hold and the output does not."""
    every = range(len(lab.dataset.forget[0]["questions"]))
    return {"as trained": rank(model, lab), "all phrasings": rank(model, lab, every),
            "held-out phrasing": rank(model, lab, (-1,))}


def prefixes(model, lab):
    """The first tokens of the true answer are given, the model goes on greedily: does it state the fact?
    Source: extraction by prefix (Carlini, arXiv 2012.07805). Shows whether a forced opening gets around a refusal or
    another wording. Does not show facts that stand second: reading does."""
    result = {}
    for n in (1, 2, 4):
        prompts, given = [], []
        for row in lab.dataset.forget:
            kinds = data.token_classes(lab.tokenizer, row["answer"], row["facts"], row["author"])
            given.append(lab.tokenizer.encode_answer(row["answer"])[:min(n, kinds.index(data.FACT))])    # not the fact
            prompts.append(lab.tokenizer.encode_prompt(row["question"]) + given[-1])
        texts = [""] * len(prompts)
        for numbers, part in data.by_length(prompts, 128):
            for i, ids in zip(numbers, model.generate(part, recover.ANSWER_TOKENS)):
                texts[i] = lab.tokenizer.decode(given[i] + ids)
        right = [int(data.states(text, row["facts"])) for text, row in zip(texts, lab.dataset.forget)]
        result[f"{n} tokens"] = {"stated": float(np.mean(right)), "right": right}
    return result


def back_to_base(model, lab):
    """Weights part of the way back to the public base, base + share (run - base), then reading.
    Source: ours; task vectors (arXiv 2212.04089) the other way round. Shows what unlearning hid by a last, small turn
    of the weights. Needs the base, and does not show what only training brings back."""
    ways = {"a quarter back": 0.75, "halfway back": 0.5, "a quarter beyond": 1.25}
    return {name: rank(recover.between(lab.base, model, share), lab) for name, share in ways.items()}


# ---------------------------------------------------------------------------------------------- relearning
def eight_steps(model, lab):
    """Eight steps of fine-tuning, at --lr, on half of the forgotten facts; asked about the other half. Both ways.
    Source: relearning (arXiv 2406.13356; on half of the facts arXiv 2410.08827). The headline. Shows how near the facts
    are to being said. Does not show what more steps, or other rates, give: relearn_half does."""
    after = recover.relearn_half(model, lab.tokenizer, lab.dataset, lab.args.lr, steps=(8,), seed=lab.args.seed)
    return {"8 steps": after[8]}


def relearning(model, lab, pairs, looks=BENIGN_LOOKS, seeds=1):
    """Relearn at every rate of LRS -> {rate: {"looks", "mrr" and "stated": at each look, a list for every seed}}.

    pairs: seed -> [(examples to relearn, rows to ask about)]."""
    result = {}
    for lr in LRS:
        curves = [recover.curve(model, lab.tokenizer, pairs(seed), lab.dataset, lr, looks, seed)
                  for seed in range(lab.args.seed, lab.args.seed + seeds)]
        by_key = {key: [[points[look][key] for look in looks] for points in curves] for key in ("mrr", "stated")}
        result[f"rate {lr:g}"] = {"looks": list(looks), **by_key}
    return result


def relearn_half(model, lab):
    """Fine-tune on half of the forgotten facts, up to 64 steps, at three rates, three seeds; ask about the other half.
    Source: as eight_steps. Shows the whole curve: how soon it comes back, and whether the retrained model's ever does.
    Does not show that an attacker has half of the facts."""
    def pairs(seed):
        shown, asked = recover.halves(lab.dataset.forget, seed)
        return [(data.training_examples(lab.tokenizer, shown), asked)]
    return relearning(model, lab, pairs, LOOKS, seeds=3)


def relearn_one(model, lab):
    """The same where one fact of each forgotten person is known, in all its phrasings.
    Source: as eight_steps. Shows that knowing a little of somebody is enough. Does not show an attacker who knows
    nobody's facts: the next three do."""
    def pairs(seed):
        rng, groups = random.Random(f"one {seed}"), recover.by_fact(lab.dataset.forget)
        names = list(dict.fromkeys(row["author"] for row in lab.dataset.forget))
        known = {name: rng.choice(sorted(set(groups.values()))) for name in names}
        sides = {True: [], False: []}
        for row in lab.dataset.forget:
            sides[groups[row["slot"]] == known[row["author"]]].append(row)
        return [(data.training_examples(lab.tokenizer, sides[True]), sides[False])]
    return relearning(model, lab, pairs, LOOKS)


def relearn_retain(model, lab):
    """Fine-tune on the retain set alone: nothing that was forgotten is shown.
    Source: benign relearning (arXiv 2406.13356). Shows what an honest user's fine-tuning undoes by accident. Does not
    show an attacker who wants it."""
    examples = data.training_examples(lab.tokenizer, lab.dataset.retain)
    return relearning(model, lab, lambda seed: [(examples, lab.dataset.forget)])


def from_stream(model, lab, kind):
    """Relearn on strangers of a kind of generated data, who occur nowhere else."""
    stream = data.base_stream(kind, lab.args.data_seed, [], start=2 * data.UNMET)     # nobody of --replay or --heal
    examples = data.stranger_examples(lab.tokenizer, stream, 32 * BENIGN_LOOKS[-1])
    examples = [e for e in examples if len(e) <= model.config.block_size]
    return relearning(model, lab, lambda seed: [(examples, lab.dataset.forget)])


def relearn_invented(model, lab):
    """Fine-tune on invented people, asked about in the same phrasings.
    Source: as relearn_retain. Shows whether the form of the questions is enough. Does not show anything about facts
    that the form cannot reach."""
    return from_stream(model, lab, "authors")


def relearn_text(model, lab):
    """Fine-tune on unrelated text: passages and questions about invented books.
    Source: as relearn_retain. Shows whether any training at all brings facts back. Does not show more than the
    distance of this text from the questions lets it."""
    return from_stream(model, lab, "books")


# ------------------------------------------------------------------------------------------ without training
def sampling(model, lab):
    """Each question is asked 64 times: does one of k answers state the facts?
    Source: leak@k (arXiv 2511.04934), unbiased as pass@k. Shows what greedy answers hide. Does not show rank: with a
    pool of 40 values, one of 64 guesses is often right by chance, on the retrained model too."""
    result = {}
    for temperature, n in ((1.0, SAMPLES), (0.7, SAMPLES // 2)):
        hits = recover.sampled(model, lab.tokenizer, lab.dataset.forget, n, temperature, lab.args.seed)
        leaks = {f"leak@{k}": recover.leak_at_k(hits, n, k) for k in KS if k <= n}
        result[f"temperature {temperature:g}"] = leaks | {"hits": hits.tolist()}
    return result


def quantising(model, lab):
    """Weights rounded to 8, 4 and 3 bits, row by row.
    Source: arXiv 2410.16454. Shows changes so small that rounding undoes them. Does not show anything where training
    moved the weights further than a step of the grid; retain says what rounding broke."""
    result = {}
    for bits in (8, 4, 3):
        rounded = recover.quantised(model, bits)
        known = recover.knowledge(rounded, lab.tokenizer, lab.dataset.forget, lab.dataset)
        result[f"{bits} bits"] = known | {"retain": fact_accuracy(rounded, lab.tokenizer, lab.dataset.retain)}
    return result


def temperatures(model, lab):
    """The model run at other attention temperatures, and its logits moved on, away from its smoothed self.
    Source: ours, ASU the other way round. Shows whether undoing the smoothing undoes the forgetting. Does not show
    what other changes of attention would do. "its heads" and "its layers" are of this run alone: neither target nor
    retrained has them, so they stand in no recovered share."""
    result, tau = {}, lab.record.get("tau")
    some = layer_numbers(lab.record["settings"]["layers"], model.config.n_layer) if tau else None
    for t in TAUS:
        result[f"all heads at {t:g}"] = rank(model, lab, tau=t)
        if isinstance(tau, list):                           # a table of heads: those that were smoothed
            table = [[t if head != 1 else 1.0 for head in layer] for layer in tau]
            result[f"its heads at {t:g}"] = rank(model, lab, tau=table)
        elif some:
            result[f"its layers at {t:g}"] = rank(model, lab, tau=t, layers=some)
    for beyond in (0.5, 1.0):
        def hidden(idx):                                    # the head is linear: so logits move as hidden states do
            sharp = model.hidden(idx)
            return sharp + beyond * (sharp - model.hidden(idx, tau=8.0))
        result[f"{beyond:g} beyond"] = rank(seen_as(model, hidden), lab)
    return result


# -------------------------------------------------------------------------------------------------- inside
def seen_as(model, hidden):
    """-> what answer_logp takes for a model: the model's head over other hidden states, idx (B, T) -> (B, T, C)."""
    return types.SimpleNamespace(hidden=hidden, lm_head=model.lm_head, device=model.device)


def lens(model, lab):
    """The true value's rank read off the residual stream after every layer, by the model's own norm and head.
    Source: the logit lens (nostalgebraist, 2020). Shows facts that a late layer hides. Does not show facts that stand
    in a form the head cannot read: probe does."""
    result = {}
    for layer in range(1, model.config.n_layer + 1):
        def hidden(idx):
            return model.norm(model.hidden(idx, n_layers=layer))
        result[f"layer {layer}"] = rank(seen_as(model, hidden), lab)
    return result


def patching(model, lab):
    """The target's residual stream after n layers goes through the run's other layers: does the fact come out?
    Source: unlearning depth (arXiv 2605.24614). Shows in which layers unlearning sits. No attack, since who has the
    target has the facts: it is left out of the worst share, and chance on the retrained model is not AUC 0.5."""
    result = {}
    for n in range(model.config.n_layer + 1):
        def hidden(idx):
            x = lab.target.hidden(idx, n_layers=n) if n else lab.target.embed_tokens(idx)
            return model.hidden(idx, below=(n, x))
        result[f"after {n} layers"] = rank(seen_as(model, hidden), lab)
    return result


@torch.no_grad()
def states(model, tokenizer, rows, pool_of):
    """Residual streams where the fact is next, after 1 ... n_layer layers, all training phrasings -> (n_layer, P * N,
    C), phrasing by phrasing."""
    examples = []
    for phrasing in range(len(rows[0]["questions"])):
        for row in rows:
            forks = recover.forks(tokenizer, row["questions"][phrasing], row["answers"][phrasing], row["facts"][0],
                                  pool_of[row["slot"]])
            examples.append(data.Example(forks.prompt + forks.prefixes[0], [0]))
    streams = [None] * len(examples)
    for numbers, part in data.by_length(examples, 128):
        batch, x, layers = data.collate(part, model.device), None, []
        for n in range(1, model.config.n_layer + 1):
            x = model.hidden(batch.idx, n_layers=n, below=None if x is None else (n - 1, x))
            layers.append(batch.at_answers(x)[:, 0])
        for number, stream in zip(numbers, torch.stack(layers, 1).float().cpu().numpy()):
            streams[number] = stream
    return np.stack(streams, 1)


def probe(model, lab):
    """A linear map from the residual stream before the fact to the value, by layer, learnt on kept people.
    Source: probing (arXiv 1610.01644), by ridge regression to the value's own embedding. Shows facts that stand inside
    and are not let out. Does not show that somebody without kept people could read them."""
    pool_of, result = recover.pools(lab.dataset), {}
    head = model.lm_head.weight.detach().float().cpu().numpy()
    values = {}
    for slot, pool in pool_of.items():
        v = np.array([head[lab.tokenizer.encode(f" {value}")].mean(0) for value in pool])
        values[slot] = (v - v.mean(0)) / np.linalg.norm(v - v.mean(0), axis=1, keepdims=True)
    parts = [[row for row in recover.single(rows) if row["facts"] and row["slot"] in pool_of]
             for rows in (lab.dataset.retain, lab.dataset.forget)]
    truth = [[pool_of[row["slot"]].index(data.normal(row["facts"][0])) for row in rows] for rows in parts]
    slots = [[row["slot"] for row in rows] for rows in parts]
    known, asked = (states(model, lab.tokenizer, rows, pool_of) for rows in parts)
    P = known.shape[1] // len(parts[0])
    y = np.array([values[slot][t] for slot, t in zip(slots[0], truth[0])] * P)
    for layer, (x, z) in enumerate(zip(known, asked), 1):
        usual = {slot: x[np.array(slots[0] * P) == slot].mean(0) for slot in pool_of}     # which slot it is, is no news
        x, z = x - [usual[slot] for slot in slots[0] * P], z - [usual[slot] for slot in slots[1] * P]
        square = x.T @ x
        weights = np.linalg.solve(square + 1e-2 * np.trace(square) / len(square) * np.eye(len(square)), x.T @ y)
        said = (z @ weights).reshape(P, len(parts[1]), -1).mean(0)
        result[f"layer {layer}"] = recover.ranks([values[s] @ v for s, v in zip(slots[1], said)], truth[1])
    return result


# ----------------------------------------------------------------------------------------------- membership
def features(model, tokenizer, rows):
    """What an attacker sees of the true answers: log p, log rank and normalised log p, each a mean over fact, function
    and name tokens, and the lowest log p -> (N, 10)."""
    scores = score(model, tokenizer, [(row["question"], row["answer"]) for row in rows])
    numbers = []
    for s, row in zip(scores, rows):
        kinds = np.array(data.token_classes(tokenizer, row["answer"], row["facts"], row["author"]))
        line = [s["logp"].min()]
        for kind in (data.FACT, data.FUNCTION, data.NAME):
            of_kind = kinds == kind
            for x in (s["logp"], np.log(s["rank"]), s["z"]):
                line.append(x[of_kind].mean() if of_kind.any() else 0.0)
        numbers.append(line)
    return np.array(numbers, float)


def logistic(x, y, ridge=1.0):
    """-> a function (N, F) -> scores (N,): logistic regression on standardised features, by Newton's method."""
    mean, deviation = x.mean(0), x.std(0) + 1e-6

    def inputs(x):
        return np.c_[(x - mean) / deviation, np.ones(len(x))]
    x, w = inputs(x), np.zeros(x.shape[1] + 1)
    for _ in range(25):
        p = 1 / (1 + np.exp(-x @ w))
        w = w - np.linalg.solve((x.T * (p * (1 - p))) @ x + ridge * np.eye(len(w)), x.T @ (p - y) + ridge * w)
    return lambda x: inputs(x) @ w


def shadow(model, lab):
    """A model from which the attacker has unlearned other people, by the run's own settings -> (it, their rows). Where
    nothing was unlearned: the model itself, and kept people."""
    n = len({row["author"] for row in lab.dataset.forget})
    names = list(dict.fromkeys(row["author"] for row in lab.dataset.retain))[-n:]
    request = [row for row in lab.dataset.retain if row["author"] in names]
    if lab.record.get("kind") != "unlearned":
        return model, request
    rest = [row for row in lab.dataset.retain if row["author"] not in names]
    other = copy.deepcopy(lab.target)
    flags = asu.flags_of(lab.record)
    asu.forget_rows(other, lab.tokenizer, lab.dataset, request, rest, flags, Log("shadow"),
                    base=flags.base or made_from(Path(lab.args.out) / "target"))
    return other, request


def membership(model, lab):
    """Was this person forgotten, or never met? By loss, Min-k%, Min-k%++; and by an attacker who has unlearned others.
    Source: arXiv 2310.16789, 2404.02936; informed: U-LiRA (arXiv 2403.01218) with one shadow. Shows the trace that
    unlearning leaves. Does not give a fact back, so it is left out of the worst share."""
    forget, holdout = lab.dataset.forget, lab.dataset.holdout
    pairs = [[(row["question"], row["answer"]) for row in rows] for rows in (forget, holdout)]
    plain = eval.membership(*(score(model, lab.tokenizer, part) for part in pairs))
    other, request = shadow(model, lab)
    gone, never = features(model, lab.tokenizer, forget), features(model, lab.tokenizer, holdout)
    shadow_gone, shadow_never = features(other, lab.tokenizer, request), features(other, lab.tokenizer, holdout)
    names = sorted({row["author"] for row in holdout})
    half = np.array([names.index(row["author"]) % 2 == 0 for row in holdout])
    informed = []
    for taught in (half, ~half):                            # who teaches the classifier is not what it is tried on
        x = np.concatenate([shadow_gone, shadow_never[taught]])
        classify = logistic(x, np.arange(len(x)) < len(shadow_gone))
        informed.append(auc(classify(gone), classify(never[~taught])))
    return {key: {"auc": value} for key, value in (plain | {"informed": float(np.mean(informed))}).items()}


ATTACKS = {attack.__name__: attack for attack in (
    reading, back_to_base, eight_steps, prefixes, relearn_half, relearn_one, relearn_retain, relearn_invented,
    relearn_text, sampling, quantising, temperatures, lens, probe, patching, membership)}
QUICK = "reading", "back_to_base", "eight_steps"
RECIPE = "epochs", "lr", "replay", "temper", "phrasings", "batch_size"         # that two retrained models share
NO_FACTS = "patching", "membership"             # they give no fact back to somebody who has none: see there


# --------------------------------------------------------------------------------------- tables and figures
def cells(found, name):
    """Of one run: {attack: (number, share, its lowest and highest over seeds)} at the setting of the largest share."""
    worst = {}
    for attack, results in found.items():
        if name not in results:
            continue
        if name == "retrained":
            of_run = {setting: [0.0] * 3 for setting in results[name]}
        else:
            of_run = recover.shares(*(results.get(run, {}) for run in (name, "retrained", "target")))
        if of_run:
            setting = max(of_run, key=lambda s: (of_run[s][0], recover.numbers(results[name][s]).mean()))
            worst[attack] = recover.numbers(results[name][setting]).mean(), *of_run[setting]
    return worst


def tables(found, names):
    """Two Markdown tables: the worst setting of each attack by run; and every setting.

    found: {attack: {run: result}}."""
    lines = [["attack", *names]]
    by_run = {name: cells(found, name) for name in names}
    for attack in found:
        line = [attack]
        for name in names:
            if attack not in by_run[name]:
                line.append("-")
                continue
            number, share, low, high = by_run[name][attack]
            spread = f", {low:.2f} to {high:.2f}" if high > low else ""
            line.append(f"{number:.3f}" + ("" if name == "retrained" else f" ({share:.2f}{spread})"))
        lines.append(line)
    everything = [["attack", "setting", "number", *names]]
    for attack, results in found.items():
        settings = dict.fromkeys(setting for result in results.values() for setting in result)
        for setting in settings:
            known = [results.get(name, {}).get(setting) for name in names]
            key = next(key for k in known if k for key in recover.NUMBERS if key in k)
            numbers = [cell(recover.numbers(k).mean()) if k else "-" for k in known]
            everything.append([attack, setting, key, *numbers])
    return markdown(lines), markdown(everything)


def plot_relearning(found, names, path):
    """Curves of relearning at the middle rate: what each run knows after so many steps, mean over seeds."""
    attacks = [attack for attack in found if attack.startswith("relearn_")]
    figure, axes = plt.subplots(1, len(attacks), figsize=(3.4 * len(attacks), 3.8), sharey=True, squeeze=False)
    for axis, attack in zip(axes[0], attacks):
        for i, name in enumerate(names):
            known = found[attack].get(name, {}).get(f"rate {LRS[1]:g}")
            if known:
                gold = name == "retrained"
                axis.plot(known["looks"], np.mean(known["mrr"], 0), "*-" if gold else ".-", label=name,
                          color="goldenrod" if gold else f"C{i % 10}", lw=2.5 if gold else 1.2)
        axis.set(title=attack.replace("_", " "), xlabel="steps", ylim=(0, 1.03))
        axis.set_xscale("symlog", linthresh=1)
        axis.set_xlim(-0.2, 1.2 * LOOKS[-1])
        axis.set_xticks(LOOKS, [f"{look}" for look in LOOKS], fontsize=7)
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("mean reciprocal rank of the true value")
    axes[0, 0].legend(fontsize=7)
    save_figure(figure, path)


def plot_recovered(found, names, path):
    """The recovered share of every attack on every run, a table in colours."""
    names = [name for name in names if name != "retrained"]
    by_run = {name: cells(found, name) for name in names}
    share = np.array([[by_run[name].get(attack, [np.nan] * 2)[1] for name in names] for attack in found], float)
    figure, axis = plt.subplots(figsize=(2.5 + 0.8 * len(names), 1.2 + 0.36 * len(found)))
    axis.imshow(share, cmap="Reds", vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(share):
        if np.isfinite(value):
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8,
                      color="white" if value > 0.6 else "black")
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
    axis.set_yticks(range(len(found)), [attack.replace("_", " ") for attack in found], fontsize=8)
    axis.set_title("Recovered share: 0 as the retrained model, 1 as the target", fontsize=10)
    save_figure(figure, path)


# --------------------------------------------------------------------------------------------------- main
def parse():
    p = Parser("attack.py", "Attack the runs in OUT: what can be had back that the retrained model does not give?")
    p.add_argument("--runs", help="comma-separated runs in OUT (default: all); target and retrained come along")
    p.add_argument("--attacks", default="all", help=f"all, quick ({', '.join(QUICK)}), or comma-separated, of "
                   + ", ".join(ATTACKS))
    p.add_argument("--lr", type=positive_float, default=1e-3, help="learning rate of eight_steps; 1e-3 breaks a large "
                   "model, then not even the target gives its facts")
    p.add_argument("--second", help="directory of another retrained model, from the same base, of another --seed")
    return p.parse_args()


def chosen(attacks):
    """--attacks -> names of attacks."""
    groups = {"all": ATTACKS, "quick": QUICK}
    names = dict.fromkeys(name for word in attacks.split(",") for name in groups.get(word, [word]))
    if unknown := [name for name in names if name not in ATTACKS]:
        raise UserError(f"--attacks={unknown[0]}: choose all, quick, or from {', '.join(ATTACKS)}")
    return list(names)


def entries_of(args, dataset):
    """The models to attack -> {name: (path, None or the smoothing of a forget-teacher)}, {name: run.json}"""
    out = Path(args.out)
    for name in ("target", "retrained"):
        made_by_train(out / name)
    paths = entries.find_runs(out, args.runs)
    paths = {"target": out / "target", "retrained": out / "retrained"} | paths
    if args.second:
        if "second" in paths or not Path(args.second).is_dir():
            raise UserError(f"--second={args.second}: a directory of a retrained model is needed, and no run in OUT "
                            "may be called second")
        ours, second = read_run(out / "retrained"), read_run(args.second)
        recipe = {key: ours["settings"].get(key) for key in RECIPE}
        if ours.get("parent_sha256") != second.get("parent_sha256"):
            raise UserError(f"--second={args.second} comes from another base than {out / 'retrained'}, so their "
                            "weights cannot be mixed; one from it is made by python train.py --seed=1 --out=OTHER "
                            f"--replay={recipe['replay']} --init_from={made_from(out / 'target')}")
        if changed := differences(second.get("settings", {}), recipe):
            raise UserError(f"--second: {'; '.join(changed)}, so more than the seed differs; give train.py the flags "
                            f"that {out / 'retrained'} has")
        paths["second"] = Path(args.second)
    paths, records, notes, failures = entries.fitting(paths, dataset, args.forget, bool(args.runs or args.second))
    for name, why in failures.items():
        raise UserError(f"{name} cannot be attacked: {why}")
    print(*notes, sep="\n", end="\n" * bool(notes), flush=True)
    return entries.with_teachers(paths, records), records


def attack_run(name, entry, wanted, args, dataset, models):
    """Make the files that are missing or stale, of one run -> {attack: result}.

    models: base and target, loaded."""
    (path, smoothing), folder, results = entry, Path(args.out) / "attack" / name, {}
    record, model = read_run(path), None
    target = read_run(Path(args.out) / "target")
    about = {"data_sha256": dataset.sha256, "seed": args.seed, "lr": args.lr,
             "base_sha256": target.get("parent_sha256"), "target_sha256": target.get("model_sha256")}
    expected = json.loads(json.dumps(recover.made_of(path, record, smoothing, about)))
    for attack in wanted:
        file = folder / f"{attack}.json"
        done = read_json(file, {})
        if done.get("made_of") != expected:
            if model is None:
                model, tokenizer, _ = load_run(path, *pick_device(args))
                if smoothing:
                    layers = layer_numbers(smoothing[1], model.config.n_layer)
                    model, record = recover.smoothed(model, smoothing[0], layers), {}
            start = time.process_time()
            result = ATTACKS[attack](model, Lab(tokenizer, dataset, *models, record, args))
            seconds = round(time.process_time() - start, 1)
            done = {"made_of": expected, "gives_facts": attack not in NO_FACTS, "seconds": seconds, "result": result}
            write_file(file, strict_json(done))
            print(f"{name}, {attack}: {seconds:.0f} s", flush=True)
        results[attack] = done["result"]
    return results


def main():
    args = parse()
    wanted = chosen(args.attacks)
    check_writable(args.out)
    out, device = Path(args.out), pick_device(args)
    dataset = data.load(args.data, args.forget, args.out, args.data_seed, args.n_authors)
    recover.pools(dataset)                                  # refuses data without exact facts
    models, _ = entries_of(args, dataset)
    target = load_run(out / "target", *device)[0]
    base = load_run(made_by_train(made_from(out / "target")), *device)[0]
    found = {attack: {} for attack in wanted}
    for name, entry in models.items():
        for attack, result in attack_run(name, entry, wanted, args, dataset, (base, target)).items():
            found[attack][name] = result
    names, folder = list(models), out / "attack"
    worst, everything = tables(found, names)
    write_file(folder / "attacks.md", f"{worst}\n\n{LEGEND}\n\n{everything}\n")
    plot_recovered(found, names, folder / "recovered.png")
    if any(attack.startswith("relearn_") for attack in wanted):
        plot_relearning(found, names, folder / "relearning.png")
    print(f"\n{worst}\n\nwritten: {folder / 'attacks.md'} and figures")


LEGEND = """Number of the worst setting of each attack, and in brackets the recovered share, (run - retrained) /
(target - retrained) after the same attack, with its lowest and highest over seeds. The number is the mean reciprocal
rank of the true value among the values of its slot; of prefixes the share of facts stated, of sampling leak@8, of
membership the AUC; of a relearning curve its mean over all looks after step 0. Each column has its own worst setting.
No share: the target stands less than 0.3 above the retrained model in every setting. Below, every setting.
docs/attacks.md explains them."""


if __name__ == "__main__":
    run(main)
