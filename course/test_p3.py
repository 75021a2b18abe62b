"""Problem 3: the cached teacher equals the live one."""

import copy

import pytest
import torch

import asu
import data
from course.checking import check, close


def oracle(model, batch, **smoothing):
    """What the frozen model says at answer tokens, run now. (B, A, V)"""
    with torch.no_grad():
        return model.lm_head(batch.at_answers(model.hidden(batch.idx, **smoothing))).log_softmax(-1)


def asked(draw, loss=asu.asu, n=7, **settings):
    """theta_0, asked what the loss needs -> (model, a copy of it, examples, Frozen)"""
    model = draw.model()
    examples = draw.examples(n, model.config.vocab_size)
    theta_0 = asu.Frozen(model, **settings)
    theta_0.remember(loss, examples)
    return model, copy.deepcopy(model), examples, theta_0


@pytest.mark.points(3)
def test_the_cached_teacher_is_the_live_one_to_a_hundred_thousandth(draw):
    tau = 1.5 + 4 * draw.rng.random()
    model, before, examples, theta_0 = asked(draw, tau=tau)
    live = asu.Frozen(before, tau=tau, live=True)
    batch = data.collate(examples)
    expected = oracle(before, batch, tau=tau)
    for frozen, hint in ((theta_0, "what is kept differs from the teacher: are they the states at answer tokens, that "
                          "is at batch.at_answers, of the model at tau?"),
                         (live, "the live teacher differs: it is a second model, run now, at tau")):
        ours = frozen.says("teacher", "logp", examples, batch)
        check(ours.shape == expected.shape, "says gives (B, A, V), padded to the longest answer of the batch")
        check(not close(ours[batch.mask], oracle(before, batch)[batch.mask], 1e-4), "the teacher is not smoothed: its "
              "tau is in self.smoothing['teacher']")
        check(close(ours[batch.mask].exp().sum(-1), torch.ones(int(batch.mask.sum())), 1e-4), "log-probabilities are "
              "needed: take log_softmax of the logits")
        check(close(ours[batch.mask], expected[batch.mask]), hint)


@pytest.mark.points(2)
def test_the_answer_belongs_to_the_example_in_whatever_batch_it_comes(draw):
    _, before, examples, theta_0 = asked(draw, tau=3.0)
    shuffled = draw.rng.sample(examples, 3)
    batch = data.collate(shuffled)
    ours = theta_0.says("teacher", "logp", shuffled, batch)
    check(ours.shape[:2] == batch.mask.shape, "a batch of its own has a longest answer of its own")
    check(close(ours[batch.mask], oracle(before, batch, tau=3.0)[batch.mask]), "the states of one example are given "
          "for another: by_length sorts them, so keep them under the example, not under its place")


@pytest.mark.points(2)
def test_the_teacher_does_not_move_with_the_student(draw):
    """Neither its states nor its head, which may be the embedding that training changes."""
    for tied in (True, False):
        model = draw.model(tie_weights=tied)
        before, examples = copy.deepcopy(model), draw.examples(5, model.config.vocab_size)
        theta_0 = asu.Frozen(model, tau=3.0)
        theta_0.remember(asu.asu, examples)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * draw.normal(*p.shape))
        batch = data.collate(examples)
        ours = theta_0.says("teacher", "logp", examples, batch)
        check(not ours.requires_grad, "the teacher is a constant: no gradient flows into it")
        check(close(ours[batch.mask], oracle(before, batch, tau=3.0)[batch.mask]), "the teacher is stale or moves: "
              "its head is a copy (clone) of the weights as they were, not the model's own, which is trained")


@pytest.mark.points(1)
def test_smoothed_layers_the_reference_and_hidden_states(draw):
    def wants(teacher_logp, reference_logp, mask):
        """A loss that asks for both."""
    _, before, examples, theta_0 = asked(draw, wants, tau=4.0, layers=[1])
    batch = data.collate(examples)
    for who, smoothing in (("teacher", {"tau": 4.0, "layers": [1]}), ("reference", {})):
        ours = theta_0.says(who, "logp", examples, batch)
        check(close(ours[batch.mask], oracle(before, batch, **smoothing)[batch.mask]), "the teacher is smoothed in its "
              "layers alone, and the reference not at all: both come from self.smoothing, and are kept apart")
    _, before, examples, theta_0 = asked(draw, asu.asu_hidden, tau=4.0, hidden_layer=2)
    batch = data.collate(examples)
    expected = batch.at_answers(before.hidden(batch.idx, tau=4.0, n_layers=2))
    check(close(theta_0.says("teacher", "hidden", examples, batch)[batch.mask], expected[batch.mask]), "what='hidden' "
          "asks for the residual stream after self.n_layers['hidden'] layers, without the head")


@pytest.mark.points(2)
def test_what_it_saves(draw):
    """T x C numbers an answer are kept, and the model is not run again."""
    model, _, examples, theta_0 = asked(draw, tau=3.0)
    check(theta_0.states and all(torch.is_tensor(state) for state in theta_0.states.values()), "what is kept belongs "
          "into self.states, as tensors")
    numbers = sum(state.untyped_storage().nbytes() // state.element_size() for state in theta_0.states.values())
    others = [name for name in vars(theta_0) if name not in vars(asu.Frozen(model, tau=3.0))]
    check(not others, "attributes that __init__ does not make: what is kept belongs into self.states")
    tokens = sum(len(e.answer) for e in examples)
    check(numbers <= tokens * model.config.n_embd, "more is kept than T x C numbers an answer: neither padding nor "
          "prompts nor logits, and a copy of its own, for a view keeps the whole batch alive")
    ran, hidden = [], model.hidden
    model.hidden = lambda *args, **kw: ran.append(1) or hidden(*args, **kw)
    theta_0.says("teacher", "logp", examples, data.collate(examples))
    check(not ran, "the model runs again for what it has said already")
    again = asu.Frozen(model, tau=3.0, live=True)
    check(again.models["reference"] is not model, "live=True keeps a second model")
    again.remember(asu.asu, examples)
    check(not again.states, "with live=True there is nothing to remember")
