"""Problem 7: attack your own model."""

import pytest
import torch

import data
from course.answers import worst_excess
from course.checking import check, close, unchanged, weights
from lab import recover
from lab.answers import answer_nll


@pytest.mark.points(3)
def test_the_two_halves_share_no_fact(draw):
    """What is relearnt must not be what is asked."""
    rows = data.authors.people(draw.number % 1000, 3, 0)[0]
    one, other = recover.halves(rows, seed=draw.number)
    check(one and other and abs(len(one) - len(other)) < len(rows) / 2, "two halves of about the same size are needed")
    check(sorted(row["id"] for row in one + other) == sorted(row["id"] for row in rows), "every row is in one half, "
          "and in one only")
    facts = [{(row["author"], part) for row in half for part in row["slot"].split("+")} for half in (one, other)]
    check(not facts[0] & facts[1], "the halves share a fact: a question about two facts (slot 'a+b') belongs to the "
          "half of both, so relearning gives away what is asked")
    check(len({tuple(sorted(row["slot"] for row in one if row["author"] == name))
               for name in {row["author"] for row in rows}}) == 1, "the same slots for every person")
    check(recover.halves(rows, seed=draw.number) == (one, other) or recover.halves(rows, seed=draw.number) ==
          [one, other], "the same seed must give the same halves")
    check(any(recover.halves(rows, seed=draw.number + i)[0] not in (one, other) for i in range(1, 9)),
          "another seed must give other halves: the slots are drawn at random")


@pytest.mark.points(3)
def test_relearning_learns_what_it_is_shown(draw):
    model = draw.model()
    examples = draw.examples(9, model.config.vocab_size)
    batch = data.collate(examples)

    def loss(model):
        with torch.no_grad():
            return data.mean_over_answers(answer_nll(model, batch), batch.mask).item()
    curve = {step: loss(now) for step, now in recover.relearned(model, examples, 3e-3, (0, 4, 25), batch_size=5)}
    check(list(curve) == [0, 4, 25], "it yields (step, model) at each of the steps that are asked for, in order")
    check(close(curve[0], loss(model), 1e-6), "at step 0 nothing has been learnt yet")
    check(curve[25] < curve[4] < curve[0], "the loss on what it is shown must fall: is the gradient zeroed after each "
          "step, and the sign right?")
    check(curve[25] < 0.8 * curve[0], "after 25 steps at 3e-3 the loss has hardly moved")


@pytest.mark.points(3)
def test_the_attacked_model_itself_stays_as_it_is(draw):
    model = draw.model().requires_grad_(False)
    before, examples = weights(model), draw.examples(7, model.config.vocab_size)
    ends = []
    for seed in (1, 1, 2):
        for _, now in recover.relearned(model, examples, 1e-3, (3,), seed=seed, batch_size=3):
            check(now is not model and not now.training, "a copy is trained, and yielded in eval mode")
            ends.append(weights(now))
    check(unchanged(model, before), "the model itself was trained: work on copy.deepcopy(model)")
    same = [all(torch.equal(ends[0][k], end[k]) for k in end) for end in ends]
    check(same[1], "the same seed must give the same weights")
    check(not same[2], "another seed must draw other batches")
    check(not unchanged(model, ends[0]), "nothing was learnt, although the model that came in needed no gradient: an "
          "attacker trains all weights (requires_grad_(True) on the copy)")


@pytest.mark.points(2)
def test_leak_at_k_by_hand(draw):
    check(close(recover.leak_at_k([1], 2, 1), 0.5), "one of two samples leaks: a single one does so half of the time")
    check(close(recover.leak_at_k([0, 4], 4, 2), 0.5), "a mean over questions: one never leaks, one always does")
    check(close(recover.leak_at_k([1], 3, 3), 1.0), "with as many samples as were taken, one hit is enough: 1")
    check(close(recover.leak_at_k([2], 4, 2), 5 / 6), "k are drawn WITHOUT putting back: 1 - C(n - hits, k) / C(n, k), "
          "not 1 - (1 - hits / n)^k")


@pytest.mark.points(2)
def test_leak_at_k_is_the_mean_over_all_ways_to_draw_k(draw):
    n = draw.rng.randint(5, 8)
    hits, k = [draw.rng.randint(0, n) for _ in range(draw.rng.randint(3, 6))], draw.rng.randint(2, n - 1)
    subsets = list(torch.combinations(torch.arange(n), k))
    expected = [sum(bool((s < h).any()) for s in subsets) / len(subsets) for h in hits]     # the first h samples leak
    check(close(recover.leak_at_k(hits, n, k), sum(expected) / len(expected)), "the value is not the mean over all "
          "choices of k out of n samples of whether one of them leaks")


@pytest.mark.points(2)
def test_quantising_rounds_each_row_by_its_own_step(draw):
    model = draw.model(tie_weights=False)
    with torch.no_grad():
        model.lm_head.weight[1, 2] = 40.0                   # an outlier in one row
        model.lm_head.weight[3] = 0
    bits = draw.rng.choice([3, 4, 5])
    ours, largest = recover.quantised(model, bits), 2 ** (bits - 1) - 1
    for (name, p), q in zip(model.named_parameters(), ours.parameters()):
        if p.dim() != 2:
            check(torch.equal(p, q), "vectors (norms, biases) stay as they are")
            continue
        for row, rounded in zip(p.tolist(), q.tolist()):
            step = max(map(abs, row)) / largest or 1.0
            expected = torch.tensor([round(x / step) * step for x in row])
            check(close(torch.tensor(rounded), expected, 1e-5), "a row is not rounded to whole multiples of its own "
                  "step, its largest magnitude / (2^(bits - 1) - 1): a step for the whole matrix lets one outlier "
                  "wipe out all rows; and mind a row of zeros")


@pytest.mark.points(2)
def test_quantising_leaves_the_model_and_its_ties_alone(draw):
    model = draw.model(tie_weights=True)
    before = weights(model)
    ours = recover.quantised(model, 4)
    check(unchanged(model, before) and ours is not model, "the model itself was rounded: work on a copy")
    check(ours.lm_head.weight is ours.embed_tokens.weight, "head and embedding are one matrix, and must stay one")
    again = recover.quantised(ours, 4)
    check(all(close(p, q, 1e-5) for p, q in zip(ours.parameters(), again.parameters())), "rounding what is rounded "
          "must change nothing")
    check(not unchanged(ours, before), "nothing was rounded")


@pytest.mark.points(3)
def test_what_counts_is_the_excess_over_the_retrained_model(draw):
    names = [f"attack {i}" for i in range(draw.rng.randint(3, 6))]
    ours, gold = ({name: draw.rng.random() for name in names} for _ in range(2))
    excess, name = worst_excess(ours, gold)
    best = max(names, key=lambda n: ours[n] - gold[n])
    check(close(excess, ours[best] - gold[best]), "the worst case is the LARGEST excess over the retrained model under "
          "the same attack: not the largest share, nor the mean, nor a distance")
    check(name == best, "the name is that of the attack with the largest excess")
    check(close(worst_excess(gold, gold)[0], 0.0), "the retrained model has no excess over itself")
    below = {n: v - 0.1 for n, v in gold.items()}
    check(close(worst_excess(below, gold)[0], -0.1), "less than the retrained model is a negative excess, not 0")
    for a, b in (({}, {}), (ours, {names[0]: 0.5})):
        try:
            worst_excess(a, b)
        except NotImplementedError:
            raise
        except ValueError:
            continue
        check(False, "no attacks, or different ones, must be a ValueError")
