"""--heads=auto: which heads it takes for what they are worth, and that it looks at nothing it should not see."""

import types

import pytest
import torch

import data
from lab import choose
from lab.answers import answer_nll


def nll_by_heads(classes, fact, other):
    """In place of a model: fact and other say, of the set of smoothed heads, the NLL of fact tokens and of all others.

    classes: those of the tokens of each answer."""
    def nll(model, batch, tau, below):
        assert (tau[:below[0]] == 1).all()                  # what is not run again is not smoothed
        smoothed = {(i, h) for i, row in enumerate(tau) for h, t in enumerate(row) if t > 1}
        value = torch.full(batch.mask.shape, float(other(smoothed)))
        for i, kinds in enumerate(classes):
            value[i, :len(kinds)][torch.tensor(kinds) == data.FACT] = float(fact(smoothed))
        return value
    return nll


def toy(monkeypatch, tokenizer, rows, fact, other):
    answers = [(row["answers"][i % 5], row["facts"], row["author"]) for i, row in enumerate(rows)]
    classes = [data.token_classes(tokenizer, *answer) for answer in answers]
    monkeypatch.setattr(choose, "answer_nll", nll_by_heads(classes, fact, other))
    return rows


def test_heads_are_chosen_for_the_facts_they_hold_and_not_for_what_they_cost(model, tokenizer, authors, monkeypatch):
    """Each fact head smoothed adds 1 nat to fact tokens, each costly one 1 nat to all others."""
    fact_heads, costly_heads = {(0, 1), (1, 0), (1, 3)}, {(0, 0), (1, 3)}
    rows = toy(monkeypatch, tokenizer, authors[0][:20], lambda smoothed: len(smoothed & fact_heads),
               lambda smoothed: len(smoothed & costly_heads))
    table = choose.choose_heads(model, tokenizer, rows, 8.0)
    assert table == [[1, 8, 1, 1], [8, 1, 1, 1]]            # (1, 3) holds facts, but costs more than it is worth
    assert choose.choose_heads(model, tokenizer, rows, 8.0, layers=[1, 0]) == table
    assert choose.choose_heads(model, tokenizer, rows, 8.0, price=0.1) == [[1, 8, 1, 1], [8, 1, 1, 8]]
    assert choose.choose_heads(model, tokenizer, rows, 8.0, layers=[1], at_once=1) == [[1, 1, 1, 1], [8, 1, 1, 1]]


def test_a_head_of_negative_worth_is_never_taken_however_little_it_costs(model, tokenizer, authors, monkeypatch):
    """Head (0, 1) is worth 1 nat; every other takes 0.02 nats from the facts, and no other token feels it."""
    rows = toy(monkeypatch, tokenizer, authors[0][:20],
               lambda smoothed: 5 + ((0, 1) in smoothed) - 0.02 * len(smoothed - {(0, 1)}), lambda smoothed: 0)
    assert choose.choose_heads(model, tokenizer, rows, 8.0) == [[1, 8, 1, 1], [1, 1, 1, 1]]
    assert choose.choose_heads(model, tokenizer, rows, 8.0, at_once=1) == [[1, 8, 1, 1], [1, 1, 1, 1]]


def test_a_round_takes_the_best_heads_and_the_next_goes_on_from_there(model, tokenizer, authors, monkeypatch):
    """Of (0, 0), worth 3, and (0, 1), worth 2, each makes the other useless: a round of one takes the better."""
    gains = {(0, 0): 3, (0, 1): 2, (1, 2): 1}
    fact = lambda smoothed: max([gains[head] for head in smoothed & {(0, 0), (0, 1)}], default=0) + ((1, 2) in smoothed)
    rows = toy(monkeypatch, tokenizer, authors[0][:20], fact, lambda smoothed: 0)
    assert choose.choose_heads(model, tokenizer, rows, 8.0, at_once=1) == [[8, 1, 1, 1], [1, 1, 8, 1]]
    assert choose.choose_heads(model, tokenizer, rows, 8.0, at_once=2) == [[8, 8, 1, 1], [1, 1, 8, 1]]


def test_heads_worth_something_alone_and_nothing_together_are_refused(model, tokenizer, authors, monkeypatch):
    rows = toy(monkeypatch, tokenizer, authors[0][:20], lambda smoothed: len(smoothed) == 1, lambda smoothed: 0)
    with pytest.raises(ValueError, match="at tau=8.0 no head is worth smoothing; --heads=all"):
        choose.choose_heads(model, tokenizer, rows, 8.0)
    assert sum(map(sum, choose.choose_heads(model, tokenizer, rows, 8.0, at_once=1))) == 8 + 7


def test_the_worth_of_heads_by_hand():
    """Facts 2 nats up, function tokens 0.1, name tokens 0.05 down, at a price of 15: 2 - 15 * 0.05."""
    assert choose.worth([1.0, 0.5, 0.25], [3.0, 0.6, 0.2], 15.0) == pytest.approx(1.25)


def test_what_is_weighed_is_the_mean_nll_of_each_class_over_one_phrasing_a_row(model, tokenizer, authors):
    """Against the plain loop over rows, smoothed in the second layer alone, with the first computed once."""
    rows, table = authors[0][:7], torch.tensor([[1.0] * 4, [8.0, 1.0, 8.0, 1.0]])
    by_class = {data.FACT: [], data.FUNCTION: [], data.NAME: []}
    for i, row in enumerate(rows):
        question, answer = row["questions"][i % 5], row["answers"][i % 5]
        [nll] = answer_nll(model, data.collate([data.encode(tokenizer, question, answer)]), tau=table).tolist()
        for x, kind in zip(nll, data.token_classes(tokenizer, answer, row["facts"], row["author"]), strict=True):
            by_class[kind].append(x)
    expected = [sum(x) / len(x) for x in by_class.values()]
    with torch.no_grad():
        assert choose.nll_of_heads(model, tokenizer, rows, 1)(table) == pytest.approx(expected, abs=1e-4)
        nobody = [row | {"author": ""} for row in rows]
        assert choose.nll_of_heads(model, tokenizer, nobody, 0)(table)[2] == 0.0            # a class without tokens


def test_heads_are_chosen_without_the_held_out_phrasings(model, tokenizer, authors, monkeypatch):
    seen, encode = [], data.encode
    monkeypatch.setattr(data, "encode", lambda t, q, a: seen.append((q, a)) or encode(t, q, a))
    rows = authors[0]
    with torch.no_grad():
        model.lm_head.weight.mul_(3)
    choose.choose_heads(model, tokenizer, rows, 8.0, price=0.0)
    assert len(seen) == choose.MAX_ROWS == 128 < len(rows)
    assert all(q in row["questions"] and a in row["answers"] for (q, a), row in zip(seen, rows))
    assert len({row["questions"].index(q) for (q, _), row in zip(seen, rows)}) == 5         # each phrasing has its turn


def test_heads_cannot_be_chosen_without_facts_or_worth(model, tokenizer, authors, monkeypatch):
    with pytest.raises(ValueError, match="this data names none"):
        choose.choose_heads(model, tokenizer, [authors[0][0] | {"facts": []}], 8.0)
    rows = toy(monkeypatch, tokenizer, authors[0][:20], lambda smoothed: 0, lambda smoothed: 0)
    with pytest.raises(ValueError, match="no head is worth smoothing"):
        choose.choose_heads(model, tokenizer, rows, 8.0)


# ------------------------------------------------------------------------------------------ --tau, --layers, --heads
def test_flags_become_a_tau_and_layers_or_a_table(model, tokenizer, authors, monkeypatch):
    rows, given = authors[0][:20], []
    dataset = types.SimpleNamespace(retain=authors[0][20:], holdout=authors[1])
    monkeypatch.setattr(choose, "choose_heads", lambda *args: given.append(args[2:]) or "a table")
    smoothing = lambda tau, layers, heads: choose.smoothing(model, tokenizer, rows, dataset, tau, layers, heads)
    assert smoothing(4.0, "all", "all") == (4.0, None) and smoothing(4.0, "1-", "all") == (4.0, [1])
    assert smoothing(1.0, "1", "auto") == (1.0, [1]) and given == []                        # nothing to smooth
    assert smoothing(4.0, "1", "auto") == ("a table", None) and given == [(rows, 4.0, [1])]
    with pytest.raises(ValueError, match="layers 0 to 1"):
        smoothing(4.0, "2", "auto")
    assert len(given) == 1


def test_only_the_phrasings_that_are_trained_on_choose_heads_and_tau(model, tokenizer, authors, monkeypatch):
    rows, seen = authors[0][:20], []
    dataset = types.SimpleNamespace(retain=authors[0][20:], holdout=authors[1])
    monkeypatch.setattr(choose, "choose_heads", lambda model, tokenizer, rows, tau, layers: seen.append(rows))
    monkeypatch.setattr(choose, "tau_auto", lambda model, tokenizer, rows, *_, **kw: seen.append(rows) or 4.0)
    choose.smoothing(model, tokenizer, rows, dataset, "auto", "all", "auto", phrasings=2)
    for cut in seen:
        assert [row["questions"] for row in cut] == [row["questions"][:2] for row in rows]
        assert [row["answers"] for row in cut] == [row["answers"][:2] for row in rows]
    choose.smoothing(model, tokenizer, rows, dataset, "auto", "all", "auto")
    assert len(seen) == 4 and seen[2] == seen[3] == rows and len(rows[0]["questions"]) == 5
