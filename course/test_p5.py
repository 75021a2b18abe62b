"""Problem 5: gap to retrain, truth ratio, extraction strength."""

import math

import numpy as np
import pytest

import eval
from course.answers import bad_method_that_wins
from course.checking import check, close


def losses(draw):
    """Mean NLLs of the paraphrased answer (N,) and of the wrong ones (N, K)."""
    N, K = draw.sizes(2, 4, 12)
    return draw.normal(N).abs().double().numpy(), draw.normal(N, K).abs().double().numpy()


@pytest.mark.points(1)
def test_the_truth_ratio_is_geometric_and_rises_with_knowledge(draw):
    para, pert = losses(draw)
    ours = eval.truth_ratio(para, pert)
    expected = [math.exp(sum(row) / len(row) - x) for x, row in zip(para, pert)]
    check(np.shape(ours) == (len(para),), "one ratio for each question, (N,): the mean is over the wrong answers alone")
    check(not close(ours, [1 / r for r in expected]), "the ratio is upside down: above 1 means that the TRUE answer is "
          "preferred, and a preferred answer has the lower NLL")
    check(not close(ours, [math.exp(x) * 0 + sum(math.exp(-y) for y in row) / len(row) / math.exp(-x)
                           for x, row in zip(para, pert)]), "this is the arithmetic form upside down: the mean is of "
          "NLLs, before exp")
    check(close(ours, expected), "r is exp(mean_i l(pert_i) - l(para)): the mean of the NLLs, then exp")


@pytest.mark.points(1)
def test_the_two_scores_made_of_truth_ratios(draw):
    r = np.exp(draw.normal(draw.sizes(1)[0] + 4).double().numpy())
    forget, utility = eval.forget_truth_ratio(r), eval.utility_truth_ratio(r)
    check(close(forget, sum(min(x, 1 / x) for x in r) / len(r)), "on the forget set: the mean of min(r, 1/r), question "
          "by question; 1 where a model cannot tell truth from lies")
    check(not close(utility, sum(1 - 1 / x for x in r) / len(r)) or min(r) >= 1, "a ratio below 1 counts 0 on what "
          "should be known, not less")
    check(close(utility, sum(max(0, 1 - 1 / x) for x in r) / len(r)), "on what should be known: the mean of max(0, 1 - "
          "1/r)")
    check(close(eval.forget_truth_ratio([1.0, 1.0, 1.0]), 1.0) and close(eval.utility_truth_ratio([0.5, 1.0]), 0.0),
          "at r = 1 the forget score is 1 and the utility score 0")


@pytest.mark.points(2)
def test_extraction_strength_counts_the_prefix_that_is_needed(draw):
    """[5, 2, 3] for [1, 2, 3]: after one token the rest is right, 1 - 1/3."""
    check(close(eval.extraction_strength([5, 2, 3], [1, 2, 3]), 2 / 3), "k is the SHORTEST prefix after which "
          "everything is right: here 1 of 3")
    check(close(eval.extraction_strength([1, 2, 3], [1, 2, 3]), 1.0), "where all is right no prefix is needed: 1")
    check(close(eval.extraction_strength([1, 2, 9], [1, 2, 3]), 0.0), "the last token is wrong, so the whole answer is "
          "needed: 0; do you count from the front?")
    check(close(eval.extraction_strength([4], [7]), 0.0), "a wrong answer of one token scores 0")
    for _ in range(20):
        T = draw.rng.randint(1, 13)
        true = [draw.rng.randrange(9) for _ in range(T)]
        said = [token if draw.rng.random() < 0.7 else 9 for token in true]
        needed = next(k for k in range(T + 1) if said[k:] == true[k:])
        check(close(eval.extraction_strength(said, true), 1 - needed / T), "the value is not 1 - k/T, T the length of "
              "the answer")


def values(draw, n, metrics=eval.GAP_METRICS):
    return {m: draw.normal(n).sigmoid().double().numpy() for m in metrics}


@pytest.mark.points(2)
def test_the_gap_is_the_mean_distance_of_the_means(draw):
    n = 6 + draw.sizes(1)[0]
    mine, gold = values(draw, n), values(draw, n)
    ours = eval.gap(mine, gold)
    distances = [abs(mine[m].mean() - gold[m].mean()) for m in eval.GAP_METRICS]
    check(not close(ours, np.mean([abs(mine[m] - gold[m]).mean() for m in mine])), "the distance is between the means "
          "over questions, not the mean of each question's distance")
    check(not close(ours, sum(distances)), "the mean over metrics, not their sum")
    check(not close(ours, abs(np.mean([mine[m].mean() - gold[m].mean() for m in mine]))), "the distance of each metric "
          "is absolute: one above and one below must not cancel")
    check(close(ours, np.mean(distances)), "the gap is the mean over metrics of |mean - the retrained model's mean|")
    check(close(eval.gap(gold, gold), 0.0), "the retrained model itself has gap 0")
    below = {m: 0 * v for m, v in gold.items()}
    check(eval.gap(below, gold) > 0, "forgetting more than the retrained model is a distance too")
    check(close(eval.gap(mine | {"r": 9 * mine["coherence"]}, gold | {"r": gold["coherence"]}), np.mean(distances)),
          "only the metrics in GAP_METRICS count")
    fewer = {m: mine[m] for m in eval.GAP_METRICS[:3]}
    check(close(eval.gap(fewer, gold), np.mean(distances[:3])), "a metric that a set does not have is left out of the "
          "mean")
    pick = np.array([draw.rng.randrange(n) for _ in range(n)])
    check(close(eval.gap(mine, gold, pick), np.mean([abs(mine[m][pick].mean() - gold[m][pick].mean()) for m in mine])),
          "pick chooses the same questions of both models, for a bootstrap")


@pytest.mark.points(1)
def test_a_bad_method_wins_a_metric(draw):
    """By Forget Efficacy it is the better of the two, by the gap to retrain it is far the worse."""
    n = 6 + draw.sizes(1)[0]
    retrained = {m: 0.2 + 0.6 * v for m, v in values(draw, n).items()} | {"coherence": np.ones(n)}
    good, bad = bad_method_that_wins(retrained)
    efficacy = []
    for name, method in (("good", good), ("bad", bad)):
        check(set(method) == set(retrained) and all(len(v) == n for v in method.values()), "each of the two holds the "
              "retrained model's metrics, a value for each question")
        check(all(0 <= np.min(v) and np.max(v) <= 1 for v in method.values()), "every metric lies in [0, 1]")
        means = {m: float(np.mean(method[m])) for m in method}
        efficacy.append(eval.forget_efficacy(means["rouge_l"], means["probability"], means["truth_ratio"],
                                             means["token_entropy"]))
    check(efficacy[1] > efficacy[0] + 0.05, "the bad method must win: its forget efficacy must be above the good one's "
          "by 0.05 at least")
    check(eval.gap(bad, retrained) > eval.gap(good, retrained) + 0.1, "the bad method must be bad: its gap to the "
          "retrained model must be above the good one's by 0.1 at least")
    check(np.mean(bad["coherence"]) < 0.5, "the bad method does not speak any more: more than half of its answers are "
          "no sentences")
