"""Every method's loss in closed form, the direction of its gradient, and which combinations are refused."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

import asu
import baselines
import data
import eval
from lab.answers import answer_nll
from tests.conftest import small_model

REFUSALS = [[5, 6, 7, 599], [8, 9, 599]]


def settings(method, **changes):
    return dict(method=method, tau=4.0, epochs=1, lr=1e-3, batch_size=8, seed=1, refusals=REFUSALS,
                retain_loss="none") | changes


def answers(loss, model, examples, student=None):
    """The first eight examples as a loss sees them; theta_0 is `model`, the student `model` too unless given."""
    frozen = asu.theta_0_outputs(loss, model, examples[:8], set(range(8)), "cached", 4.0, None, hidden_layer=1)
    real = asu.Answers(student or model, examples[:8], list(range(8)), frozen, hidden_layer=1)
    refused = [data.Example(e.prompt, REFUSALS[i % 2]) for i, e in enumerate(examples[:8])]
    real.refused = asu.Answers(student or model, refused, list(range(8)),
                               asu.theta_0_outputs(loss, model, refused, set(range(8)), "cached", 4.0, None))
    return real


def moved(model):
    """A copy with other weights, so that the student is not theta_0."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return other


def summed_logp(model, e):
    logp = model(torch.tensor([e.prompt + e.answer])[:, :-1]).log_softmax(-1)[0, len(e.prompt) - 1:]
    return logp.gather(-1, torch.tensor(e.answer)[:, None]).sum()


@pytest.fixture
def sums(model, examples):
    """s and s_ref of the first eight answers and of their refusals by the plain loop, with a student that has moved."""
    student = moved(model)
    refused = [data.Example(e.prompt, REFUSALS[i % 2]) for i, e in enumerate(examples[:8])]
    with torch.no_grad():
        return student, *(torch.stack([summed_logp(m, e) for e in some]) for some in (examples[:8], refused)
                          for m in (student, model))


def test_summed_log_probabilities_are_the_plain_loops(model, examples, sums):
    student, s, s_ref, s_idk, s_idk_ref = sums
    x = answers("dpo", model, examples, student)
    for ours, loop in ((x.s, s), (x.s_ref, s_ref), (x.refused.s, s_idk), (x.refused.s_ref, s_idk_ref)):
        assert torch.allclose(ours, loop, atol=1e-3)


def test_the_formulas_on_summed_log_probabilities(model, examples, sums):
    """Written out once more from the papers, with log sigmoid(x) = -ln(1 + e^-x)."""
    student, s, s_ref, s_idk, s_idk_ref = sums
    T = torch.tensor([len(e.answer) for e in examples[:8]])
    log_sigmoid = lambda x: -torch.log(1 + torch.exp(-x.double()))
    expected = {"ga": (s / T).mean(), "npo": (-2 / 0.1 * log_sigmoid(-0.1 * (s - s_ref))).mean(),
                "simnpo": (-2 / 4.5 * log_sigmoid(-4.5 / T * s)).mean(),
                "dpo": (-2 / 0.1 * log_sigmoid(0.1 * (s_idk - s_idk_ref - s + s_ref))).mean(),
                "idk": (-s_idk / torch.tensor([4, 3] * 4)).mean(),
                "ap": (-1 / 0.1 * log_sigmoid(0.1 * (s - s_idk))).mean()}
    for name, value in expected.items():
        loss = (baselines.LOSSES | baselines.RETAIN_LOSSES)[name](answers(name, model, examples, student))
        assert loss.item() == pytest.approx(value.item(), abs=2e-3), name


@pytest.mark.parametrize("name", ["npo", "dpo"])
@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_npo_and_dpo_start_at_two_log_two_over_beta(model, examples, name, beta):
    assert baselines.LOSSES[name](answers(name, model, examples), beta=beta).item() == pytest.approx(2 * math.log(2) / beta, abs=1e-4)


def test_maximum_entropy_of_a_uniform_model_is_zero(examples, model):
    assert baselines.me(answers("me", model, examples)).item() > 0.5
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert baselines.me(answers("me", model, examples)).item() == pytest.approx(0, abs=1e-5)


def test_undial_is_self_distillation_with_the_true_logit_lowered(model, examples):
    """At beta 0 nothing is asked of theta_0 but itself; at beta the teacher's odds of y_t fall by e^beta."""
    assert baselines.undial(answers("undial", model, examples), beta=0.0).item() == pytest.approx(0, abs=1e-6)
    student = moved(model)
    x = answers("undial", model, examples, student)
    z = x.reference_logp - 3.0 * F.one_hot(x.target, x.logp.size(-1))
    assert baselines.undial(x, beta=3.0).item() == pytest.approx(asu.forward_kl(z.log_softmax(-1), x.logp, x.mask).item(), abs=1e-5)


def test_rmu_measures_the_distance_to_its_direction(model, examples):
    """Zero once the hidden states are the direction; its retain term is zero at the start."""
    x = answers("rmu", model, examples)
    original = x.reference_hidden
    assert torch.equal(original[x.mask], x.hidden[x.mask].detach())
    u = torch.rand(32, generator=torch.Generator().manual_seed(0))
    goal = 2.0 * original.norm(dim=-1)[x.mask].mean() * u / u.norm()
    x.hidden = goal.expand_as(original)
    assert baselines.rmu(x).item() == pytest.approx(0, abs=1e-8) and baselines.rmu(x, beta=3.0).item() > 0.01
    assert baselines.rmu_retain(answers("hidden", model, examples)).item() == 0
    assert baselines.rmu_retain(answers("hidden", model, examples, moved(model))).item() > 1e-4


def test_the_hidden_form_of_asu_is_the_distance_of_two_residual_streams(model, examples):
    """Zero for a student that is the smoothed model; of the first layer at tau, and of no later one."""
    x = answers("asu_hidden", model, examples, moved(model))
    teacher = x.batch.at_answers(model.hidden(x.batch.idx, tau=4.0, n_layers=1))
    per_token = ((x.hidden - teacher) ** 2).mean(-1)
    assert asu.asu_hidden(x).item() == pytest.approx(data.mean_over_answers(per_token, x.mask).item(), rel=1e-5)
    smoothed = copy.deepcopy(model)
    with torch.no_grad():
        smoothed.layers[0].self_attn.q_proj.weight /= 4.0
    assert asu.asu_hidden(answers("asu_hidden", model, examples, smoothed)).item() == pytest.approx(0, abs=1e-9)
    assert asu.asu_hidden(answers("asu_hidden", model, examples)).item() > 1e-4


def test_asu_idk_is_asu_after_the_first_token_and_a_refusal(model, examples):
    x = answers("asu_idk", model, examples, moved(model))
    after_first = x.mask.clone()
    after_first[:, 0] = False
    expected = asu.forward_kl(x.teacher_logp, x.logp, after_first) + x.refused.mean(x.refused.nll)
    assert asu.asu_idk(x).item() == pytest.approx(expected.item(), abs=1e-6)
    assert not torch.isclose(asu.asu_idk(x), baselines.idk(x)) and not torch.isclose(asu.asu_idk(x), asu.asu(x))


def log_odds(model, x):
    """Of the true answer, of the refusal, and the mean entropy at answer tokens."""
    with torch.no_grad():
        fresh = asu.Answers(model, x.examples, list(range(8)), {})
        refused = asu.Answers(model, x.refused.examples, list(range(8)), {})
        entropy = -fresh.mean((fresh.logp.exp() * fresh.logp).sum(-1))
        return {"true": fresh.s.mean().item(), "refusal": refused.s.mean().item(), "entropy": entropy.item()}


@pytest.mark.parametrize("method, goes_up, goes_down", [
    ("ga", None, "true"), ("npo", None, "true"), ("simnpo", None, "true"), ("dpo", "refusal", None), ("idk", "refusal", None),
    ("me", "entropy", None), ("undial", None, "true"), ("asu_idk", "refusal", None)])
def test_a_small_step_goes_the_right_way(examples, method, goes_up, goes_down):
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):                                     # a model that knows the answers, so that there is something to lose
        batch = data.collate(examples[:8])
        asu.mean_over_answers(answer_nll(model, batch), batch.mask).backward()
        optimizer.step()
        optimizer.zero_grad()
    x = answers(method, model, examples)
    before = log_odds(model, x)
    loss = asu.METHODS[method](x)
    loss.backward()
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p -= 1e-3 * p.grad / p.grad.norm().clamp(min=1e-9)
    after = log_odds(model, x)
    assert asu.METHODS[method](answers_again(x, model)).item() < loss.item()
    assert goes_up is None or after[goes_up] > before[goes_up]
    assert goes_down is None or after[goes_down] < before[goes_down]


def answers_again(x, model):
    """The same rows and the same theta_0 under a student that has taken a step."""
    again = asu.Answers(model, x.examples, x.numbers, x.frozen)
    again.refused = asu.Answers(model, x.refused.examples, x.numbers, x.refused.frozen)
    return again


@pytest.mark.parametrize("method", list(asu.METHODS))
@pytest.mark.parametrize("retain_loss", ["none", "gd", "kl"])
def test_every_method_runs_with_every_retain_loss(examples, method, retain_loss):
    record, model = {}, small_model()
    before = torch.cat([p.flatten() for p in model.parameters()]).clone()
    beta = 0.1 if method == "simnpo" else None              # an untrained model's NLL is past where 4.5 has a gradient
    asu.unlearn(model, examples[:8], examples[8:], record=record, **settings(method, retain_loss=retain_loss, beta=beta))
    assert record["steps"] == 1 and math.isfinite(record["curve"][0]["loss"])
    assert (record["curve"][0].get("retain_loss", 0) == 0) == (retain_loss == "none" or record["curve"][0]["retain_loss"] < 1e-6)
    assert (torch.cat([p.flatten() for p in model.parameters()]) - before).abs().max() > 1e-4


def test_idk_with_answer_preservation_and_rmu_with_its_own_retain_term(examples):
    for method, retain_loss in (("idk", "ap"), ("rmu", "hidden")):
        record = {}
        asu.unlearn(small_model(), examples[:8], examples[8:], record=record, **settings(method, retain_loss=retain_loss, epochs=20, lr=3e-3))
        assert record["curve"][-1]["loss"] < 0.9 * record["curve"][0]["loss"]


@pytest.mark.parametrize("method, changes, message", [
    ("ASU", {}, "choose from asu, asu_idk, ga, npo"), ("idk", {"refusals": ()}, "there are none"), ("dpo", {"refusals": []}, "there are none"),
    ("npo", {"retain_loss": "ap"}, "ap belongs to method idk"), ("ga", {"retain_loss": "hidden"}, "hidden belongs to method rmu"),
    ("ga", {"beta": 0.1}, "ga has no beta"), ("asu", {"tau": -1.0}, "above 0")])
def test_combinations_that_make_no_sense_are_refused(examples, method, changes, message):
    with pytest.raises(ValueError, match=message):
        asu.unlearn(small_model(), examples[:8], examples[8:], **settings(method, **changes))


def test_refusals_are_recognised_as_refusals():
    assert len(data.REFUSALS) >= 10 and all(eval.REFUSAL.search(text) and text.endswith(".") for text in data.REFUSALS)
