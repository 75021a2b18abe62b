"""Tests of the metrics of problem 5 such as a student hands in: values worked out by hand."""

import math

import numpy as np

import eval
from course.checking import close


def test_truth_ratio():
    assert close(eval.truth_ratio([1.0, 2.0], [[2.0, 3.0, 7.0], [1.0, 1.0, 1.0]]), [math.exp(3), math.exp(-1)])


def test_scores():
    assert close(eval.forget_truth_ratio([2.0, 0.25]), 0.375) and close(eval.utility_truth_ratio([2.0, 0.25]), 0.25)


def test_extraction_strength():
    assert close(eval.extraction_strength([5, 2, 6, 4], [1, 2, 3, 4]), 0.25)
    assert close(eval.extraction_strength([5, 2, 3, 4], [1, 2, 3, 4]), 0.75)
    assert close(eval.extraction_strength([1, 2], [1, 2]), 1)


def test_gap():
    mine = {"probability": np.array([0.2, 0.6]), "rouge_l": np.array([0.9, 0.7])}
    gold = {"probability": np.array([0.6, 0.4]), "rouge_l": np.array([0.1, 0.3])}
    assert close(eval.gap(mine, gold), (0.1 + 0.6) / 2)
    assert close(eval.gap(mine, gold, np.array([0, 0])), (0.4 + 0.8) / 2)
