"""Problem 8: your own method, on authors that you have not seen, against four attacks."""

import functools

import numpy as np
import pytest
import torch

import asu
import data
from course import leaderboard
from course.checking import check, memorised, small_world
from lab import recover

SECONDS = 20        # of one core, for the method


@functools.cache
def tried(seed):
    """The method on a small world -> ({model: {attack: share of forgotten facts stated}}, of kept facts, record).

    Models: target, retrained, method; the first "attack" is to ask."""
    asu.asks(leaderboard.read_method()[0])                  # no method: no need to train
    tokenizer, forget, retain, _ = small_world(seed, n_authors=6, n_forgotten=2)
    models = {"target": memorised(tokenizer, forget + retain, seed), "retrained": memorised(tokenizer, retain, seed)}
    both = [data.training_examples(tokenizer, rows, 1) for rows in (forget, retain)]
    models["method"], record = leaderboard.unlearned(models["target"], *both, *leaderboard.read_method(), SECONDS)
    shares = {name: {attack: right.mean() for attack, right in
                     leaderboard.attacked(model, tokenizer, forget, phrasings=1).items()}
              for name, model in models.items()}
    kept = {name: float(np.mean(recover.stated(model, tokenizer, retain))) for name, model in models.items()}
    return models, shares, kept, record


def check_alive(kept):
    """A model that says nothing any more has forgotten nothing in particular."""
    check(kept["method"] >= 0.5 * kept["target"], "more than half of what should be kept is lost: a broken model does "
          "not count as one that has forgotten")


@pytest.mark.points(3)
def test_it_runs_within_the_seconds_and_leaves_a_model(draw):
    models, _, _, record = tried(draw.world)
    check(all(torch.isfinite(p).all() for p in models["method"].parameters()), "the weights are not finite: a lower "
          "lr, or a bounded loss")
    check(record["cpu_seconds"] < SECONDS + 5, "the method goes on after its seconds are over")
    check(any(not torch.equal(p, q) for p, q in zip(models["target"].parameters(), models["method"].parameters())),
          "the weights did not change")


@pytest.mark.points(4)
def test_it_forgets(draw):
    _, shares, kept, _ = tried(draw.world)
    check_alive(kept)
    check(shares["method"]["asked"] <= 0.5 * shares["target"]["asked"], "more than half of the forgotten facts are "
          "still said")


@pytest.mark.points(4)
def test_it_keeps_the_rest(draw):
    _, _, kept, _ = tried(draw.world)
    check(kept["method"] >= 0.8 * kept["target"], "more than a fifth of the facts that should be kept are lost: a "
          "larger c_retain, or more epochs")


@pytest.mark.points(4)
def test_it_stays_forgotten_under_the_worst_attack(draw):
    _, shares, kept, _ = tried(draw.world)
    check_alive(kept)
    worst, name = leaderboard.worst_excess(shares["method"], shares["retrained"])
    check(worst <= 0.5, "an attack (relearning half of the facts, four samples, 4 bits) brings back more than half of "
          "the forgotten facts beyond what the retrained model says under it")
