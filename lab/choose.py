"""Which temperature and which heads: chosen by forward passes, before anything is trained (but with --heal the teacher
of each temperature).

Ours, not the paper's, which sets tau by hand. Both look at training phrasings of the forget questions only, so that
the held-out ones stay for the evaluation, and neither needs a retrained model. Both go by the facts in the answers.
Where the data names none, lab/facts.py finds those that theta_0 itself shows to be facts.
"""

import math

import torch
import torch.nn.functional as F

import data
from common import UserError
from common.cli import layer_numbers, number
from lab.answers import answer_nll
from lab.facts import find_facts


def tau_flag(text):
    """An argparse type: a number above 0, or "auto"."""
    return text if text == "auto" else number(float, 1e-3, 1e9, "a number above 0, nor auto (0.001 to 1e9)")(text)


def smoothing(model, tokenizer, forget, rows, tau, layers, heads, phrasings=None, healer=None):
    """--tau, --layers, --heads as flags -> (tau: a number or a table, layers) as model.attention_scales takes them.

    forget: the rows of the forget set. rows: the DataSet they are of. phrasings: look at the first so many of each
    question, those that are trained on (None: all). Facts that the data does not name are found first. healer: see
    asu.unlearn."""
    forget = [row | {key: row[key][:phrasings] for key in ("questions", "answers")} for row in forget]
    if "auto" in (tau, heads) and not all(row["facts"] for row in forget):
        forget = named(find_facts(model, tokenizer, forget, rows.retain))
    layers = layer_numbers(layers, model.config.n_layer)
    if tau == "auto":
        strangers = [row for row in rows.holdout if row["facts"]] or data.never_met(forget, rows.retain)
        tau = tau_auto(model, tokenizer, forget, strangers, layers, healer=healer)
    model.attention_scales(tau, layers)                     # refuses a bad tau or layers before any work
    if heads == "all" or tau == 1:
        return tau, layers
    return choose_heads(model, tokenizer, forget, tau, layers), None


def named(rows):
    """Rows whose facts were found -> those with facts and a person, the facts under their usual key.

    Raises UserError where there are none."""
    usable = []
    for row in rows:
        facts = row["facts"] or row["found"]
        if facts and row["author"]:
            usable.append(row | {"facts": facts})
    print(f"this data names no facts; by the rule of lab/facts.py they were found in {len(usable)} of {len(rows)} rows",
          flush=True)
    if not usable:
        raise UserError("this data names no facts, and none were found (does the model know these people?); "
                        "--heads=all and a number for --tau need none")
    return usable


# ------------------------------------------------------------------------------------------------- heads=auto
PRICE = 15.0        # nats that fact tokens must gain for each nat that function and name tokens do, or sentences break
AT_ONCE = 3         # heads taken in a round: each round tries every head that is left, so few rounds save time
MAX_ROWS = 128      # forget questions looked at, all in one batch


@torch.no_grad()
def choose_heads(model, tokenizer, rows, tau, layers=None, price=PRICE, at_once=AT_ONCE):
    """Selective smoothing: which heads to smooth, found by forward passes alone -> (n_layer, n_head) table of tau or 1.

    Greedy: each round tries every head that is left, beside those taken before, and takes the best `at_once` of those
    that are worth more than 0 (see worth). The search ends when there are none, so no head of negative worth is ever
    taken. Together they must be worth more than 0, too. It looks at one training phrasing of each forget question, at
    most MAX_ROWS of them. Raises UserError without facts or without a head to take. Ours, not the paper's.
    """
    rows = [row for row in rows if row["facts"]][:MAX_ROWS]
    if not rows:
        raise UserError("heads are chosen by the facts in the answers, and this data names none; smooth them all")
    c = model.config
    free = [(i, h) for i in layers or range(c.n_layer) for h in range(c.n_head)]
    table = torch.ones(c.n_layer, c.n_head)
    nlls = nll_of_heads(model, tokenizer, rows, min(layers or [0]))

    start = now = nlls(table)
    while free:
        values = []
        for head in free:
            table[head] = tau
            values.append((worth(now, nlls(table), price), head))
            table[head] = 1
        taken = [head for value, head in sorted(values, reverse=True)[:at_once] if value > 0]
        if not taken:
            break
        for head in taken:
            table[head] = tau
            free.remove(head)
        now = nlls(table)
    changes = [f"{kind} tokens {a:.2f} -> {b:.2f}" for kind, a, b in zip(("fact", "function", "name"), start, now)]
    print(f"smoothing {int((table != 1).sum())} of {table.numel()} heads: NLL of {', '.join(changes)}", flush=True)
    if worth(start, now, price) <= 0:
        raise UserError(f"at tau={tau} no head is worth smoothing; --heads=all smooths them all")
    return table.tolist()


def worth(before, after, price):
    """What smoothing is worth, in nats: what fact tokens gain, less the price of what function and name tokens do.

    before, after: NLLs [of fact, function, name tokens], as nll_of_heads gives them."""
    fact, function, name = (b - a for a, b in zip(before, after))
    return fact - price * (function + name)


def nll_of_heads(model, tokenizer, rows, first):
    """-> a function: table of tau -> mean NLLs [of fact, function, name tokens] in nats; 0 for a class without any.

    Row i is asked in its phrasing i, and from the first again after the last. Nothing below layer `first` is ever
    smoothed, so what comes out of there is computed once."""
    examples, classes = [], []
    for i, row in enumerate(rows):
        question, answer = row["questions"][i % len(row["questions"])], row["answers"][i % len(row["answers"])]
        examples.append(data.encode(tokenizer, question, answer))
        classes += data.token_classes(tokenizer, answer, row["facts"], row["author"])
    batch, classes = data.collate(examples, model.device), torch.tensor(classes)
    below = first, model.hidden(batch.idx, n_layers=first)

    def nlls(table):
        nll = answer_nll(model, batch, tau=table, below=below)[batch.mask].cpu()    # row after row, as classes
        means = []
        for kind in (data.FACT, data.FUNCTION, data.NAME):
            of_kind = nll[classes == kind]
            means.append(of_kind.mean().item() if len(of_kind) else 0.0)
        return means
    return nlls


# ------------------------------------------------------------------------------------------------- tau=auto
TAUS = [round(2 ** (k / 2), 2) for k in range(17)]          # 1, 1.41, 2, ... 256: attention is all but uniform beyond
TAU_PRICE = 1.0     # of a nat on function and name tokens, in nats on fact tokens; of a healed teacher PRICE
NEARLY = 0.99       # of the best worth: a smaller tau that is worth so much is preferred
BREAKS = 0.5        # nats more on function or name tokens that call for a warning


@torch.no_grad()
def class_nll(model, tokenizer, rows, batch_size=64, **smoothing):
    """Mean NLL, in nats a token, of the function, fact and name tokens of the rows' training phrasings -> [3 numbers].

    nan for a class without tokens; smoothing: tau, layers."""
    examples, classes = [], []
    for row in rows:
        for question, answer in zip(row["questions"], row["answers"]):
            examples.append(data.encode(tokenizer, question, answer))
            classes.append(data.token_classes(tokenizer, answer, row["facts"], row["author"]))
    total, count = torch.zeros(3), torch.zeros(3)
    for numbers, items in data.by_length(examples, batch_size):
        batch = data.collate(items, model.device)
        nll = answer_nll(model, batch, **smoothing)[batch.mask].cpu()       # row after row, as the classes below
        kinds = F.one_hot(torch.tensor([kind for i in numbers for kind in classes[i]]), 3).to(nll)
        total, count = total + nll @ kinds, count + kinds.sum(0)
    return (total / count).tolist()


def tau_auto(model, tokenizer, forget, strangers, layers=None, max_rows=200, healer=None):
    """The tau in TAUS whose teacher forgets most for what it costs: worth = what smoothing adds to the NLL of fact
    tokens less what it adds to that of function and name tokens. The smallest within 1% of the best is taken, and
    none beyond the first whose teacher knows as little of the forget facts as the model knows of people it never met.

    From training phrasings alone; no retrained model. forget, strangers: rows with facts (the first
    max_rows of each are used). healer: see asu.unlearn; every second of TAUS is tried then, because each takes some
    training. Healed teachers know about equally little at every tau, so words that are still broken decide: they
    cost PRICE, as with heads. Prints the curve it decides from. Raises UserError for rows without facts.
    """
    forget, strangers = forget[:max_rows], strangers[:max_rows]
    reference = class_nll(model, tokenizer, strangers)[data.FACT]
    print(f"tau=auto: fact NLL of people the model never met {reference:.3f}", flush=True)
    print(f"{'tau':>8}{'fact NLL':>10}{'function':>10}{'name':>6}", flush=True)
    curve, taus = [], TAUS[::2] if healer else TAUS         # per tau: NLL of fact, function and name tokens
    for tau in taus:
        with torch.enable_grad():
            teacher = healer(model, tau=tau, layers=layers) if healer and tau != 1 else model
        function, fact, name = class_nll(teacher, tokenizer, forget, tau=tau, layers=layers)
        if not (math.isfinite(reference) and math.isfinite(fact)):
            raise UserError("--tau=auto needs rows whose answers state facts (key facts)")
        curve.append([0.0 if math.isnan(nll) else nll for nll in (fact, function, name)])
        print(f"{tau:8g}{fact:10.3f}{function:10.3f}{name:7.3f}", flush=True)
        if fact >= reference:
            break
    worths = [worth(curve[0], nlls, PRICE if healer else TAU_PRICE) for nlls in curve]
    chosen = next(k for k, value in enumerate(worths) if value >= NEARLY * max(worths))
    more = worth(curve[0], curve[chosen], 1.0)
    print(f"tau=auto: {taus[chosen]:g}, which adds {more:.2f} nats more to fact tokens than to the others", flush=True)
    cost = max(after - before for before, after in zip(curve[0][1:], curve[chosen][1:]))
    if cost > BREAKS:
        print("tau=auto: mind that this teacher's sentences break (function or name tokens cost "
              f"{cost:.1f} nats more): smooth fewer layers", flush=True)
    return taus[chosen]
