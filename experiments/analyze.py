"""Inside one unlearning: what smoothing does to attention, tokens and teacher, and what the student made of it.

    python -m experiments.analyze                      OUT/analyze/analyze.json and seven figures
    python -m experiments.analyze --runs=asu_gd,npo_gd

From OUT/target, the unlearned runs (the teacher is that of the first that had one; of a run with --heal it is healed
again, and the target smoothed but not healed stands beside it), and OUT/retrained if it is there:

    tokens.png      attention entropy and NLL of fact, name and function tokens against tau
    heads.png       the same temperature in one head, or one layer, alone: what each costs
    attention.png   one forget question: what the head that facts need most looks at
    teacher.png     the forget-teacher as a model of its own, at every tau (a healed one was healed at its own alone)
    entropy.png     did the student's heads flatten, as the teacher's are flat?
    lens.png        logit lens: after which layer the true fact is there to be read
    student.png     attention entropy by class of token, and the true token's rank, of each model as it speaks

Intervals are 95%, bootstrap over questions. The questions are training phrasings; only the teacher's truth ratio needs
others.
"""

from pathlib import Path

import numpy as np
import torch

import asu
import data
import eval
from common import UserError
from common.cli import Parser, layer_numbers, pick_device, positive_int, run, whole
from common.files import check_writable, strict_json, write_file
from experiments import figures
from lab import choose, entries, parallel
from lab.answers import answer_nll
from lab.runs import load_run, prepare, read_run
from lab.scores import score

TAUS = choose.TAUS[::2]                                        # 1, 2, 4, ... 256
CLASSES = {"fact": data.FACT, "name": data.NAME, "function": data.FUNCTION}
FIGURES = {     # part of the report -> what draws it into a file of that name
    "tokens": figures.plot_tokens, "heads": figures.plot_heads, "attention": figures.plot_attention,
    "teacher": figures.plot_teacher, "entropy": figures.plot_head_entropy, "lens": figures.plot_lens,
    "student": figures.plot_student}


# ------------------------------------------------------------------------------------------------ measures
def attention_entropy(weights):
    """(B, nh, T, T) causal attention -> (B, nh, T) in [0, 1]: entropy / log of the prefix length.

    1 for a uniform prefix, as one of a single token is."""
    longest = torch.arange(1, weights.size(-1) + 1, device=weights.device).log()                # (T,)
    return (torch.special.entr(weights).sum(-1) / longest).nan_to_num(1.0)


@torch.no_grad()
def read_answers(model, examples, entropy=True, batch_size=32, **smoothing):
    """Teacher-forced -> for each example nll (A,), and entropy (n_layer, nh, A) of the attention that predicts a token.

    entropy=False leaves it out (None)."""
    answers = [None] * len(examples)
    for numbers, part in data.by_length(examples, batch_size):
        batch, weights = data.collate(part, model.device), [] if entropy else None
        nll = answer_nll(model, batch, weights=weights, **smoothing).cpu().numpy()              # (B, A)
        if entropy:
            h = torch.stack([attention_entropy(w) for w in weights])                            # (n_layer, B, nh, T)
            at = batch.position[None, :, None].expand(*h.shape[:3], -1)
            h = h.gather(-1, at).cpu().numpy()                                                  # (n_layer, B, nh, A)
        for row, (number, example) in enumerate(zip(numbers, part)):
            A = len(example.answer)
            answers[number] = nll[row, :A], h[:, row, :, :A] if entropy else None
    return answers


def logit_lens(model, batch, layer, **smoothing):
    """Log-probabilities (B, A, V) at answer tokens, read off the residual stream after `layer` layers by the model's
    own final norm and head. At the last layer it is the model itself (nostalgebraist's logit lens)."""
    hidden = model.norm(model.hidden(batch.idx, n_layers=layer, **smoothing))
    return model.lm_head(batch.at_answers(hidden)).float().log_softmax(-1)


@torch.no_grad()
def lens(model, examples, at, batch_size=32, **smoothing):
    """The true token number at[i] of each answer i, after 0 ... n_layer layers -> logp, rank (1 = first), each
    (N, n_layer + 1)."""
    logps, ranks = np.zeros((2, len(examples), model.config.n_layer + 1))
    for layer in range(model.config.n_layer + 1):
        for i in range(0, len(examples), batch_size):
            batch = data.collate(examples[i:i + batch_size], model.device)
            tokens = torch.tensor(at[i:i + batch_size], device=model.device)
            here = torch.arange(len(tokens), device=model.device), tokens
            logp = logit_lens(model, batch, layer, **smoothing)[here]                           # (B, V)
            true = logp.gather(-1, batch.target[here][:, None])                                 # (B, 1)
            logps[i:i + batch_size, layer] = true[:, 0].cpu()
            ranks[i:i + batch_size, layer] = ((logp > true).sum(-1) + 1).cpu()
    return logps, ranks


def interval(statistic, n, draws=1000):
    """95% interval over resampled questions -> [low, high] of statistic(how often each was drawn (draws, n))."""
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), draws)
    return np.percentile(statistic(weights), (2.5, 97.5), axis=0)


def mean(sums, counts):
    """Sums and counts of a question's tokens (N, ...) -> [mean over all tokens, low, high] as nested lists (3, ...)."""
    sums, counts = np.asarray(sums, float), np.asarray(counts, float) * np.ones_like(sums)
    with np.errstate(invalid="ignore", divide="ignore"):    # a class without tokens: nan, written as null
        m = sums.sum(0) / counts.sum(0)
        low, high = interval(lambda w: np.tensordot(w, sums, 1) / np.tensordot(w, counts, 1), len(sums))
    return np.stack([m, low, high]).tolist()


def median(values):
    """(N, K) -> [median over questions, low, high], (3, K)."""
    draws = np.random.default_rng(0).integers(0, len(values), (1000, len(values)))
    low, high = np.percentile(np.median(values[draws], axis=1), (2.5, 97.5), axis=0)
    return np.stack([np.median(values, 0), low, high]).tolist()


def per_class(values, classes, kind):
    """Values a token [(A,)], their classes -> (sums (N,), counts (N,)) over each question's tokens of one kind."""
    picked = [v[np.array(c) == kind] for v, c in zip(values, classes)]
    return [p.sum() for p in picked], [len(p) for p in picked]


def of_classes(values, classes):
    """-> {class: [mean, low, high]} of values a token, see per_class."""
    return {name: mean(*per_class(values, classes, kind)) for name, kind in CLASSES.items()}


# ------------------------------------------------------------------------------------------------ the parts
def tokens_of(model, examples, classes, over, **smoothing):
    """-> {"nll", "entropy": {class: [mean, low, high]}}; entropy: mean of all heads of the layers `over`."""
    answers = read_answers(model, examples, **smoothing)
    return {"nll": of_classes([nll for nll, _ in answers], classes),
            "entropy": of_classes([h[over].mean((0, 1)) for _, h in answers], classes)}


def head_gains(model, examples, classes, tau):
    """NLL gained by smoothing one head alone, or one whole layer.

    -> {"heads": {class: (3, n_layer, nh)}, "layers": {class: (3, n_layer)}}, see mean."""
    c = model.config
    before = [nll for nll, _ in read_answers(model, examples, entropy=False)]

    def gains(**smoothing):
        after = [nll for nll, _ in read_answers(model, examples, entropy=False, **smoothing)]
        return [per_class([a - b for a, b in zip(after, before)], classes, kind)[0] for kind in CLASSES.values()]

    def alone(layer, head):
        taus = torch.ones(c.n_layer, c.n_head)
        taus[layer, head] = tau
        return gains(tau=taus)

    heads = np.array([[alone(layer, head) for head in range(c.n_head)] for layer in range(c.n_layer)])  # (L, nh, 3, N)
    layers = np.array([gains(tau=tau, layers=[layer]) for layer in range(c.n_layer)])                   # (L, 3, N)
    result = {"heads": {}, "layers": {}}
    for i, (name, kind) in enumerate(CLASSES.items()):
        counts = np.array([c.count(kind) for c in classes])
        result["heads"][name] = mean(heads[:, :, i].transpose(2, 0, 1), counts[:, None, None])
        result["layers"][name] = mean(layers[:, i].T, counts[:, None])
    return result


@torch.no_grad()
def attention_map(model, example, layer, head, **smoothing):
    """What one head looks at where it predicts the answer -> weights (A, T) as nested lists."""
    batch, weights = data.collate([example], model.device), []
    model.hidden(batch.idx, weights=weights, **smoothing)
    return weights[layer][0, head][batch.position[0]].tolist()


def teacher_rows(model, tokenizer, sets, slot_values, at):
    """Fact accuracy, coherence and truth ratio of the teacher -> {set: {metric: [[mean, low, high] for every tau]}}.

    at: tau -> the keywords that smooth the model so."""
    metrics = ("fact_accuracy", "coherence", "truth_ratio")
    rows = {part: {m: [] for m in metrics} for part in ("forget", "retain")}
    for tau in TAUS:
        for part in rows:
            values = eval.evaluate(model, tokenizer, part, sets[part], slot_values, **at(tau))[1]
            for m in metrics:
                rows[part][m].append(mean(values[m], 1))
    return rows


def head_entropy(model, examples, **smoothing):
    """Mean attention entropy of every head over answer tokens -> [mean, low, high], (3, n_layer, nh)."""
    entropies = [h for _, h in read_answers(model, examples, **smoothing)]
    return mean([h.sum(-1) for h in entropies], [[[h.shape[-1]]] for h in entropies])


def student_part(models, tokenizer, rows, examples, classes, over):
    """How much of the teacher is in the student: each model as it speaks, teachers at their tau, the others at 1.

    -> {"entropy": {model: {class: [mean, low, high]}}, of the heads of the layers `over`, a uniform prefix being 1;
    "rise": the same in nats, less the target's token by token; "rank": {model: see gold_rank}}"""
    nats, report = {}, {"entropy": {}, "rise": {}, "rank": {}}
    for name, (model, smoothing) in models.items():
        heads = [h[over].mean((0, 1)) for _, h in read_answers(model, examples, **smoothing)]           # (A,) each
        report["entropy"][name] = of_classes(heads, classes)
        nats[name] = []
        for h, example in zip(heads, examples):
            nats[name].append(h * np.log(len(example.prompt) + np.arange(len(h))))                      # prefix length
        report["rise"][name] = of_classes([now - before for now, before in zip(nats[name], nats["target"])], classes)
        report["rank"][name] = gold_rank(model, tokenizer, rows, classes, **smoothing)
    return report


def gold_rank(model, tokenizer, rows, classes, **smoothing):
    """Where the true token stands in the model's order (rank 1: first), at the slots, where a row's fact is decided, at
    all fact tokens and at all tokens of the answers.

    -> {place: {"first": share of rank 1, "reciprocal": mean of 1 / rank}}, at "slots" also the "median" rank; each
    [value, low, high]."""
    scores, result = score(model, tokenizer, [(row["question"], row["answer"]) for row in rows], **smoothing), {}
    facts = [[i for i, kind in enumerate(kinds) if kind == data.FACT] for kinds in classes]
    slots = [[at] for at in fact_slots(rows, [s["ids"] for s in scores], facts)]
    for place, tokens in (("slots", slots), ("facts", facts), ("answers", [range(len(kinds)) for kinds in classes])):
        ranks = [s["rank"][list(at)] for s, at in zip(scores, tokens)]
        counts = [len(r) for r in ranks]
        result[place] = {"first": mean([(r == 1).sum() for r in ranks], counts),
                         "reciprocal": mean([(1 / r).sum() for r in ranks], counts)}
    at_slots = [s["rank"][at] for s, at in zip(scores, slots)]                                          # (N, 1)
    result["slots"]["median"] = [value for [value] in median(np.array(at_slots))]
    return result


def fact_slots(rows, answers, facts):
    """Where each row's fact is decided: its first token that is not the same in all rows that ask the same ("Songs"
    in every "Songs of ..." decides nothing), or its first token. -> [number of a token]

    answers: token ids of each row's answer; facts: the numbers of its fact tokens."""
    slots = []
    for row, numbers in zip(rows, facts):
        peers = [ids[at] for other, ids, at in zip(rows, answers, facts) if other["slot"] == row["slot"]]
        shared = [len({tokens[i] for tokens in peers if i < len(tokens)}) == 1 for i in range(len(numbers))]
        slots.append(numbers[shared.index(False) if False in shared else 0])
    return slots


def attention_part(models, tokenizer, row, example, classes, layer, head):
    """One head of every model on one forget question -> what attention.png shows."""
    maps = {}
    for name, (model, smoothing) in models.items():
        maps[name] = attention_map(model, example, layer, head, **smoothing)
    return {"question": row["question"], "answer": row["answer"], "layer": layer, "head": head,
            "read": [tokenizer.decode([i]) for i in (example.prompt + example.answer)[:-1]],
            "predicted": [tokenizer.decode([i]) for i in example.answer[:-1]] + ["EOS"],
            "is_fact": [kind == data.FACT for kind in classes], "maps": maps}


# --------------------------------------------------------------------------------------------------- main
def parse():
    p = Parser("analyze.py", "Look inside an unlearning.")
    add = p.add_argument
    add("--runs", default="asu_gd", help="comma-separated runs in OUT; the first that had a teacher lends its tau")
    add("--max_rows", type=positive_int, default=120, help="questions of each set, drawn at random")
    add("--row", type=whole, default=0, help="which of the forget questions attention.png shows")
    return p.parse_args()


def read_records(dataset, args):
    """run.json of the target, of --runs and of the retrained model where there is one -> {name: record}. Refuses what
    cannot stand beside the others."""
    records = {"target": read_run(Path(args.out) / "target")}
    for name in args.runs.split(","):
        if not (Path(args.out) / name).is_dir():
            raise UserError(f"--runs: there is no {Path(args.out) / name}; run python asu.py first")
        records[name] = read_run(Path(args.out) / name)
    if (Path(args.out) / "retrained").is_dir():
        records["retrained"] = read_run(Path(args.out) / "retrained")
    for name in records:
        if why := entries.misfit(name, records[name], records, dataset, args.forget):
            raise UserError(why)
    return records


def teacher_of(records, n_layer, args):
    """The first forget-teacher -> the run's record; its tau; at: t -> keywords that smooth a model where it does, at
    temperature t; the numbers of the layers that it smooths; and these in words."""
    taught = [record for record in records.values() if entries.teacher(record)]
    if not taught:
        raise UserError(f"--runs={args.runs}: none of them was unlearned by a forget-teacher; give one that was, as "
                        "asu_gd")
    _, (tau, words) = entries.teacher(taught[0])
    if not isinstance(tau, list):
        layers = layer_numbers(words, n_layer)
        smoothed = list(range(n_layer)) if layers is None else layers
        return taught[0], tau, lambda t: {"tau": t, "layers": layers}, smoothed, words
    table = tau                                                                         # tau or 1 for every head

    def at(t):
        return {"tau": [[t if x != 1 else 1.0 for x in heads] for heads in table]}
    smoothed = [layer for layer, heads in enumerate(table) if any(x != 1 for x in heads)]
    return taught[0], max(map(max, table)), at, smoothed, "some heads of " + words


def healed(target, tokenizer, dataset, record, smoothing):
    """The healed teacher of a run, made again as the run made it: it speaks at its tau only."""
    flags, model = asu.flags_of(record), parallel.copy_of(target)
    prepare(model, flags)
    return asu.keywords(flags, tokenizer, dataset, dataset.forget, dataset.retain)["healer"](model, **smoothing)


def questions(dataset, args):
    """-> {"forget": rows, "retain": rows}: questions, see data.subset, whose answers state facts."""
    sets = {}
    for part in ("forget", "retain"):
        rows = [row for row in dataset.sets[part] if row["facts"] and data.states(row["answer"], row["facts"])]
        if not rows:
            raise UserError(f"--data={args.data}: rows whose answers state facts (key facts) are needed")
        sets[part] = data.subset(rows, args.max_rows)
    if args.row >= len(sets["forget"]):
        raise UserError(f"--row={args.row}: there are {len(sets['forget'])} forget questions, from 0 on")
    return sets


def measure(models, tokenizer, sets, slot_values, smoothed, at, tau, row):
    """The seven parts of the report. models: {name: (model, keywords that smooth it)}; for the rest see teacher_of and
    questions."""
    target, examples, classes, report = models["target"][0], {}, {}, {}
    for part, rows in sets.items():
        examples[part] = [data.encode(tokenizer, r["question"], r["answer"]) for r in rows]
        classes[part] = [data.token_classes(tokenizer, r["answer"], r["facts"], r["author"]) for r in rows]
    forget = examples["forget"], classes["forget"]
    report["tokens"] = {"tau": TAUS, "target": [tokens_of(target, *forget, smoothed, **at(t)) for t in TAUS],
                        "runs": {name: tokens_of(model, *forget, smoothed) for name, (model, smoothing)
                                 in models.items() if model is not target and not smoothing}}
    print("tokens", flush=True)
    report["heads"] = head_gains(target, *forget, tau)
    print("heads", flush=True)
    fact_gain = np.array(report["heads"]["heads"]["fact"][0])                           # (n_layer, nh)
    layer = max(smoothed, key=lambda i: fact_gain[i].max())
    report["attention"] = attention_part(models, tokenizer, sets["forget"][row], examples["forget"][row],
                                         classes["forget"][row], layer, int(fact_gain[layer].argmax()))
    report["teacher"] = {"tau": TAUS, **teacher_rows(models["teacher"][0], tokenizer, sets, slot_values, at)}
    print("teacher", flush=True)
    report["entropy"] = {}
    for part in sets:
        report["entropy"][part] = {name: head_entropy(model, examples[part], **smoothing)
                                   for name, (model, smoothing) in models.items()}
    first = [kinds.index(data.FACT) for kinds in classes["forget"]]                     # the first token of the fact
    report["lens"] = {}
    for name, (model, smoothing) in models.items():
        logp, rank = lens(model, examples["forget"], first, **smoothing)
        report["lens"][name] = {"logp": mean(logp, 1), "rank": median(rank)}
    report["student"] = student_part(models, tokenizer, sets["forget"], *forget, smoothed)
    return report


def main():
    args = parse()
    check_writable(args.out)
    device, dtype = pick_device(args)
    out, folder = Path(args.out), Path(args.out) / "analyze"
    target, tokenizer, _ = load_run(out / "target", device, dtype)
    dataset = data.load(args.data, args.forget, args.out, args.data_seed, args.n_authors)
    records = read_records(dataset, args)
    record, tau, at, smoothed, layers = teacher_of(records, target.config.n_layer, args)
    sets = questions(dataset, args)
    models = {"target": (target, {}), "teacher": (target, at(tau))}
    if record["settings"].get("heal"):
        models["teacher"] = healed(target, tokenizer, dataset, record, at(tau)), at(tau)
        models["not healed"] = target, at(tau)
    for name in records:
        if name != "target":
            models[name] = load_run(out / name, device, dtype)[0], {}
    counts = {part: len(rows) for part, rows in sets.items()}
    print(f"teacher: tau={tau:g}, layers={layers}; {counts} questions", flush=True)
    slot_values = data.slot_values([row for rows in dataset.sets.values() for row in rows])
    about = {"sha256": dataset.sha256, "forget": args.forget, "questions": counts}
    report = {"data": about, "tau": tau, "layers": layers}
    report |= measure(models, tokenizer, sets, slot_values, smoothed, at, tau, args.row)
    for part, plot in FIGURES.items():
        plot(report[part], folder / f"{part}.png", tau)
    write_file(folder / "analyze.json", strict_json(report))
    print(summary(report) + f"\nwritten: {folder}/analyze.json and figures")


def summary(report):
    """The findings in lines of text."""
    lines, low, high = [], report["tokens"]["target"][0], report["tokens"]["target"][-1]
    for name in CLASSES:
        lines.append(f"{name} tokens, tau 1 -> {TAUS[-1]:g}: attention entropy {low['entropy'][name][0]:.2f} -> "
                     f"{high['entropy'][name][0]:.2f}, NLL {low['nll'][name][0]:.3f} -> {high['nll'][name][0]:.3f}")
    for part, models in report["entropy"].items():
        lines.append(f"mean head entropy on {part}: "
                     + ", ".join(f"{name} {np.mean(entropy[0]):.2f}" for name, entropy in models.items()))
    for layer, where in ((1, "after the first layer"), (-1, "at the end")):
        parts = [f"{name} {part['rank'][0][layer]:g} / {part['logp'][0][layer]:.2f}"
                 for name, part in report["lens"].items()]
        lines.append(f"true fact {where}, median rank and mean log-probability: " + ", ".join(parts))
    for name, classes in report["student"]["rise"].items():
        if name != "target":
            parts = [f"{kind} {interval_text(values, '+.3f')}" for kind, values in classes.items()]
            lines.append(f"attention entropy of {name} less the target's, nats a token: " + ", ".join(parts))
    for name, places in report["student"]["rank"].items():
        parts = [f"{place} {interval_text(rank['first'])}" for place, rank in places.items()]
        slots = places["slots"]
        lines.append(f"true token first with {name}, at " + ", ".join(parts) + "; at slots reciprocal rank "
                     f"{interval_text(slots['reciprocal'])}, median rank {interval_text(slots['median'], 'g')}")
    return "\n".join(lines)


def interval_text(values, digits=".3f"):
    """interval_text([0.5, 0.4, 0.6]) -> "0.500 [0.400, 0.600]\""""
    value, low, high = (format(x, digits) for x in values)
    return f"{value} [{low}, {high}]"


if __name__ == "__main__":
    run(main)
