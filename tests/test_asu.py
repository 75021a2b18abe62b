"""The losses, the forget-teacher and the unlearning loop."""

import copy

import pytest
import torch
import torch.nn.functional as F

import asu
import data
from lab.answers import answer_nll, ask
from tests.conftest import small_model


def random_logp(seed, B=2, T=3, V=7):
    return torch.randn(B, T, V, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)


def settings(**changes):
    return dict(tau=4.0, epochs=2, lr=1e-3, batch_size=8, seed=1) | changes


def gradients(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_forward_kl_is_teacher_first_and_a_mean_of_means():
    teacher, student = random_logp(0), random_logp(1)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    kl = lambda p, q: sum(pi.exp() * (pi - qi) for pi, qi in zip(p, q))
    by_hand = ((kl(teacher[0, 0], student[0, 0]) + kl(teacher[0, 1], student[0, 1])) / 2 + kl(teacher[1, 0], student[1, 0])) / 2
    assert asu.forward_kl(teacher, student, mask) == pytest.approx(by_hand.item(), abs=1e-6)
    assert asu.forward_kl(student, teacher, mask) != pytest.approx(by_hand.item(), abs=5e-3)
    half, certain = torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[[0.9, 0.1]]]).log()
    expected = 0.5 * torch.log(torch.tensor(0.5 / 0.9)) + 0.5 * torch.log(torch.tensor(0.5 / 0.1))
    assert asu.forward_kl(half, certain, torch.tensor([[True]])) == pytest.approx(expected.item(), abs=1e-6)


def test_masked_positions_get_no_weight():
    teacher, student = random_logp(0), random_logp(1).requires_grad_()
    mask = torch.tensor([[True, True, False], [True, False, False]])
    loss = asu.forward_kl(teacher, student, mask)
    loss.backward()
    assert (student.grad[~mask] == 0).all() and (student.grad[mask] != 0).any()
    changed = torch.where(mask[..., None], student.detach(), random_logp(2))
    assert asu.forward_kl(teacher, changed, mask) == loss.detach()


def test_kl_gradient_is_student_minus_teacher():
    """d KL(p_teacher || softmax(z)) / dz = softmax(z) - p_teacher, one position."""
    teacher, z = random_logp(0, 1, 1), torch.randn(1, 1, 7, requires_grad=True)
    asu.forward_kl(teacher, z.log_softmax(-1), torch.ones(1, 1).bool()).backward()
    assert torch.allclose(z.grad, (z.softmax(-1) - teacher.exp()).detach(), atol=1e-6)


def test_answer_losses_against_the_plain_loop(model, examples):
    """Project every position, then pick: the same numbers as projecting answer positions only."""
    batch = data.collate(examples[:4])
    nll, logp = answer_nll(model, batch), asu.answer_logp(model, batch)
    for row, example in enumerate(examples[:4]):
        full = torch.tensor([example.prompt + example.answer])
        every = model(full[:, :-1]).log_softmax(-1)[0, len(example.prompt) - 1:]
        expected = -every.gather(-1, full[0, len(example.prompt):, None])[:, 0]
        assert torch.allclose(nll[row, :len(expected)], expected, atol=1e-5) and (nll[row, len(expected):] == 0).all()
        assert torch.allclose(logp[row, :len(expected)], every, atol=1e-5)


def test_prompt_and_padding_change_no_loss_and_get_no_weight(model, examples):
    pair = sorted(examples, key=len)[::len(examples) - 1]           # the shortest beside the longest: much padding
    batch = data.collate(pair)
    loss = lambda b: asu.mean_over_answers(answer_nll(model, b), b.mask)
    alone = [loss(data.collate([e])).item() for e in pair]
    assert loss(batch).item() == pytest.approx(sum(alone) / 2, abs=1e-5)
    padded = copy.deepcopy(batch)
    padded.idx[0, len(pair[0]) - 1:] = 7
    assert loss(padded).item() == pytest.approx(loss(batch).item(), abs=1e-6)
    logits = model.lm_head(model.hidden(batch.idx)).detach().requires_grad_()
    picked = batch.at_answers(logits).transpose(1, 2)
    asu.mean_over_answers(F.cross_entropy(picked, batch.target, reduction="none") * batch.mask, batch.mask).backward()
    used = logits.grad.abs().sum(-1) > 0
    for row, e in enumerate(pair):
        assert used[row].nonzero()[:, 0].tolist() == list(range(len(e.prompt) - 1, len(e) - 1))


@pytest.mark.parametrize("tau, layers", [(4.0, None), (4.0, [1]), ([[1.0, 2.0, 3.0, 4.0]] * 2, None), (1.0, None)])
def test_cached_teacher_equals_live_teacher(model, examples, tau, layers):
    live, cached = (asu.TEACHERS[kind](model, examples, tau, layers) for kind in ("live", "cached"))
    with torch.no_grad():
        for p in model.parameters():                                # the student moves on, the teacher must not
            p.add_(torch.randn_like(p))
    numbers = [0, len(examples) - 1, 5]
    batch = data.collate([examples[i] for i in numbers])
    one, other = live(numbers, batch), cached(numbers, batch)
    assert not one.requires_grad and not other.requires_grad
    assert torch.allclose(one[batch.mask], other[batch.mask], atol=1e-5)


def test_at_tau_one_loss_and_gradient_are_zero(model, examples):
    batch, numbers = data.collate(examples[:6]), list(range(6))
    for kind in asu.TEACHERS.values():
        model.zero_grad()
        loss = asu.forward_kl(kind(model, examples)(numbers, batch), asu.answer_logp(model, batch), batch.mask)
        loss.backward()
        assert abs(loss.item()) < 1e-6 and gradients(model).abs().max() < 1e-5
        smoothed = asu.forward_kl(kind(model, examples, 4.0)(numbers, batch), asu.answer_logp(model, batch), batch.mask)
        assert smoothed.item() > 1e-3


def test_unlearning_at_tau_one_changes_nothing(model, examples):
    before, record = copy.deepcopy(model.state_dict()), {}
    asu.unlearn(model, examples[:8], examples[8:], record=record, **settings(tau=1.0))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert record["curve"][0]["forget_loss"] == 0 and record["steps"] == 0


@pytest.mark.parametrize("retain_loss", ["gd", "kl", "none"])
def test_cached_and_live_teacher_train_the_same(examples, retain_loss):
    curves = []
    for teacher in ("cached", "live"):
        record = {}
        asu.unlearn(small_model(), examples[:8], examples[8:], retain_loss=retain_loss, teacher=teacher, record=record,
                    **settings())
        curves.append([point["loss"] for point in record["curve"]])
    assert curves[0] == pytest.approx(curves[1], abs=1e-5) and len(curves[0]) == 2


@pytest.mark.parametrize("retain_loss, key", [("none", "forget_loss"), ("gd", "retain_loss")])
def test_unlearning_lowers_each_of_its_losses(examples, retain_loss, key):
    model, record = small_model(), {}
    assert asu.unlearn(model, examples[:8], examples[8:], retain_loss=retain_loss, record=record,
                       **settings(epochs=60, lr=3e-3)) is model
    assert record["curve"][-1][key] < 0.7 * record["curve"][0][key]


def test_micro_batches_are_one_batch(examples):
    """After one optimiser step from one batch of unequal micro-batches (3, 3, 2)."""
    weights = []
    for parts in (1, 3):
        model = asu.unlearn(small_model(), examples[:8], examples[8:], micro_batches=parts, **settings(epochs=1, lr=1e-2))
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
    start = torch.cat([p.flatten() for p in small_model().parameters()])
    assert torch.allclose(weights[0], weights[1], atol=2e-5)
    assert (weights[0] - start).abs().max() > 5e-3


def test_the_seed_fixes_the_weights(examples):
    runs = [asu.unlearn(small_model(), examples[:8], examples[8:], **settings(seed=s)) for s in (1, 1, 2)]
    first, second, other = (torch.cat([p.flatten() for p in m.parameters()]) for m in runs)
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_each_forget_batch_meets_fresh_retain_rows(examples, monkeypatch):
    """An epoch passes over the forget set once; retain rows repeat only when all have been drawn."""
    seen, collate = [], data.collate
    monkeypatch.setattr(data, "collate", lambda some, device="cpu": seen.append(some) or collate(some, device))
    forget, retain = examples[:6], examples[6:21]
    asu.unlearn(small_model(), forget, retain, teacher="live", **settings(epochs=5, batch_size=4))
    forget_rows = [e for some in seen[0::2] for e in some]
    retain_rows = [e for some in seen[1::2] for e in some]
    assert len(forget_rows) == len(retain_rows) == 30
    for epoch in range(5):
        assert sorted(map(id, forget_rows[epoch * 6:epoch * 6 + 6])) == sorted(map(id, forget))
    assert sorted(map(id, retain_rows[:15])) == sorted(map(id, retain)) == sorted(map(id, retain_rows[15:]))
    assert list(map(id, retain_rows[:15])) != list(map(id, retain_rows[15:]))


@pytest.mark.parametrize("changes, message", [
    ({"tau": 0.0}, "above 0"), ({"tau": float("nan")}, "above 0"), ({"layers": []}, "empty"), ({"layers": [9]}, "layers 0 to 1"),
    ({"retain_loss": "GD"}, "choose from"), ({"teacher": "dead"}, "choose from")])
def test_bad_settings_are_refused(model, examples, changes, message):
    with pytest.raises(ValueError, match=message):
        asu.unlearn(model, examples[:8], examples[8:], **settings(**changes))


def test_empty_sets_and_long_rows_are_refused(model, examples):
    with pytest.raises(ValueError, match="must not be empty"):
        asu.unlearn(model, [], examples, **settings())
    with pytest.raises(ValueError, match="do not fit the model's context of 64"):
        asu.unlearn(model, [data.Example([1] * 60, [2] * 6)], examples, **settings())


def test_a_loss_that_is_not_finite_names_the_step(examples):
    model = small_model()
    with torch.no_grad():
        model.norm.weight[0] = float("inf")
    with pytest.raises(ValueError, match="at step 1 of 2"):
        asu.unlearn(model, examples[:8], examples[8:], **settings())


# ------------------------------------------------------------------------------- ours: stronger, and selective
def test_extrapolation_goes_through_the_smoothed_model_and_on():
    teacher, reference = random_logp(0), random_logp(1)
    at = lambda alpha: asu.extrapolated(lambda *_: teacher, lambda *_: reference, alpha)(None, None)
    assert torch.allclose(at(1.0), teacher, atol=1e-6) and torch.allclose(at(0.0), reference, atol=1e-6)
    odds = lambda x: x[0, 0, 3] - x[0, 0, 5]
    assert odds(at(2.0)) == pytest.approx((2 * odds(teacher) - odds(reference)).item(), abs=1e-5)


def test_the_hidden_states_of_a_stronger_teacher_lie_beyond_the_smoothed_models(model, examples):
    kept = {"numbers": {0, 1}, "n_layers": 1}
    plain, smoothed = asu.cached_states(model, examples, **kept), asu.cached_states(model, examples, tau=4.0, **kept)
    made = asu.theta_0_outputs("asu_hidden", model, examples, {0, 1}, "cached", 4.0, None, alpha=2.0, hidden_layer=1)["teacher_hidden"]
    batch = data.collate(examples[:2])
    assert torch.allclose(made([0, 1], batch), 2 * smoothed([0, 1], batch) - plain([0, 1], batch), atol=1e-5)


@pytest.mark.parametrize("teacher", ["cached", "live"])
def test_unlearning_follows_the_extrapolated_teacher(examples, teacher):
    records = [{}, {}]
    for record, alpha in zip(records, (1.0, 2.0)):
        asu.unlearn(small_model(), examples[:8], examples[8:], record=record, teacher=teacher, alpha=alpha, **settings())
    assert records[1]["curve"][0]["forget_loss"] > 1.2 * records[0]["curve"][0]["forget_loss"]


def test_the_teachers_own_answers_stand_in_for_the_true_ones(model, tokenizer, authors):
    rows = authors[0][:3]
    made = asu.answered_by_teacher(model, tokenizer, rows, 2, 8.0, [1])
    questions = [q for row in rows for q in row["questions"][:2]]
    assert [e.prompt for e in made] == [tokenizer.encode_prompt(q) for q in questions]
    said = ask(model, tokenizer, questions, tau=8.0, layers=[1])
    assert [e.answer for e in made] == [tokenizer.encode_answer(a) for a in said]
    assert said != ask(model, tokenizer, questions)
    with pytest.raises(ValueError, match="passages have no question"):
        asu.answered_by_teacher(model, tokenizer, [{"questions": [""], "answers": ["Bells rang."]}], None, 8.0, None)


def test_a_hidden_teacher_that_is_the_model_itself_is_refused(model, examples):
    with pytest.raises(ValueError, match="after 1 layers is the model's own"):
        asu.unlearn(model, examples[:8], examples[8:], method="asu_hidden", tau=8.0, layers=[1], hidden_layer=1)
    with pytest.raises(ValueError, match="hidden_layer=3: the model has 2 layers"):
        asu.unlearn(model, examples[:8], examples[8:], method="asu_hidden", tau=8.0, hidden_layer=3)
