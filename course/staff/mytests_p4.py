"""Tests of npo, simnpo, wga and ceu such as a student hands in."""

import math

import torch

import baselines
from course.checking import close, gradient


def test_npo(draw):
    s, ref = draw.normal(5), draw.normal(5)
    expected = sum(2 / 0.3 * math.log1p(math.exp(0.3 * float(x))) for x in s - ref) / 5
    assert close(baselines.npo(s, ref, beta=0.3), expected)


def test_simnpo(draw):
    s, mask = draw.normal(5), draw.mask(5, 8)
    expected = sum(math.log1p(math.exp(2 * float(x / n) + 0.5)) for x, n in zip(s, mask.sum(1))) / 5
    assert close(baselines.simnpo(s, mask, beta=2.0, gamma=0.5), expected)


def test_wga(draw):
    mask = draw.mask(3, 7)
    nll = draw.normal(3, 7).abs() * mask
    share = mask / mask.sum(1, keepdim=True) / 3
    assert close(baselines.wga(nll, mask), (-(-nll).exp() * nll * share).sum())
    assert close(gradient(lambda nll: baselines.wga(nll, mask), nll), -(-nll).exp() * share)


def test_ceu(draw):
    z, mask = draw.normal(3, 7, 9), draw.mask(3, 7)
    target = torch.randint(9, (3, 7), generator=draw.generator)
    mask_later = mask.clone()
    mask_later[:, 0] = False
    share = mask_later / mask_later.sum(1, keepdim=True) / 3
    slope = gradient(lambda z: baselines.ceu(z.log_softmax(-1), target, mask), z)
    p = z.softmax(-1)
    others = p.scatter(-1, target[..., None], 0.0)
    assert close(slope, (p - others / others.sum(-1, keepdim=True)) * share[..., None])
