"""Every statement of docs/theory.md that is checked rather than proved, in the order of that page."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

import asu
import baselines
import data
from lab.answers import answer_logp
from model import attend, attention_scales
from tests.conftest import memorise, small_model


def entropy(p):
    """(..., n) probabilities -> (...) nats"""
    return torch.special.entr(p).sum(-1)


def attention(scores, tau):
    """Weights of one query whose scores at tau = 1 are given: (..., n) -> (..., n), by the model's own attention."""
    n = scores.size(-1)
    keys = scores.reshape(-1, 1, n, 1)                      # a head of size 1 and the query 1: the score is the key
    [scale] = attention_scales(tau, None, n_layer=1, n_head=1, hs=1)
    _, weights = attend(torch.ones_like(keys[:, :, :1]), keys, keys, scale, torch.ones(1, n).bool(), explicit=True)
    return weights.view(scores.shape)


def attention_entropies(model, idx, tau):
    """Entropy of every attention row: idx (B, T) -> (n_layer, B, nh, T)"""
    weights = []
    with torch.no_grad():
        model.hidden(idx, tau=tau, weights=weights)
    return torch.stack([entropy(w) for w in weights])


@pytest.fixture
def idx():
    return torch.randint(0, 600, (4, 20), generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------------------------- 1 temperature and entropy
@pytest.mark.parametrize("tau", [0.7, 1.0, 2.3, 8.0])
def test_entropy_rises_by_the_variance_over_tau_cubed(tau):
    s = torch.tensor([2.0, -1.0, 0.5, 3.0, 0.0], dtype=torch.float64)
    p = attention(s, tau)
    variance = (p * s**2).sum() - (p * s).sum() ** 2
    up, down = (entropy(attention(s, tau + e)) for e in (1e-5, -1e-5))
    assert (up - down).item() / 2e-5 == pytest.approx((variance / tau**3).item(), rel=1e-6) and variance > 0


def test_in_a_deeper_layer_a_row_may_sharpen(model, idx):
    """The first layer's scores are given, so no row of it sharpens; a deeper layer's move with what lies below."""
    before, after = (attention_entropies(model, idx, tau) for tau in (1.0, 1.1))
    assert (after[0] >= before[0] - 1e-6).all() and (after[1] < before[1] - 0.01).any()


# ------------------------------------------------------------------------------------------------- 2 limits
@pytest.mark.parametrize("tau", [2.0, 16.0, 1000.0])
def test_weights_lie_in_a_band_around_uniform_that_closes_as_one_over_tau(tau):
    s = torch.randn(50, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    spread = s.max(-1).values - s.min(-1).values
    distance = (9 * attention(s, tau)).log().abs().max(-1).values
    assert (distance <= spread / tau).all() and (distance > spread / tau / 9).all()     # 9 tau would be too near


def test_at_infinite_tau_every_head_is_uniform_over_its_prefix(model, idx):
    prefix = torch.arange(1, 21).log()
    assert torch.allclose(attention_entropies(model, idx, 1e9), prefix.expand(2, 4, 4, 20), atol=1e-4)


def test_near_tau_one_the_loss_is_of_second_order(model, examples):
    """KL is 0 at tau = 1 and nowhere below, so halving tau - 1 quarters the loss."""
    batch = data.collate(examples[:8])
    with torch.no_grad():
        logp = {tau: answer_logp(model, batch, tau=tau) for tau in (1.0, 1.02, 1.04)}
    small, double = (asu.forward_kl(logp[tau], logp[1.0], batch.mask).item() for tau in (1.02, 1.04))
    assert double / small == pytest.approx(4, rel=0.05) and small > 0


# --------------------------------------------------------------------------------- 3 the objective and its end
def test_gradient_of_the_kl_is_softmax_minus_teacher():
    """By finite differences, and no longer than sqrt(2): two distributions are no further apart."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 1, 7, generator=generator, dtype=torch.float64).log_softmax(-1)
    z = torch.randn(1, 1, 7, generator=generator, dtype=torch.float64)
    kl = lambda z: asu.forward_kl(q, z.log_softmax(-1), torch.ones(1, 1).bool())
    gradient = z.softmax(-1) - q.exp()
    numeric = torch.stack([(kl(z + e) - kl(z - e)) / 2e-6 for e in 1e-6 * torch.eye(7, dtype=torch.float64)])
    assert torch.allclose(numeric, gradient[0, 0], atol=1e-8) and gradient.norm() <= math.sqrt(2)


def test_gradient_ascent_pushes_hardest_when_all_is_forgotten():
    """d log p_y / dz = onehot(y) - p: next to nothing on a memorised token, at least 1 once p_y is 0."""
    for z_y, low, high in ((15.0, 0, 1e-4), (-15.0, 1, math.sqrt(2))):
        z = torch.tensor([z_y, 0.0, 0.3, -0.2], dtype=torch.float64, requires_grad=True)
        nll = -z.log_softmax(-1)[:1]
        baselines.ga(nll[None], torch.ones(1, 1).bool()).backward()
        assert low <= z.grad.norm() <= high


@pytest.mark.parametrize("s_minus_ref, weight", [(0.0, 1.0), (-20.0, 0.238406), (-100.0, 0.000091)])
def test_npo_is_gradient_ascent_that_fades(s_minus_ref, weight):
    s = torch.tensor([s_minus_ref], dtype=torch.float64, requires_grad=True)
    baselines.npo(s, torch.zeros(1, dtype=torch.float64)).backward()
    assert s.grad.item() == pytest.approx(weight, abs=1e-6)
    assert weight == pytest.approx(2 / (1 + math.exp(-0.1 * s_minus_ref)), abs=1e-6)


@pytest.fixture(scope="module")
def memoriser(examples):
    """A tiny model that has learnt eight answers by heart."""
    return memorise(small_model(), examples[:8], steps=150, lr=1e-2, parts=1)


def descend(model, examples, method, steps=150):
    """Minimise one forget loss, nothing beside it -> [loss], [norm of its gradient]"""
    theta_0, loss_of = asu.Frozen(model, tau=8.0), asu.METHODS[method]
    theta_0.remember(loss_of, examples)
    model = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses, norms = [], []
    for _ in range(steps):
        loss = loss_of(**asu.look(model, theta_0, examples, loss_of)[0])
        loss.backward()
        norms.append(torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item())
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses, norms


@pytest.mark.slow
def test_asu_comes_to_rest_and_gradient_ascent_does_not(memoriser, examples):
    losses, norms = descend(memoriser, examples[:8], "asu")
    assert min(losses) >= 0 and losses[-1] < losses[0] / 50 and norms[-1] < norms[0] / 20
    losses, norms = descend(memoriser, examples[:8], "ga")
    assert losses[0] > -0.1 and losses[-1] < -3 * math.log(600)      # far worse than guessing among 600 tokens
    assert losses[-1] < losses[-50] - 5 and norms[-1] > norms[0]     # and still falling, ever harder pushed


def test_loss_bounds_how_far_the_student_is_from_its_teacher():
    """Pinsker: total variation <= sqrt(KL / 2)."""
    p, q = (torch.randn(100, 1, 1, 7, generator=torch.Generator().manual_seed(i)).log_softmax(-1) for i in (0, 1))
    for student, teacher in zip(p, q):
        kl = asu.forward_kl(teacher, student, torch.ones(1, 1).bool())
        assert (student.exp() - teacher.exp()).abs().sum() / 2 <= (kl / 2).sqrt()


# ------------------------------------------------------------------ 3 and 5 what the teacher can and cannot be
def test_the_teacher_is_a_model_of_the_same_kind(model, idx):
    """q_proj / tau in the smoothed layers, run at tau = 1: the loss can reach 0."""
    student = copy.deepcopy(model)
    student.layers[1].self_attn.q_proj.weight.data /= 5
    assert torch.allclose(student(idx), model(idx, tau=5.0, layers=[1]), atol=1e-4)


def test_uniform_attention_is_a_bag_of_words_in_one_layer_but_not_in_two(idx):
    shuffled = idx[:, torch.cat((torch.randperm(19, generator=torch.Generator().manual_seed(1)), torch.tensor([19])))]
    def change(model, tau):
        return (model(idx, tau=tau)[:, -1] - model(shuffled, tau=tau)[:, -1]).abs().max().item()
    one, two = small_model(n_layer=1), small_model(n_layer=2)
    assert change(one, 1.0) > 1 and change(one, 1e9) < 1e-3 and change(two, 1e9) > 1


def test_what_the_current_token_says_by_itself_is_untouched(model, idx):
    """The first position attends to itself at any tau: residual path and feed-forward layers run as ever."""
    assert torch.allclose(model(idx, tau=1e9)[:, 0], model(idx)[:, 0], atol=1e-5)


# ------------------------------------------------------------------- 4 equal entropy rise, unequal NLL rise
def test_the_same_smoothing_costs_a_fact_and_spares_a_function_word():
    """One head, four keys, 50 tokens, gain 8. The fact has the vote of one key, the function word of all four."""
    scores, gain = torch.tensor([3.0, 0.0, 0.0, 0.0]) * 1.525, 8
    votes = {"fact": torch.tensor([1.0, 0, 0, 0]), "function": torch.ones(4)}
    entropies, nll = [], {"fact": [], "function": []}
    for tau in (1.0, 1e9):
        weights = attention(scores, tau)
        entropies.append(entropy(weights).item())
        for kind, vote in votes.items():
            logits = torch.zeros(50)
            logits[0] = gain * weights @ vote
            nll[kind].append(F.cross_entropy(logits, torch.tensor(0)).item())
    assert torch.allclose(attention(scores, 1.0), torch.tensor([0.97, 0.01, 0.01, 0.01]), atol=1e-3)
    assert entropies == pytest.approx([0.168, 1.386], abs=2e-3)
    assert nll["fact"] == pytest.approx([0.021, 2.033], abs=2e-3)
    assert nll["function"] == pytest.approx([0.016, 0.016], abs=2e-3)
