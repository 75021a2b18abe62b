"""Plain statistics: means, ranks and intervals."""

import numpy as np
from scipy.stats import mannwhitneyu


def harmonic_mean(values):
    """Harmonic mean; 0 as soon as one value is 0 or less."""
    values = list(values)
    return 0.0 if min(values) <= 0 else len(values) / sum(1 / v for v in values)


def means(values):
    """{name: (N,)} -> {name: its mean}"""
    return {name: float(value.mean()) for name, value in values.items()}


def auc(members, others):
    """P(member scores above other) + half the ties: area under the ROC curve, 0.5 is chance."""
    return float(mannwhitneyu(members, others).statistic / (len(members) * len(others)))


def bootstrap(statistic, draws=1000):
    """95% interval over resampled questions -> [low, high]. statistic(draw) calls draw(n) for n numbers out of n."""
    rng = np.random.default_rng(0)

    def draw(n):
        return rng.integers(0, n, n)
    return [float(x) for x in np.percentile([statistic(draw) for _ in range(draws)], (2.5, 97.5))]


def interval(values):
    """(N,) -> the bootstrap's 95% interval of their mean."""
    return bootstrap(lambda draw: values[draw(len(values))].mean())
