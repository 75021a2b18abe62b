"""What can be had back of the forgotten: the attacks that experiments/attack.py is made of, one model at a time.

A fact is drawn evenly from the pool of its slot, each on its own, so nothing follows from anything else: what a model
that never met a person says about them is chance, whatever is done to it. So every attack is held against the same
attack on the retrained model, and on that one AUC 0.5 is exact. What a model knows (see knowledge):

    stated           share of questions whose greedy answer states the facts
    top1, mrr, auc   the answer given up to the fact: the rank of the true value in the pool of its slot, by log p less
                     the mean log p of that value for people nobody met. So it counts for nothing that a value is rare,
                     or that unlearning has pushed it down for everybody.
"""

import collections
import copy
import functools
import itertools
import json
import math
import random
from pathlib import Path

import numpy as np
import regex
import torch

import data
from common import UserError
from common.files import read_json
from data.authors import with_article
from lab.answers import answer_logp, answer_nll, ask
from lab.optim import adamw
from lab.runs import weights_sha256

ANSWER_TOKENS = 24      # that a model may say; the facts come early


# ------------------------------------------------------------------------------------------------ reading
def pools(dataset):
    """{slot: its values, a sorted tuple} of the slots of one fact. Raises UserError where facts are not exact, or
    nobody held out has one of a slot that is asked."""
    asked, held_out = single(dataset.forget), single(dataset.holdout)
    rows = asked + held_out
    if not held_out or not all(row["slot"] and row["facts"] for row in rows):
        raise UserError(f"--data={dataset.name}: an attack needs questions with slots and facts, and held-out people; "
                        "--data=authors has them")
    if alone := sorted({row["slot"] for row in asked} - {row["slot"] for row in held_out}):
        raise UserError(f"--data={dataset.name}: nobody in holdout.json has a fact of slot {alone[0]}, so there is "
                        "nothing to hold its values against")
    rows += [row for row in single(dataset.retain) if row["slot"] and row["facts"]]
    return {slot: tuple(sorted(values[0])) for slot, values in data.slot_values(rows).items()}


def with_value(answer, fact, value):
    """The answer with another value: ("She was an engineer.", "engineer", "baker") -> "She was a baker."."""
    pattern = rf"(\ban? )?{data.whole_words(regex.escape(fact), fact)}"
    return regex.sub(pattern, lambda match: with_article(value) if match[1] else value, answer, flags=regex.V1)


Forks = collections.namedtuple("Forks", "prompt prefixes ways")


@functools.lru_cache(2**15)
def forks(tokenizer, question, answer, fact, pool):
    """Where the answers with one value or another of the pool part: the prompt's ids, the prefixes after which they do,
    and for each value its way, [(number of the prefix, the token it goes on with)]."""
    answers = [tuple(tokenizer.encode_answer(with_value(answer, fact, value))) for value in pool]
    after = collections.defaultdict(set)
    for ids in answers:
        for n, token in enumerate(ids):
            after[ids[:n]].add(token)
    number = {prefix: i for i, prefix in enumerate(p for p in after if len(after[p]) > 1)}
    ways = [[(number[ids[:n]], token) for n, token in enumerate(ids) if ids[:n] in number] for ids in answers]
    return Forks(tokenizer.encode_prompt(question), [list(p) for p in number], ways)


@torch.no_grad()
def pool_logp(model, tokenizer, rows, pool_of, phrasing=0, **smoothing):
    """log p of every value of its slot's pool, the answer given up to it -> one array (values,) for each row.

    phrasing: of question and answer; -1 is the one held out. One forward pass a fork, and at the forks alone."""
    asked = []
    for row in rows:
        pairs = [*zip(row["questions"], row["answers"]), (row["paraphrased_question"], row["paraphrased_answer"])]
        asked.append(forks(tokenizer, *pairs[phrasing], row["facts"][0], pool_of[row["slot"]]))
    examples = [data.Example(prompt + prefix, [0]) for prompt, prefixes, _ in asked for prefix in prefixes]
    logp = [None] * len(examples)
    for numbers, part in data.by_length(examples, 128):
        batch = answer_logp(model, data.collate(part, model.device), **smoothing)[:, 0].cpu().numpy()       # (B, V)
        for number, at_fork in zip(numbers, batch):
            logp[number] = at_fork
    scores, first = [], 0
    for _, prefixes, ways in asked:
        scores.append(np.array([sum(logp[first + n][token] for n, token in way) for way in ways]))
        first += len(prefixes)
    return scores


def single(rows):
    """Of rows, those of one fact."""
    return [row for row in rows if "+" not in row["slot"]]


def calibrated(model, tokenizer, rows, dataset, phrasings=(0,), **smoothing):
    """pool_logp of rows of one fact, a mean over phrasings -> (as it is, less its mean over the held-out people)."""
    pool_of, slots = pools(dataset), {row["slot"] for row in rows}
    holdout = [row for row in dataset.holdout if row["slot"] in slots]

    def scores(rows):
        by_phrasing = [pool_logp(model, tokenizer, rows, pool_of, phrasing, **smoothing) for phrasing in phrasings]
        return [np.mean(arrays, 0) for arrays in zip(*by_phrasing)]
    ours, theirs = scores(rows), scores(holdout)
    usual = {slot: np.mean([s for s, row in zip(theirs, holdout) if row["slot"] == slot], 0) for slot in slots}
    return ours, [s - usual[row["slot"]] for s, row in zip(ours, rows)]


def ranks(scores, truth):
    """Scores of all values and the number of the true one, of each question -> top1, mrr, auc (means; ties count half),
    and above: of each question, the share of other values that the true one stands above."""
    rank = np.array([1 + (s > s[t]).sum() + ((s == s[t]).sum() - 1) / 2 for s, t in zip(scores, truth)])
    above = 1 - (rank - 1) / (np.array([len(s) for s in scores]) - 1)
    return {"top1": float((rank == 1).mean()), "mrr": float((1 / rank).mean()), "auc": float(above.mean()),
            "above": above.round(4).tolist()}


def reading(model, tokenizer, rows, dataset, phrasings=(0,), **smoothing):
    """The rank of the true value of rows of one fact -> ranks, calibrated; raw_auc is without the calibration."""
    pool_of = pools(dataset)
    truth = [pool_of[row["slot"]].index(data.normal(row["facts"][0])) for row in rows]
    raw, scores = calibrated(model, tokenizer, rows, dataset, phrasings, **smoothing)
    return ranks(scores, truth) | {"raw_auc": ranks(raw, truth)["auc"]}


def stated(model, tokenizer, rows, **keywords):
    """Of each row, whether the answer states its facts -> [0 or 1]. keywords: of lab/answers.ask; greedy without."""
    said = ask(model, tokenizer, [row["question"] for row in rows], ANSWER_TOKENS, **keywords)
    return [int(data.states(text, row["facts"])) for text, row in zip(said, rows)]


def knowledge(model, tokenizer, rows, dataset, **smoothing):
    """What a model knows of the facts in rows -> stated, right (0 or 1 a question), and reading's."""
    right = stated(model, tokenizer, rows, **smoothing)
    known = reading(model, tokenizer, single(rows), dataset, **smoothing)
    return {"stated": float(np.mean(right)), **known, "right": right}


# -------------------------------------------------------------------------------------------- relearning
def relearned(model, examples, lr, steps, seed=0, batch_size=32):
    """Fine-tune a copy of a model on data.Examples as an attacker would, AdamW at a constant rate -> yields (step, the
    copy) at each of steps, which grow."""
    model, rng = copy.deepcopy(model).requires_grad_(True), random.Random(f"relearn {seed}")
    optimizer, lengths = adamw(model, lr, 0.01), [len(example) for example in examples]
    epochs = (data.bucketed(lengths, batch_size, rng) for _ in itertools.count())
    batches = itertools.chain.from_iterable(epochs)
    for step in range(steps[-1] + 1):
        if step:
            batch = data.collate([examples[i] for i in next(batches)], model.device)
            data.mean_over_answers(answer_nll(model, batch), batch.mask).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if step in steps:
            yield step, model.eval()


def curve(model, tokenizer, pairs, dataset, lr=1e-3, steps=(0, 8), seed=0):
    """pairs: [(examples to relearn, rows to ask about)] -> {step: knowledge}, the mean over the pairs."""
    points = collections.defaultdict(list)
    for examples, rows in pairs:
        for step, now in relearned(model, examples, lr, steps, seed):
            points[step].append(knowledge(now, tokenizer, rows, dataset))
    return {step: mean_of(known) for step, known in points.items()}


def mean_of(dicts):
    """Dicts of numbers and of lists -> one dict: the means of the numbers, the lists joined."""
    joined = {}
    for key, value in dicts[0].items():
        values = [d[key] for d in dicts]
        joined[key] = sum(values, []) if isinstance(value, list) else float(np.mean(values))
    return joined


def by_fact(rows):
    """{slot: the slots that share a fact with it, as one name}: birth_city, birth_year, and the two asked together."""
    joint = {part: row["slot"] for row in rows for part in row["slot"].split("+") if "+" in row["slot"]}
    return {row["slot"]: joint.get(row["slot"], row["slot"]) for row in rows}


def halves(rows, seed=0):
    """The rows in two halves that share no fact: each person's slots, drawn at random, the same for all."""
    groups = by_fact(rows)
    names = sorted(set(groups.values()))
    random.Random(f"halves {seed}").shuffle(names)
    return [[row for row in rows if groups[row["slot"]] in names[i::2]] for i in (0, 1)]


def relearn_half(model, tokenizer, dataset, lr=1e-3, steps=(0, 8), seed=0):
    """Fine-tune on half of the forgotten facts, ask about the other half, and the other way round -> see curve."""
    one, other = halves(dataset.forget, seed)
    pairs = [(data.training_examples(tokenizer, shown), asked) for shown, asked in ((one, other), (other, one))]
    return curve(model, tokenizer, pairs, dataset, lr, steps, seed)


# ------------------------------------------------------------------------------------------- without training
@torch.no_grad()
def move(model, base, share):
    """Move a model, in place, to base + share (model - base): 0.5 is halfway back to the base, 0 the base itself."""
    for now, before in zip(model.parameters(), base.parameters(), strict=True):
        now.lerp_(before, 1 - share)


def between(base, model, share):
    """-> a copy of the model, moved so."""
    moved = copy.deepcopy(model)
    move(moved, base, share)
    return moved


@torch.no_grad()
def smoothed(model, tau, layers=None):
    """-> the model at an attention temperature, as an ordinary model: softmax(Q K^T / (tau sqrt(d))) is the softmax of
    queries divided by tau. tau, layers: see model.attention_scales, but for one tau a sequence."""
    model = copy.deepcopy(model)
    for layer, scale, plain in zip(model.layers, model.attention_scales(tau, layers), model.attention_scales()):
        share = torch.as_tensor(scale, device=model.device).view(-1, 1, 1) / plain      # (1 or nh, 1, 1)
        for weight in layer.self_attn.q_proj.parameters():                              # (nh * hs, C) and (nh * hs,)
            weight.copy_((weight.view(model.config.n_head, model.config.head_dim, -1) * share).view(weight.shape))
    return model


@torch.no_grad()
def quantised(model, bits):
    """-> a copy whose matrices, embeddings too, are rounded to so many bits, each row by its largest absolute value."""
    rounded, largest = copy.deepcopy(model), 2 ** (bits - 1) - 1
    for weight in rounded.parameters():
        if weight.dim() == 2:
            step = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / largest
            weight.copy_((weight / step).round() * step)
    return rounded


def sampled(model, tokenizer, rows, n, temperature=1.0, seed=0):
    """Ask each question n times -> how many of its answers state the facts, (N,)."""
    asked = [row for row in rows for _ in range(n)]
    right = stated(model, tokenizer, asked, temperature=temperature, seed=seed)
    return np.array(right).reshape(len(rows), n).sum(1)


def leak_at_k(hits, n, k):
    """Mean probability that one of k samples states the fact, where hits (N,) of n did: unbiased, as pass@k (arXiv
    2107.03374). leak_at_k([1], 2, 1) = 0.5."""
    return float(np.mean([1 - math.comb(n - int(h), k) / math.comb(n, k) for h in hits]))


# ------------------------------------------------------------------------------------------------- quick
def quick(model, base, tokenizer, dataset, seed=0):
    """The quick attacks on one model -> rank_auc (reading the model as it is), halfway_auc (the same halfway back to
    the base), and relearn8: what it states and the calibrated mrr after eight steps, at 1e-3, on the other half of the
    facts."""
    rows, result = single(dataset.forget), {}
    for name, read in (("rank_auc", model), ("halfway_auc", between(base, model, 0.5))):
        result[name] = reading(read, tokenizer, rows, dataset)["auc"]
    after = relearn_half(model, tokenizer, dataset, steps=(8,), seed=seed)[8]
    return result | {"relearn8": {key: after[key] for key in ("stated", "mrr")}}


# ---------------------------------------------------------------------------------------- recovered share
NUMBERS = "mrr", "stated", "leak@8", "auc"      # the first of them that a setting has is what counts of it
WORKS = 0.3     # a share needs a target that stands at least so far above the retrained model after the same attack


def recovered_share(run, retrained, target):
    """(run - retrained) / (target - retrained), all three after the same attack: 0 is what the retrained model gives,
    1 what the target does. The headline: of relearn8's mrr. None where the target itself gives hardly more."""
    return (run - retrained) / (target - retrained) if target - retrained >= WORKS else None


def attacked(run, retrained, target):
    """Three results of quick -> the recovered share of the headline."""
    return recovered_share(*(result["relearn8"]["mrr"] for result in (run, retrained, target)))


def numbers(known):
    """What counts of one attack at one setting -> (seeds,): of a curve of relearning, its mean over all looks after the
    first, so the area below it on a logarithmic axis of steps."""
    key = next(key for key in NUMBERS if key in known)
    if "looks" in known:
        return np.array([np.mean(curve[1:]) for curve in known[key]])
    return np.array([known[key]])


def shares(run, retrained, target):
    """Results of one attack, {setting: what it found} -> {setting: [recovered share, the lowest and the highest of the
    seeds]}, without the settings in which the attack breaks the target too."""
    result = {}
    for setting in run:
        if setting in retrained and setting in target:
            ours, low, high = (numbers(known[setting]) for known in (run, retrained, target))
            if (share := recovered_share(ours.mean(), low.mean(), high.mean())) is not None:
                by_seed = (ours - low) / (high - low)
                result[setting] = [float(share), float(by_seed.min()), float(by_seed.max())]
    return result


def made_of(path, record, smoothing, about):
    """What an attack's file depends on: the run's weights, the smoothing of a forget-teacher, settings and data."""
    sha256 = record.get("model_sha256") or weights_sha256(path)
    return {"model_sha256": sha256, "smoothing": smoothing and list(smoothing), **about}


def same_attack(files):
    """Whether attack files of several models were made with the same seed, rate and data."""
    first, *others = ({key: value for key, value in file["made_of"].items() if key not in ("model_sha256", "smoothing")}
                      for file in files)
    return all(other == first for other in others)


def recorded(out, entries, records, data_sha256):
    """What experiments/attack.py has found of just these weights -> {run: {"recovered": the share of the headline,
    "recovered_worst": the largest over all attacks that give facts back}}, of the runs that were attacked.

    entries: see lab.entries.with_teachers; records: {run: run.json}."""
    done = {}
    for name, (path, smoothing) in entries.items():
        record = records.get("target" if smoothing else name, {})
        expected = made_of(path, record, smoothing, {"data_sha256": data_sha256})
        for file in sorted((Path(out) / "attack" / name).glob("*.json")):
            attack = read_json(file)
            if expected.items() <= json.loads(json.dumps(attack.get("made_of", {}))).items():
                done.setdefault(name, {})[file.stem] = attack
    result, low, high = {}, done.get("retrained", {}), done.get("target", {})
    for name in done:
        found = {}
        for attack in done[name].keys() & low.keys() & high.keys() if name != "retrained" else ():
            files = [files[attack] for files in (done[name], low, high)]
            if files[0]["gives_facts"] and same_attack(files):
                found[attack] = [share for share, *_ in shares(*(file["result"] for file in files)).values()]
        if found.get("eight_steps"):
            worst = max(share for values in found.values() for share in values)
            result[name] = {"recovered": found["eight_steps"][0], "recovered_worst": worst}
    return result
