"""Problem 4: NPO, SimNPO, WGA and CE-U from their formulas."""

import math

import pytest
import torch

import baselines
from course.checking import check, close, gradient


def sums(draw):
    """s, s_ref (B,), and the mask of their answers."""
    B, T = draw.sizes(2, 4, 12)
    return -2 * draw.normal(B).abs(), -2 * draw.normal(B).abs(), draw.mask(B, T)


def tokens(draw):
    """z (B, A, V), target and mask (B, A), no two sizes equal."""
    B, A, V = draw.sizes(3, 4, 12)
    target = torch.randint(V, (B, A), generator=draw.generator)
    return 2 * draw.normal(B, A, V), target, draw.mask(B, A)


def true(z, target):
    """-log p(y_t), (B, A)"""
    return -z.log_softmax(-1).gather(-1, target[..., None])[..., 0]


def mean(values, mask):
    """Over each answer's tokens, then over answers, by hand."""
    rows = [sum(v for v, m in zip(row, seen) if m) / int(seen.sum()) for row, seen in zip(values, mask)]
    return sum(rows) / len(rows)


@pytest.mark.points(1.5)
def test_npo_is_its_formula(draw):
    s, ref, _ = sums(draw)
    for beta in (0.1, 0.1 + draw.rng.random()):
        def formula(x):
            return sum(2 / beta * math.log1p(math.exp(beta * float(v))) for v in x) / len(x)
        ours = baselines.npo(s, ref, beta=beta)
        check(not close(ours, formula(ref - s)), "the sign inside is wrong, or s and s_ref are swapped: NPO pushes s "
              "below s_ref")
        check(not close(ours, -formula(s - ref)), "the sign in front is missing: -(2/beta) log sigmoid(...)")
        check(not close(ours, formula(s - ref) / 2), "the factor is 2/beta, not 1/beta")
        check(not close(ours, formula(s - ref) * len(s)), "the mean over answers is needed, not their sum")
        check(close(ours, formula(s - ref)), "the value is not the mean of -(2/beta) log sigmoid(-beta (s - s_ref))")


@pytest.mark.points(1)
def test_npo_starts_at_two_log_two_over_beta(draw):
    s, _, _ = sums(draw)
    for beta in (0.05, 0.1, 0.5):
        check(close(baselines.npo(s, s, beta=beta), 2 * math.log(2) / beta), "where the student is still theta_0, NPO "
              "is 2 ln 2 / beta: is the reference left out, or beta?")
    check(close(baselines.npo(s, s), 2 * math.log(2) / 0.1), "beta is 0.1 unless said")


@pytest.mark.points(1.5)
def test_npo_becomes_gradient_ascent_as_beta_goes_to_zero(draw):
    """Its gradient in s goes to 1 / B for every answer, and is sigmoid(beta (s - s_ref)) 2 / B before."""
    s, ref, _ = sums(draw)
    for beta in (1e-4, 0.3):
        expected = 2 * torch.sigmoid(beta * (s - ref)) / len(s)
        ours = gradient(lambda s: baselines.npo(s, ref, beta=beta), s)
        check(close(ours, expected, 1e-4), "the gradient of NPO is 2 sigmoid(beta (s - s_ref)) / B: it fades for "
              "answers that are forgotten, and is that of gradient ascent at beta -> 0")
    check(torch.isfinite(baselines.npo(s * 100, ref, beta=5.0)).all(), "NPO overflows: use F.logsigmoid")


@pytest.mark.points(2)
def test_simnpo_is_normalised_by_length_and_has_no_reference(draw):
    s, _, mask = sums(draw)
    T = mask.sum(1)
    for beta, gamma in ((4.5, 0.0), (1 + draw.rng.random(), 0.5)):
        def formula(n, margin):
            return sum(2 / beta * math.log1p(math.exp(beta * float(a / b) + margin)) for a, b in zip(s, n)) / len(s)
        ours = baselines.simnpo(s, mask, beta=beta, gamma=gamma)
        check(not close(ours, formula(torch.ones_like(T), gamma)), "s is not divided by the length of its answer")
        check(not close(ours, formula(torch.full_like(T, mask.size(1)), gamma)), "s is divided by T of the batch: the "
              "length of an answer is mask.sum(1), without padding")
        check(not gamma or not close(ours, formula(T, -gamma)), "gamma is taken with the wrong sign")
        check(close(ours, formula(T, gamma)), "the value is not the mean of -(2/beta) log sigmoid(-(beta/T) s - gamma)")
    check(close(baselines.simnpo(s, mask), baselines.simnpo(s, mask, beta=4.5, gamma=0.0)), "beta is 4.5 and gamma 0 "
          "unless said")


@pytest.mark.points(2)
def test_wga_weighs_by_a_probability_that_is_held_fixed(draw):
    z, target, mask = tokens(draw)
    nll = true(z, target) * mask
    for beta in (1.0, 0.5 + draw.rng.random()):
        expected = mean(-(-beta * nll).exp() * nll, mask)
        ours = baselines.wga(nll, mask, beta=beta)
        check(not close(ours, -expected), "the sign is wrong: WGA minimises w log p, it does not raise it")
        check(not close(ours, mean(-nll, mask)), "the weight p^beta is missing: this is gradient ascent")
        check(close(ours, expected), "the value is not the mean of p^beta log p over answer tokens")
        slope = gradient(lambda nll: baselines.wga(nll, mask, beta=beta), nll)
        fixed = -(-beta * nll).exp() * mask / mask.sum(1, keepdim=True) / len(mask)
        check(close(slope, fixed), "the weight must be held fixed (detach): a gradient runs through it")
    check(close(baselines.wga(nll, mask), baselines.wga(nll, mask, beta=1.0)), "beta is 1 unless said")


@pytest.mark.points(2)
def test_ceu_asks_for_the_students_own_distribution_without_the_true_token(draw):
    z, target, mask = tokens(draw)
    later = mask & (torch.arange(mask.size(1)) > 0)

    def formula(mask):
        rows = []
        for b, t in mask.nonzero().tolist():
            others = z[b, t].clone()
            others[target[b, t]] = -math.inf
            others = others.softmax(-1)
            rows.append((b, -(others * z[b, t].log_softmax(-1)).sum()))
        return sum(sum(v for a, v in rows if a == b) / int(mask[b].sum()) for b in range(len(mask))) / len(mask)
    ours = baselines.ceu(z.log_softmax(-1), target, mask)
    check(not close(ours, formula(mask)), "the first token of an answer does not count")
    check(close(ours, formula(later)), "the value is not the cross-entropy to softmax(z with z_y = -inf) over the "
          "answer tokens after the first")
    slope = gradient(lambda z: baselines.ceu(z.log_softmax(-1), target, mask), z)
    share = later / later.sum(1, keepdim=True) / len(mask)
    at_truth = slope.gather(-1, target[..., None])[..., 0]
    check(close(at_truth, (-true(z, target)).exp() * share), "the gradient in z_y must be p(y): is the target "
          "distribution held fixed (detach), and p(y) 0 in it?")
    check(close(slope.sum(-1), torch.zeros_like(at_truth), 1e-4), "the target distribution does not sum to 1")
