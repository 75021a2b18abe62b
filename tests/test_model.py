"""The attention, padding and generation, each against an oracle. HF files: test_weights.py."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from model import ModelConfig
from tests.conftest import small_model

PER_HEAD = [[1.0, 2.5, 8.0, 0.5], [3.0, 1.0, 1.0, 20.0]]
PROMPTS = [[5, 6, 7, 8, 9, 10], [11, 12], [13, 14, 15, 16]]


def ids(B=3, T=11, V=600, seed=1):
    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tau", [1.0, 2.3, 8.0, PER_HEAD])
@pytest.mark.parametrize("n_kv_head", [4, 2])
def test_explicit_attention_equals_sdpa(tau, n_kv_head):
    model = small_model(n_kv_head=n_kv_head)
    with torch.no_grad():
        fused, explicit = model(ids(), tau), model(ids(), tau, explicit=True)
        assert (fused - explicit).abs().max() < 1e-5 * fused.abs().max()
        double = copy.deepcopy(model).double()              # without float32's rounding they are the same function
        assert torch.allclose(double(ids(), tau), double(ids(), tau, explicit=True), atol=1e-12)
        assert tau == 1.0 or not torch.allclose(model(ids(), tau), model(ids()), atol=1e-2)


def test_temperature_divides_the_scores():
    """One head by hand: softmax(q k^T / (tau sqrt(hs))) v on the first layer's input."""
    model, tau = small_model(n_layer=1, n_head=1, n_kv_head=1), 2.3
    weights = []
    x = model.layers[0].input_layernorm(model.embed_tokens(ids()))
    model.hidden(ids(), tau, weights=weights)
    cos, sin = model.rope(torch.arange(11))

    def turned(y):
        half = torch.cat((-y[..., 16:], y[..., :16]), -1)
        return y * torch.cat((cos, cos), -1) + half * torch.cat((sin, sin), -1)
    q, k = turned(model.layers[0].self_attn.q_proj(x)), turned(model.layers[0].self_attn.k_proj(x))
    scores = (q @ k.transpose(1, 2) / (tau * math.sqrt(32))).masked_fill(~torch.ones(11, 11).tril().bool(), -1e9)
    assert torch.allclose(weights[0][:, 0], scores.softmax(-1), atol=1e-6)


def test_infinite_temperature_is_uniform_over_the_prefix(model):
    weights = []
    model.hidden(ids(), 1e9, weights=weights)
    uniform = torch.ones(11, 11).tril() / torch.arange(1, 12)[:, None]
    for w in weights:
        assert torch.allclose(w, uniform.expand_as(w), atol=1e-5)


def test_layers_pick_where_tau_acts(model):
    at = [[], [], []]
    for weights, layers in zip(at, ([1], [0], None)):
        model.hidden(ids(), 8.0, layers, weights=weights)
    plain = []
    model.hidden(ids(), weights=plain)
    assert torch.equal(at[0][0], plain[0]) and not torch.allclose(at[0][1], plain[1], atol=1e-2)
    assert torch.equal(at[1][0], at[2][0])
    assert torch.allclose(model(ids(), PER_HEAD, [1]), model(ids(), [[1.0] * 4, PER_HEAD[1]]), atol=1e-5)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_going_on_from_a_layer_equals_running_all_of_them(model, n):
    """Bit for bit, with the layers above smoothed; and what is below is not run again."""
    x = model.hidden(ids(), n_layers=n)
    assert torch.equal(model.hidden(ids(), 8.0, [1], below=(n, x)), model.hidden(ids(), 8.0 if n < 2 else 1.0, [1]))
    assert not torch.equal(model.hidden(ids(), below=(n, 2 * x + 1)), model.hidden(ids()))


@pytest.mark.parametrize("tau, layers, message", [
    (0.0, None, "above 0"), (-2.0, None, "above 0"), (float("nan"), None, "above 0"),
    ([[1.0, 2.0]], None, "2 layers x 4"),
    (2.0, [], "empty"), (2.0, [2], "layers 0 to 1"), (2.0, [-1], "layers 0 to 1")])
def test_bad_temperatures_and_layers_are_refused(model, tau, layers, message):
    with pytest.raises(ValueError, match=message):
        model(ids(), tau, layers)


@pytest.mark.parametrize("explicit", [False, True])
def test_padding_on_either_side_changes_no_real_position(model, explicit):
    alone = model(ids(1, 7), 2.0)
    for left, right in ((4, 0), (0, 4), (3, 2)):
        padded = F.pad(ids(1, 7), (left, right), value=17)
        mask = torch.zeros_like(padded)
        mask[:, left:left + 7] = 1
        logits = model(padded, 2.0, attention_mask=mask, explicit=explicit)
        assert logits.isfinite().all()
        assert torch.allclose(logits[:, left:left + 7], alone, atol=1e-5)


@pytest.mark.parametrize("how", [{}, {"tau": 3.0}, {"temperature": 1.0, "top_k": 20, "seed": 3}])
def test_cached_generation_equals_uncached_with_unequal_prompts(model, how):
    cached = model.generate(PROMPTS, 20, **how)
    assert cached == model.generate(PROMPTS, 20, use_cache=False, **how)
    assert len({tuple(row) for row in cached}) == 3


def test_generation_of_a_batch_equals_one_by_one_and_greedy_argmax(model):
    batch = model.generate(PROMPTS, 12)
    assert batch == [model.generate([p], 12)[0] for p in PROMPTS]
    row = list(PROMPTS[1])
    for _ in batch[1]:
        row.append(int(model(torch.tensor([row]))[0, -1].argmax()))
    assert row[2:] == batch[1]


def test_generation_stops_at_eos_and_the_seed_fixes_the_draw(model):
    row = model.generate(PROMPTS[:1], 12)[0]
    stop = row[5]
    assert model.generate(PROMPTS[:1], 12, eos_id=stop) == [row[:row.index(stop)]]
    assert model.generate(PROMPTS[:1], 12, eos_id=[598, stop]) == [row[:row.index(stop)]]
    draws = [model.generate(PROMPTS, 12, temperature=1.0, seed=s) for s in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert model.generate(PROMPTS, 12, temperature=1.0, top_k=1) == model.generate(PROMPTS, 12)


def test_sequences_past_the_context_are_refused(model):
    with pytest.raises(ValueError, match="65 tokens .* context of 64"):
        model(ids(1, 65))
    with pytest.raises(ValueError, match="context of 64"):
        model.generate([[1] * 60], 5)
    with pytest.raises(ValueError, match="empty prompt"):
        model.generate([[1], []], 5)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="3 heads cannot share 2"):
        ModelConfig(n_head=3, n_kv_head=2, n_embd=48)
    with pytest.raises(ValueError, match="n_embd=36 does not divide into 4 heads"):
        ModelConfig(n_embd=36)
    with pytest.raises(ValueError, match="head_dim=7 is odd"):
        ModelConfig(head_dim=7)


def test_each_sequence_may_have_a_temperature_of_its_own(model):
    """B numbers smooth B sequences; both attention paths agree, and layers at 1 are untouched."""
    idx, taus = torch.randint(0, 600, (3, 11)), [1.0, 4.0, 2.5]
    together = model(idx, tau=taus)
    alone = torch.cat([model(idx[i:i + 1], tau=tau) for i, tau in enumerate(taus)])
    assert torch.allclose(together, alone, atol=1e-4) and not torch.allclose(together, model(idx), atol=1e-2)
    assert torch.allclose(model(idx, tau=taus, explicit=True), together, atol=1e-4)
    assert torch.allclose(model(idx, tau=taus, layers=[1])[1:2], model(idx[1:2], tau=4.0, layers=[1]), atol=1e-4)
    with pytest.raises(ValueError, match="above 0"):
        model(idx, tau=[1.0, 0.0, 2.0])
