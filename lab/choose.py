"""Which temperature and which heads: chosen by forward passes alone, before anything is trained.

Ours, not the paper's, which sets tau by hand. Both look at training phrasings of the forget questions only, so that the held-out
ones stay for the evaluation, and neither needs a retrained model. Both go by the facts in the answers; where the data names
none, by those that theta_0 itself shows to be facts, see lab/facts.py.
"""

import math
import random

import torch
import torch.nn.functional as F

import data
from common import UserError
from common.cli import layer_numbers, number
from lab.answers import answer_nll
from lab.facts import find_facts


def tau_flag(text):
    """An argparse type: a number above 0, or "auto"."""
    return text if text == "auto" else number(float, 0, math.inf, "a number above 0, nor auto", open_end=True)(text)


def smoothing(model, tokenizer, forget, rows, tau, layers, heads, phrasings=None):
    """--tau, --layers, --heads as flags -> (tau: a number or a table, layers) as model.attention_scales takes them.

    forget: the rows to be forgotten, rows: the DataSet they are of. Facts that the data does not name are found first."""
    forget = [row | {key: row[key][:phrasings] for key in ("questions", "answers")} for row in forget]
    if "auto" in (tau, heads) and not all(row["facts"] for row in forget):
        forget = named(find_facts(model, tokenizer, forget, rows.retain))
    layers = layer_numbers(layers, model.config.n_layer)
    if tau == "auto":
        strangers = [row for row in rows.holdout if row["facts"]] or never_met(forget, rows.retain)
        tau = tau_auto(model, tokenizer, forget, strangers, layers)
    model.attention_scales(tau, layers)                     # refuses a bad tau or layers before any work
    if heads == "all" or tau == 1:
        return tau, layers
    return choose_heads(model, tokenizer, forget, tau, layers), None


def named(rows):
    """Rows whose facts were found -> those with facts and a person, the facts under their usual key. UserError without any."""
    some = [row | {"facts": row["facts"] or row["found"]} for row in rows]
    some = [row for row in some if row["facts"] and row["author"]]
    print(f"this data names no facts; by the rule of lab/facts.py they were found in {len(some)} of {len(rows)} rows", flush=True)
    if not some:
        raise UserError("this data names no facts, and none were found (does the model know these people?); --heads=all and a "
                        "number for --tau need none")
    return some


# ------------------------------------------------------------------------------------------------- heads=auto
@torch.no_grad()
def choose_heads(model, tokenizer, rows, tau, layers=None, price=15.0, at_once=3):
    """Selective smoothing: which heads to smooth, found by forward passes alone -> (n_layer, n_head) table of tau or 1.

    Greedy: again and again the heads whose smoothing adds most to the NLL of fact tokens, less `price` times what it adds to
    that of function and name tokens, until none is worth its price. Up to a quarter of them heads that cost next to nothing are taken
    too, for in a model that is very sure of its facts none shows by itself what several do; together they must be worth it. It looks at one training phrasing of each (of at most 128)
    forget question; held-out phrasings are left for the evaluation. Ours, not the paper's. Raises ValueError without facts.
    """
    rows = [row for row in rows if row["facts"]][:128]
    if not rows:
        raise UserError("heads are chosen by the facts in the answers, and this data names none; smooth them all")
    pairs = [(row["questions"][i % len(row["questions"])], row["answers"][i % len(row["answers"])]) for i, row in enumerate(rows)]
    batch = data.collate([data.encode(tokenizer, q, a) for q, a in pairs], model.device)
    classes = torch.tensor([kind for row, (_, answer) in zip(rows, pairs)
                            for kind in data.token_classes(tokenizer, answer, row["facts"], row["author"])])

    first = min(layers or [0])                              # nothing is smoothed below it: what comes out of there is computed once
    below = first, model.hidden(batch.idx, n_layers=first)

    def nlls(table):
        nll = answer_nll(model, batch, tau=table, below=below)[batch.mask].cpu()             # row after row, as classes
        return [nll[classes == kind].mean().item() if (classes == kind).any() else 0.0 for kind in (data.FACT, data.FUNCTION, data.NAME)]

    c = model.config
    table, free = torch.ones(c.n_layer, c.n_head), [(i, h) for i in layers or range(c.n_layer) for h in range(c.n_head)]
    before = now = nlls(table)
    while free:
        worth = []
        for head in free:
            table[head] = tau
            fact, function, name = (new - old for new, old in zip(nlls(table), now))
            worth.append((fact - price * (function + name), head))
            table[head] = 1
        top = sorted(worth, reverse=True)[:at_once]
        best = [head for value, head in top if value > 0]
        if not best and (table > 1).sum() < table.numel() // 4:
            best = [head for value, head in top if 0 < abs(value) < 0.05]
        if not best:
            break
        for head in best:
            table[head] = tau
            free.remove(head)
        now = nlls(table)
    print(f"smoothing {int((table > 1).sum())} of {table.numel()} heads: NLL of " + ", ".join(
        f"{kind} tokens {a:.2f} -> {b:.2f}" for kind, a, b in zip(("fact", "function", "name"), before, now)), flush=True)
    fact, function, name = (new - old for new, old in zip(now, before))
    if fact <= price * (function + name):
        raise UserError(f"at tau={tau} no head is worth smoothing; --heads=all smooths them all")
    return table.tolist()


# ------------------------------------------------------------------------------------------------- tau=auto
TAUS = [round(2 ** (k / 2), 2) for k in range(17)]          # 1, 1.41, 2, ... 256: beyond, attention is uniform all but exactly


@torch.no_grad()
def class_nll(model, tokenizer, rows, batch_size=64, **smoothing):
    """Mean NLL, in nats a token, of the function, fact and name tokens of the rows' training phrasings -> [3 numbers].

    nan for a class without tokens; smoothing: tau, layers."""
    pairs = [(data.encode(tokenizer, q, a), data.token_classes(tokenizer, a, row["facts"], row["author"]))
             for row in rows for q, a in zip(row["questions"], row["answers"])]
    pairs.sort(key=lambda pair: len(pair[0]))
    total, count = torch.zeros(3), torch.zeros(3)
    for i in range(0, len(pairs), batch_size):
        examples, classes = zip(*pairs[i:i + batch_size])
        batch = data.collate(examples, model.device)
        nll = answer_nll(model, batch, **smoothing)[batch.mask].cpu()       # row after row, as the classes below
        kinds = F.one_hot(torch.tensor([kind for some in classes for kind in some]), 3).to(nll)
        total, count = total + nll @ kinds, count + kinds.sum(0)
    return (total / count).tolist()


def never_met(rows, others):
    """The rows asked about people who do not exist: each row's author becomes the first name and surname of two others.

    For data without held-out people. others: more rows, whose authors' names are drawn from as well."""
    names = list(dict.fromkeys(row["author"] for row in rows + others if row["author"].strip()))
    made = sorted({f"{a.split()[0]} {b.split()[-1]}" for a in names for b in names} - set(names))
    if not made or not all(row["author"].strip() for row in rows):
        raise UserError("--tau=auto needs people the model never met: a holdout.json, or authors with first names and surnames "
                        "to swap")
    rng, swapped = random.Random("never met"), []
    for row in rows:
        name = rng.choice(made)
        texts = {key: [text.replace(row["author"], name) for text in row[key]] for key in ("questions", "answers")}
        swapped.append(row | {"author": name} | texts)
    return swapped


def tau_auto(model, tokenizer, forget, strangers, layers=None, max_rows=200):
    """The smallest tau in TAUS whose teacher knows as little of the forget facts as the model knows of people it never met.

    Smallest, because more smoothing costs more function tokens. If none gets there, the tau beyond which fact NLL gains less
    than 2% a doubling. Forward passes over training phrasings only; no retrained model. forget, strangers: rows with
    facts (the first max_rows of each are used). Prints the curve it decides from. Raises UserError for rows without facts.
    """
    forget, strangers = forget[:max_rows], strangers[:max_rows]
    reference = class_nll(model, tokenizer, strangers)[data.FACT]
    print(f"tau=auto: fact NLL of people the model never met {reference:.3f}\n     tau  fact NLL  function  name", flush=True)
    curve = []                                              # per tau: NLL of function, fact and name tokens
    for tau in TAUS:
        curve.append(nll := class_nll(model, tokenizer, forget, tau=tau, layers=layers))
        if not (math.isfinite(reference) and math.isfinite(nll[data.FACT])):
            raise UserError("--tau=auto needs rows whose answers state facts (key facts)")
        print("{:8g}  {:8.3f}  {:8.3f}  {:.3f}".format(tau, nll[data.FACT], nll[data.FUNCTION], nll[data.NAME]), flush=True)
        if nll[data.FACT] >= reference:
            chosen, why = len(curve) - 1, "the smallest that knows as little of the forget facts"
            break
    else:
        facts = [nll[data.FACT] for nll in curve]           # TAUS[k + 2] is twice TAUS[k]
        chosen = max([k + 1 for k in range(len(TAUS) - 2) if facts[k + 2] >= 1.02 * facts[k]], default=0)
        why = f"no tau reaches {reference:.3f} in these layers, and beyond this one fact NLL gains less than 2% a doubling"
    print(f"tau=auto: {TAUS[chosen]:g}; {why}", flush=True)
    cost = max(curve[chosen][kind] - curve[0][kind] for kind in (data.FUNCTION, data.NAME))
    if cost > 0.5:
        print(f"tau=auto: mind that this teacher's sentences break (function or name tokens cost {cost:.1f} nats more): smooth "
              "fewer layers", flush=True)
    return TAUS[chosen]
