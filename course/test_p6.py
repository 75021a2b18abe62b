"""Problem 6: tau and heads from forward passes alone."""

import math

import pytest
import torch

import data
from course.checking import check, close, memorised, small_world, unchanged, weights
from lab import choose

FACT, FUNCTION, NAME = data.FACT, data.FUNCTION, data.NAME


@pytest.mark.points(1)
def test_worth_is_what_facts_gain_less_the_price_of_the_rest(draw):
    before, after = draw.normal(3).tolist(), draw.normal(3).tolist()
    price = 1 + draw.rng.random()
    fact, function, name = (b - a for a, b in zip(before, after))
    ours = choose.worth(before, after, price)
    check(not close(ours, fact + price * (function + name)), "what function and name tokens lose counts AGAINST "
          "smoothing")
    check(not close(ours, price * fact - (function + name)), "the price is of a nat on function and name tokens")
    check(close(ours, fact - price * (function + name)), "worth is fact - price (function + name), each after less "
          "before, in the order fact, function, name")


def on_curves(monkeypatch, fact, function=lambda tau: 0.1, name=lambda tau: 0.05, strangers=99.0):
    """tau_auto on made-up curves tau -> NLL; strangers: the fact NLL of people the model never met. -> (tau, worths)"""
    seen = []

    def class_nll(model, tokenizer, rows, batch_size=64, tau=1.0, layers=None):
        seen.append(tau)
        nll = [0.0] * 3
        nll[FACT] = strangers if rows[0]["author"] == "stranger" else fact(tau)
        nll[FUNCTION], nll[NAME] = function(tau), name(tau)
        return nll
    monkeypatch.setattr(choose, "class_nll", class_nll)
    people = [[{"author": who, "facts": ["x"]}] * 3 for who in ("forgotten", "stranger")]
    tau = choose.tau_auto(None, None, *people)
    check(isinstance(tau, (int, float)) and tau >= 1, "a number of at least 1 is needed")
    check(len(seen) > 1, "no curve was looked at: the NLLs come from choose.class_nll(model, tokenizer, rows, tau=...)")

    def worth(tau):
        return fact(tau) - fact(1) - choose.TAU_PRICE * (function(tau) - function(1) + name(tau) - name(1))
    return tau, {t: worth(t) for t in choose.TAUS} | {tau: worth(tau)}


@pytest.mark.points(3)
def test_the_tau_that_forgets_most_for_what_it_costs(draw, monkeypatch):
    """Facts gain a log tau, function words lose beyond a point."""
    for _ in range(4):
        gain, limit, slope = 0.5 + draw.rng.random(), draw.rng.choice([3, 5, 8, 20, 50]), 0.2 + draw.rng.random()
        tau, worths = on_curves(monkeypatch, lambda tau: 0.05 + gain * math.log(tau),
                                lambda tau: 0.1 + slope * max(0, tau - limit))
        check(worths[tau] >= 0.95 * max(worths.values()), "the tau that is chosen is worth less than 95% of the best: "
              "what smoothing adds to fact tokens, less what it adds to function and name tokens")


@pytest.mark.points(2)
def test_names_cost_as_function_words_do(draw, monkeypatch):
    limit = draw.rng.choice([4, 6, 11])
    tau, worths = on_curves(monkeypatch, lambda tau: math.log(tau), name=lambda tau: max(0.0, tau - limit))
    check(worths[tau] >= 0.95 * max(worths.values()), "names are copied from the question: a teacher that cannot copy "
          "them is broken, so they count against tau")


@pytest.mark.points(3)
def test_none_beyond_the_tau_that_knows_as_little_as_of_strangers(draw, monkeypatch):
    """The retrained model is not there to ask; people whom the model never met are."""
    k = draw.rng.randint(3, 10)
    tau, _ = on_curves(monkeypatch, math.log, strangers=math.log(choose.TAUS[k]) - 1e-6)
    check(tau <= choose.TAUS[k], "the teacher goes beyond what the model knows of people it never met: forgetting more "
          "than a retrained model is not the aim")
    check(tau >= choose.TAUS[k - 1], "a larger tau is worth more, and still knows more than of strangers")
    tau, _ = on_curves(monkeypatch, lambda tau: 3.0, strangers=3.0)
    check(tau == 1, "where facts are as unlikely as a stranger's there is nothing to smooth: tau 1")


def toy(monkeypatch, draw, fact, other):
    """choose_heads where fact and other say, of the set of smoothed heads, the NLL of fact tokens and of the rest."""
    tokenizer, rows, *_ = small_world(draw.world)
    model = draw.model(vocab_size=tokenizer.vocab_size, block_size=96, n_layer=3)
    answers = [(row["answers"][i % len(row["answers"])], row["facts"], row["author"]) for i, row in enumerate(rows)]
    classes = [data.token_classes(tokenizer, *answer) for answer in answers]

    def answer_nll(model, batch, tau, **kw):
        table = torch.as_tensor(tau)
        smoothed = {(i, h) for i, row in enumerate(table.tolist()) for h, t in enumerate(row) if t > 1}
        nll = torch.full(batch.mask.shape, float(other(smoothed)))
        for i, kinds in enumerate(classes):
            nll[i, :len(kinds)][torch.tensor(kinds) == FACT] = float(fact(smoothed))
        return nll
    monkeypatch.setattr(choose, "answer_nll", answer_nll)
    table = torch.as_tensor(choose.choose_heads(model, tokenizer, rows, 8.0))
    check(table.shape == (3, 4) and set(table.flatten().tolist()) <= {1.0, 8.0}, "a table layers x heads of tau or 1 "
          "is needed")
    return {(i, h) for i in range(3) for h in range(4) if table[i, h] == 8}


@pytest.mark.points(2)
def test_heads_are_taken_for_the_facts_they_hold_and_not_for_what_they_cost(draw, monkeypatch):
    heads = draw.rng.sample([(i, h) for i in range(3) for h in range(4)], 6)
    holds, dear = set(heads[:4]), set(heads[3:])            # heads[3] holds facts, and costs more than it is worth
    taken = toy(monkeypatch, draw, lambda smoothed: len(smoothed & holds), lambda smoothed: len(smoothed & dear))
    check(not taken & dear, "a head was taken that breaks sentences: worth() weighs that at PRICE")
    check(not taken - holds, "a head was taken that is worth nothing")
    check(taken == holds - dear, "a head that holds facts and costs nothing was left out")


@pytest.mark.points(2)
def test_heads_are_tried_beside_those_that_were_taken(draw, monkeypatch):
    """Two heads are useless alone and worth much beside a third; a fourth takes back what the third gives."""
    first, second, third = draw.rng.sample([(i, h) for i in range(3) for h in range(4)], 3)
    taken = toy(monkeypatch, draw, lambda s: (first in s) + 2 * ({first, second} <= s) - 0.01 * (third in s),
                lambda s: 0)
    check(first in taken, "the head that is worth something alone was left out")
    check(second in taken, "a head that is worth something only beside another was not found: try every head again "
          "beside those already taken")
    check(third not in taken, "a head of negative worth was taken")


@pytest.mark.points(2)
def test_on_a_draw_that_nobody_has_seen(draw):
    """A model that has learnt a few authors by heart: is the tau that is chosen worth it?"""
    seed = draw.world
    tokenizer, forget, retain, strangers = small_world(seed)
    model = memorised(tokenizer, forget + retain, seed, steps=110)
    before, bare = weights(model), ("questions", "answers", "facts", "author")
    rows = [[{key: row[key][:1] if key in bare[:2] else row[key] for key in bare} for row in part]
            for part in (forget, strangers)]                # neither held-out phrasings nor wrong answers are there
    tau = choose.tau_auto(model, tokenizer, *rows)
    check(unchanged(model, before) and all(p.grad is None for p in model.parameters()), "forward passes alone: the "
          "model was trained")

    def nlls(tau):
        function, fact, name = choose.class_nll(model, tokenizer, rows[0], tau=tau)
        return fact, function, name
    start = nlls(1.0)
    worths = {t: choose.worth(start, nlls(t), choose.TAU_PRICE) for t in {*choose.TAUS[:9], tau}}
    check(worths[tau] >= 0.9 * max(worths.values()) - 0.02, "on a draw that you have not seen, the tau you choose "
          "is worth less than nine tenths of the best")
