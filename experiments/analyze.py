"""Inside one unlearning: what smoothing does to attention, to tokens and to the teacher, and what the student made of it.

    python -m experiments.analyze                      OUT/analyze/analyze.json and six figures
    python -m experiments.analyze --runs=asu_gd,npo_gd

From OUT/target and the unlearned runs (the teacher is the first one's that had a teacher), and OUT/retrained where it is there:

    tokens.png      attention entropy and NLL of fact, name and function tokens against tau
    heads.png       the same temperature in one head, or one layer, alone: what each costs
    attention.png   one forget question: what the head that facts need most looks at
    teacher.png     the forget-teacher as a model of its own, at every tau
    entropy.png     did the student's heads flatten, as the teacher's are flat?
    lens.png        logit lens: after which layer the true fact is there to be read

Intervals are 95%, bootstrap over questions. The questions are training phrasings; only the teacher's truth ratio needs others.
"""

import json
from pathlib import Path

import numpy as np
import torch

import data
import eval
from common import UserError
from common.cli import Parser, layer_numbers, pick_device, positive_int, run, whole
from common.files import check_writable, write_file
from lab import choose
from lab.answers import answer_nll
from lab.report import plot_attention, plot_head_entropy, plot_heads, plot_lens, plot_teacher, plot_tokens
from lab.runs import load_run, read_run

TAUS = choose.TAUS[::2]                                        # 1, 2, 4, ... 256
CLASSES = {"fact": data.FACT, "name": data.NAME, "function": data.FUNCTION}


# ------------------------------------------------------------------------------------------------ measures
def attention_entropy(weights):
    """(B, nh, T, T) causal attention -> (B, nh, T) in [0, 1]: entropy / log of the prefix length, 1 for a uniform prefix.

    A prefix of one token is uniform: 1."""
    longest = torch.arange(1, weights.size(-1) + 1, device=weights.device).log()                # (T,)
    return (torch.special.entr(weights).sum(-1) / longest).nan_to_num(1.0)


@torch.no_grad()
def read_answers(model, examples, entropy=True, batch_size=32, **smoothing):
    """Teacher-forced -> for each example (nll (A,), entropy (n_layer, nh, A) of the attention that predicts each token).

    entropy=False leaves it out (None)."""
    found = [None] * len(examples)
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]))
    for i in range(0, len(order), batch_size):
        batch = data.collate([examples[j] for j in order[i:i + batch_size]], model.device)
        weights = [] if entropy else None
        nll = answer_nll(model, batch, weights=weights, **smoothing).cpu().numpy()          # (B, A)
        if entropy:
            h = torch.stack([attention_entropy(w) for w in weights])                            # (n_layer, B, nh, T)
            at = batch.position[None, :, None].expand(*h.shape[:3], -1)
            h = h.gather(-1, at).cpu().numpy()                                                  # (n_layer, B, nh, A)
        for row, j in enumerate(order[i:i + batch_size]):
            A = len(examples[j].answer)
            found[j] = nll[row, :A], h[:, row, :, :A] if entropy else None
    return found


def logit_lens(model, batch, layer, **smoothing):
    """Log-probabilities (B, A, V) at answer tokens, read off the residual stream after `layer` layers by the model's own final
    norm and head. At the last layer it is the model itself (nostalgebraist's logit lens)."""
    hidden = model.norm(model.hidden(batch.idx, n_layers=layer, **smoothing))
    return model.lm_head(batch.at_answers(hidden)).float().log_softmax(-1)


@torch.no_grad()
def lens(model, examples, at, batch_size=32, **smoothing):
    """The true token number at[i] of each answer, after 0 ... n_layer layers -> logp, rank (1 = first), each (N, n_layer + 1)."""
    logps, ranks = np.zeros((2, len(examples), model.config.n_layer + 1))
    for layer in range(model.config.n_layer + 1):
        for i in range(0, len(examples), batch_size):
            batch = data.collate(examples[i:i + batch_size], model.device)
            here = torch.arange(len(batch.idx), device=model.device), torch.tensor(at[i:i + batch_size], device=model.device)
            logp = logit_lens(model, batch, layer, **smoothing)[here]                           # (B, V)
            true = logp.gather(-1, batch.target[here][:, None])                                 # (B, 1)
            logps[i:i + batch_size, layer] = true[:, 0].cpu()
            ranks[i:i + batch_size, layer] = ((logp > true).sum(-1) + 1).cpu()
    return logps, ranks


def interval(statistic, n, draws=1000):
    """95% interval over resampled questions -> [low, high] of statistic(weights (draws, n)), how often each was drawn."""
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


# ------------------------------------------------------------------------------------------------ the parts
def tokens_of(model, examples, classes, over, **smoothing):
    """-> {"nll", "entropy": {class: [mean, low, high]}}; entropy: mean of all heads of the layers `over`."""
    found = read_answers(model, examples, **smoothing)
    values = {"nll": [nll for nll, _ in found], "entropy": [h[over].mean((0, 1)) for _, h in found]}
    return {key: {name: mean(*per_class(some, classes, kind)) for name, kind in CLASSES.items()} for key, some in values.items()}


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
    whole = np.array([gains(tau=tau, layers=[layer]) for layer in range(c.n_layer)])                    # (L, 3, N)
    result = {"heads": {}, "layers": {}}
    for i, (name, kind) in enumerate(CLASSES.items()):
        counts = np.array([c.count(kind) for c in classes])
        result["heads"][name] = mean(heads[:, :, i].transpose(2, 0, 1), counts[:, None, None])
        result["layers"][name] = mean(whole[:, i].T, counts[:, None])
    return result


@torch.no_grad()
def attention_map(model, tokenizer, example, layer, head, **smoothing):
    """What one head looks at where it predicts the answer -> weights (A, T) as nested lists."""
    batch, weights = data.collate([example], model.device), []
    model.hidden(batch.idx, weights=weights, **smoothing)
    return weights[layer][0, head][batch.position[0]].tolist()


def teacher_rows(model, tokenizer, sets, slot_values, at):
    """Fact accuracy, coherence and truth ratio of the teacher at every tau -> {set: {metric: [[mean, low, high] a tau]}}.

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
    found = [h for _, h in read_answers(model, examples, **smoothing)]
    return mean([h.sum(-1) for h in found], [[[h.shape[-1]]] for h in found])


# --------------------------------------------------------------------------------------------------- main
def parse():
    p = Parser("Look inside an unlearning.")
    p.add_argument("--runs", default="asu_gd", help="comma-separated unlearned runs in OUT; the first with a teacher lends its tau")
    p.add_argument("--max_rows", type=positive_int, default=120, help="questions of each set, evenly spaced")
    p.add_argument("--row", type=whole, default=0, help="which of the forget questions attention.png shows")
    return p.parse_args()


def main():
    args = parse()
    check_writable(args.out)
    device, dtype = pick_device(args)
    out, names = Path(args.out), args.runs.split(",")
    target, tokenizer, record = load_run(out / "target", device, dtype)
    rows = data.load(args.data, args.forget, args.out, args.data_seed, args.n_authors)
    records = {"target": record}
    for name in names:
        if not (out / name).is_dir():
            raise UserError(f"--runs: there is no {out / name}; run python asu.py first")
        records[name] = read_run(out / name)
    if (out / "retrained").is_dir():
        records["retrained"] = read_run(out / "retrained")
    for name in records:
        if why := eval.misfit(name, records[name], records, rows, args.forget):
            raise UserError(why)
    if not (found := eval.teachers(records)):
        raise UserError(f"--runs={args.runs}: none of them was unlearned by a forget-teacher; give one that was, as asu_gd")
    tau, layer_text = next(iter(found.values()))
    layers = layer_numbers(layer_text, target.config.n_layer)
    table = tau if isinstance(tau, list) else None                                      # selective: tau or 1 for every head
    if table:
        tau, layer_text = max(map(max, table)), "some heads of " + layer_text
        smoothed = [i for i, heads in enumerate(table) if max(heads) > 1]
    else:
        smoothed = list(range(target.config.n_layer)) if layers is None else layers

    def at(t):
        """The teacher's own heads or layers at temperature t."""
        return {"tau": [[t if x > 1 else 1.0 for x in heads] for heads in table]} if table else {"tau": t, "layers": layers}

    sets = {part: [row for row in rows.sets[part] if row["facts"] and data.states(row["answer"], row["facts"])]
            for part in ("forget", "retain")}
    sets = {part: some[::-(-len(some) // args.max_rows) or 1] for part, some in sets.items()}
    if not all(sets.values()):
        raise UserError(f"--data={args.data}: rows whose answers state facts (key facts) are needed")
    if args.row >= len(sets["forget"]):
        raise UserError(f"--row={args.row}: there are {len(sets['forget'])} forget questions, from 0 on")
    examples = {part: [data.encode(tokenizer, row["question"], row["answer"]) for row in some] for part, some in sets.items()}
    classes = {part: [data.token_classes(tokenizer, row["answer"], row["facts"], row["author"]) for row in some]
               for part, some in sets.items()}
    slot_values = data.slot_values([row for some in rows.sets.values() for row in some])
    models = {name: (load_run(out / name, device, dtype)[0], {}) for name in records if name != "target"}
    models = {"target": (target, {}), "teacher": (target, at(tau)), **models}

    report = {"data": {"sha256": rows.sha256, "forget": args.forget, "questions": {part: len(some) for part, some in sets.items()}},
              "tau": tau, "layers": layer_text}
    print(f"teacher: tau={tau:g}, layers={layer_text}; {report['data']['questions']} questions", flush=True)
    forget = examples["forget"], classes["forget"]
    report["tokens"] = {"tau": TAUS, "target": [tokens_of(target, *forget, smoothed, **at(t)) for t in TAUS],
                        "runs": {name: tokens_of(model, *forget, smoothed) for name, (model, _) in models.items()
                                 if name not in ("target", "teacher")}}
    print("tokens", flush=True)
    report["heads"] = head_gains(target, *forget, tau)
    print("heads", flush=True)
    fact_gain = np.array(report["heads"]["heads"]["fact"][0])                           # (n_layer, nh)
    layer = max(smoothed, key=lambda i: fact_gain[i].max())
    head, example = int(fact_gain[layer].argmax()), examples["forget"][args.row]
    report["attention"] = {"question": sets["forget"][args.row]["question"], "answer": sets["forget"][args.row]["answer"],
                           "layer": layer, "head": head,
                           "read": [tokenizer.decode([i]) for i in (example.prompt + example.answer)[:-1]],
                           "predicted": [tokenizer.decode([i]) for i in example.answer[:-1]] + ["EOS"],
                           "is_fact": [kind == data.FACT for kind in classes["forget"][args.row]],
                           "maps": {name: attention_map(model, tokenizer, example, layer, head, **kw)
                                    for name, (model, kw) in models.items()}}
    report["teacher"] = {"tau": TAUS, **teacher_rows(target, tokenizer, sets, slot_values, at)}
    print("teacher", flush=True)
    report["entropy"] = {part: {name: head_entropy(model, examples[part], **kw) for name, (model, kw) in models.items()}
                         for part in sets}
    first = [some.index(data.FACT) for some in classes["forget"]]                       # the first token of the fact
    report["lens"] = {}
    for name, (model, kw) in models.items():
        logp, rank = lens(model, examples["forget"], first, **kw)
        report["lens"][name] = {"logp": mean(logp, 1), "rank": median(rank)}
    folder = out / "analyze"
    for plot, part in ((plot_tokens, "tokens"), (plot_heads, "heads"), (plot_attention, "attention"), (plot_teacher, "teacher"),
                       (plot_head_entropy, "entropy"), (plot_lens, "lens")):
        plot(report[part], folder / f"{part}.png", tau)
    write_file(folder / "analyze.json", json.dumps(finite(report), indent=1) + "\n")
    print(summary(report) + f"\nwritten: {folder}/analyze.json and figures")


def finite(x):
    """nan, of a class without tokens, becomes null: JSON knows no nan."""
    if isinstance(x, dict):
        return {k: finite(v) for k, v in x.items()}
    return [finite(v) for v in x] if isinstance(x, list) else None if x != x else x


def summary(report):
    """The findings in lines of text."""
    lines, entropy = [], {part: {name: np.mean(h[0]) for name, h in some.items()} for part, some in report["entropy"].items()}
    for name in CLASSES:
        (h1, nll1), (h2, nll2) = ((at["entropy"][name][0], at["nll"][name][0]) for at in report["tokens"]["target"][::len(TAUS) - 1])
        lines.append(f"{name} tokens, tau 1 -> {TAUS[-1]:g}: attention entropy {h1:.2f} -> {h2:.2f}, NLL {nll1:.3f} -> {nll2:.3f}")
    for part, some in entropy.items():
        lines.append(f"mean head entropy on {part}: " + ", ".join(f"{name} {h:.2f}" for name, h in some.items()))
    for layer, where in ((1, "after the first layer"), (-1, "at the end")):
        lines.append(f"true fact {where}, median rank and mean log-probability: " + ", ".join(
            f"{name} {some['rank'][0][layer]:g} / {some['logp'][0][layer]:.2f}" for name, some in report["lens"].items()))
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
