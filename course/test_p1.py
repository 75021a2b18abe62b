"""Problem 1: attention with a temperature."""

import math

import pytest
import torch
import torch.nn.functional as F

from course.checking import check, close
from model import attend, attention_scales


def tensors(draw, shared=1):
    """q (B, nh, T, hs), k and v (B, nh / shared, T, hs), no two sizes equal."""
    B, nkv, T, hs = draw.sizes(4)
    nh = nkv * shared
    return draw.normal(B, nh, T, hs), draw.normal(B, nkv, T, hs), draw.normal(B, nkv, T, hs)


def by_hand(q, k, v, tau):
    """The formula, one head and one query at a time. tau(b, h) -> number. -> (output, weights)"""
    out, weights = torch.zeros_like(q), torch.zeros(*q.shape[:3], q.size(2))
    shared = q.size(1) // k.size(1)
    for b in range(q.size(0)):
        for h in range(q.size(1)):
            for t in range(q.size(2)):
                seen = k[b, h // shared, :t + 1]                                                # (t + 1, hs)
                p = (seen @ q[b, h, t] / (tau(b, h) * math.sqrt(q.size(-1)))).softmax(-1)
                weights[b, h, t, :t + 1] = p
                out[b, h, t] = p @ v[b, h // shared, :t + 1]
    return out, weights


@pytest.mark.points(1)
def test_the_explicit_path_is_the_formula(draw):
    q, k, v = tensors(draw, shared=2)
    tau = 1 + 3 * draw.rng.random()
    scale = attention_scales(tau, None, 2, q.size(1), q.size(-1))[1]
    out, weights = attend(q, k, v, scale, explicit=True)
    expected, attention = by_hand(q, k, v, lambda b, h: tau)
    check(weights is not None and weights.shape == attention.shape,
          "the explicit path returns the attention weights (B, nh, T, S) beside the output")
    check(close(weights.triu(1), torch.zeros_like(weights)),
          "a query looks at later positions: the mask is causal where none is given")
    check(not close(weights, by_hand(q, k, v, lambda b, h: math.sqrt(tau))[1], 1e-4),
          "tau stands inside the square root: the scale is 1 / (tau sqrt(hs)), not 1 / sqrt(tau hs)")
    check(not close(weights, by_hand(q, k, v, lambda b, h: 1 / tau)[1], 1e-4),
          "the scores are multiplied by tau: a higher temperature flattens, so divide")
    check(close(weights, attention, 1e-4), "the weights are not softmax(q k^T / (tau sqrt(hs))) over the prefix")
    check(close(out, expected, 1e-4), "the weights are right, the output is not: sum the values v with them, and mind "
          "which key/value head a query head shares")


@pytest.mark.points(1)
def test_the_fused_path_is_the_explicit_one(draw):
    for shared in (1, 3):
        q, k, v = tensors(draw, shared)
        for tau in (1.0, 1 + 5 * draw.rng.random(), 50.0):
            scale = attention_scales(tau, None, 2, q.size(1), q.size(-1))[0]
            out, weights = attend(q, k, v, scale)
            check(weights is None, "the fused path has no weights to return: its second value is None")
            check(close(out, by_hand(q, k, v, lambda b, h: tau)[0], 1e-4), "the fused path differs from the formula: "
                  "F.scaled_dot_product_attention takes scale=, which replaces its own 1 / sqrt(hs), and is_causal=")


@pytest.mark.points(1)
def test_every_head_has_its_own_temperature(draw):
    """A table, layers x heads; and a number for each sequence of a batch."""
    q, k, v = tensors(draw)
    B, nh, _, hs = q.shape
    table = (1 + 4 * torch.rand(3, nh, generator=draw.generator)).tolist()
    scales = attention_scales(table, None, 3, nh, hs)
    check(len(scales) == 3, "one scale for each layer")
    each = (1 + 4 * torch.rand(B, generator=draw.generator)).tolist()
    for scale, tau in [(scales[i], lambda b, h, i=i: table[i][h]) for i in range(3)] + [
            (attention_scales(each, None, 3, nh, hs)[2], lambda b, h: each[b])]:
        expected = by_hand(q, k, v, tau)[0]
        for explicit in (True, False):
            check(close(attend(q, k, v, scale, explicit=explicit)[0], expected, 1e-4),
                  "a temperature for each head (or each sequence) acts on the wrong dimension: the scale of a layer is "
                  "(nh, 1, 1), of a batch (B, 1, 1, 1), so that it multiplies scores (B, nh, T, S)")


@pytest.mark.points(1)
def test_only_the_layers_that_are_named_are_smoothed(draw):
    n, nh, hs = draw.sizes(3, 4, 12)
    tau, layers = 2 + draw.rng.random(), sorted(draw.rng.sample(range(n), 2))
    scales = attention_scales(tau, layers, n, nh, hs)
    for i in range(n):
        check(close(torch.as_tensor(scales[i]).flatten()[0], 1 / ((tau if i in layers else 1) * math.sqrt(hs))),
              "layers that are not named stay at temperature 1, 1 / sqrt(hs); those that are get tau")
    for wrong, hint in (([], "layers=[] must be a ValueError: it would smooth nothing, without a word"),
                        ([n], "a layer that the model does not have must be a ValueError"),
                        ([-1], "a layer below 0 must be a ValueError")):
        refused(lambda: attention_scales(tau, wrong, n, nh, hs), hint)
    refused(lambda: attention_scales(0.0, None, n, nh, hs), "a temperature of 0 must be a ValueError")
    refused(lambda: attention_scales([[2.0] * n] * nh, None, n, nh, hs), "a table of another shape than layers x heads "
            "must be a ValueError")


def refused(call, hint):
    try:
        call()
    except NotImplementedError:
        raise
    except ValueError:
        return
    check(False, hint)


@pytest.mark.points(1)
def test_the_limits_of_tau(draw):
    """tau -> 1 is attention as it is; tau -> infinity is the mean of the prefix; the entropy rises between."""
    q, k, v = tensors(draw)
    _, nh, T, hs = q.shape

    def at(tau, explicit=True):
        return attend(q, k, v, attention_scales(tau, None, 1, nh, hs)[0], explicit=explicit)
    plain = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    mean = v.cumsum(2) / torch.arange(1, T + 1)[:, None]
    for explicit in (True, False):
        check(close(at(1.0, explicit)[0], plain, 1e-4), "at tau 1 this must be ordinary attention")
        check(close(at(1e8, explicit)[0], mean, 1e-3), "at a huge tau every query must see the mean of its prefix")
    entropy = [-torch.special.xlogy(w, w).sum(-1)[..., 1:] for w in (at(tau)[1] for tau in (1.0, 1.5, 3.0, 9.0))]
    for lower, higher in zip(entropy, entropy[1:]):
        check((higher > lower - 1e-6).all() and higher.sum() > lower.sum(),
              "the entropy of the weights must rise with tau for every query")


@pytest.mark.points(1)
def test_nobody_looks_at_what_the_mask_hides(draw):
    q, k, v = tensors(draw)
    B, nh, T, hs = q.shape
    scale = attention_scales(2.5, None, 1, nh, hs)[0]
    mask = torch.ones(T, T, dtype=torch.bool).tril()
    mask = mask.expand(B, 1, T, T).clone()
    mask[0, :, 1:, 0] = False                               # the first position is padding; itself it may see
    other = v.clone()
    other[0, :, 0] += 100
    for explicit in (True, False):
        a, b = (attend(q, k, values, scale, mask, explicit)[0][0, :, 1:] for values in (v, other))
        check(close(a, b, 1e-4), "hidden positions reach the output: the mask is True where a query MAY look, and a "
              "score that it hides becomes -inf before the softmax")
        whole = attend(q, k, v, scale, mask, explicit)[0][1:]
        check(close(whole, by_hand(q, k, v, lambda b, h: 2.5)[0][1:], 1e-4), "with a mask, tau is lost or visible "
              "positions are hidden")
