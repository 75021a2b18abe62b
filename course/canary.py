"""Tests that must fail. One that passes tells the grader that somebody has changed pytest, torch or the checks."""

import torch

from course.checking import check, close, unchanged


def test_assert():
    assert False


def test_check():
    check(False, "a hint")


def test_close():
    check(close(torch.zeros(3), torch.ones(3)), "a hint")


def test_shape():
    check(close(torch.zeros(3), torch.zeros(2)), "a hint")


def test_unchanged():
    check(unchanged(torch.nn.Linear(2, 3), torch.nn.Linear(2, 3).state_dict()), "a hint")


def test_torch():
    assert torch.equal(torch.zeros(3), torch.ones(3)) or (torch.zeros(3) - torch.ones(3)).abs().sum() < 0.5


def test_exception():
    raise NotImplementedError("problem 0")


def test_draw(draw):
    assert draw.sizes(2)[0] == draw.normal(3).sum()
