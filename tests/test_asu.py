"""The losses, the frozen theta_0 and the unlearning loop."""

import copy
import re
import sys

import pytest
import torch
import torch.nn.functional as F

import asu
import data
from lab.answers import answer_logp, answer_nll
from lab.optim import Log, lr_at
from tests.conftest import TINY, call, flat, small_model


def random_logp(seed, B=2, T=3, V=7):
    return torch.randn(B, T, V, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)


def settings(**changes):
    return dict(tau=4.0, epochs=2, lr=1e-3, batch_size=8, seed=1) | changes


def unlearned(examples, model=None, **changes):
    """The first eight examples unlearned, the others retained -> (model, record)"""
    log = Log("test")
    return asu.unlearn(model or small_model(), examples[:8], examples[8:], log=log, **settings(**changes)), log.record


def teacher_of(model, examples, *args, loss=asu.asu, **kw):
    """A Frozen that knows what the loss wants to know about the examples."""
    theta_0 = asu.Frozen(model, *args, **kw)
    theta_0.remember(loss, examples)
    return theta_0


def gradients(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@torch.no_grad()
def move(model):
    for p in model.parameters():
        p.add_(torch.randn_like(p))


# ------------------------------------------------------------------------------------------------- losses
def test_forward_kl_is_teacher_first_and_a_mean_of_means():
    teacher, student = random_logp(0), random_logp(1)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    kl = lambda p, q: sum(pi.exp() * (pi - qi) for pi, qi in zip(p, q))
    first = (kl(teacher[0, 0], student[0, 0]) + kl(teacher[0, 1], student[0, 1])) / 2
    by_hand = (first + kl(teacher[1, 0], student[1, 0])) / 2
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
    nll, logp = answer_nll(model, batch), answer_logp(model, batch)
    looked = asu.look(model, asu.Frozen(model), examples[:4], lambda logp, nll, s, mask, target: None)[0]
    for row, example in enumerate(examples[:4]):
        full = torch.tensor([example.prompt + example.answer])
        every = model(full[:, :-1]).log_softmax(-1)[0, len(example.prompt) - 1:]
        expected = -every.gather(-1, full[0, len(example.prompt):, None])[:, 0]
        A = len(expected)
        for ours in (nll, looked["nll"]):
            assert torch.allclose(ours[row, :A], expected, atol=1e-5) and (ours[row, A:] == 0).all()
        for ours in (logp, looked["logp"]):
            assert torch.allclose(ours[row, :A], every, atol=1e-5)
        assert looked["s"][row].item() == pytest.approx(-expected.sum().item(), abs=1e-3)
        assert looked["target"][row, :A].tolist() == example.answer and looked["mask"][row].sum() == A


def test_prompt_and_padding_change_no_loss_and_get_no_weight(model, examples):
    pair = sorted(examples, key=len)[::len(examples) - 1]           # the shortest beside the longest: much padding
    batch = data.collate(pair)
    loss = lambda b: data.mean_over_answers(answer_nll(model, b), b.mask)
    alone = [loss(data.collate([e])).item() for e in pair]
    assert loss(batch).item() == pytest.approx(sum(alone) / 2, abs=1e-5)
    padded = copy.deepcopy(batch)
    padded.idx[0, len(pair[0]) - 1:] = 7
    assert loss(padded).item() == pytest.approx(loss(batch).item(), abs=1e-6)
    logits = model.lm_head(model.hidden(batch.idx)).detach().requires_grad_()
    picked = batch.at_answers(logits).transpose(1, 2)
    data.mean_over_answers(F.cross_entropy(picked, batch.target, reduction="none") * batch.mask, batch.mask).backward()
    used = logits.grad.abs().sum(-1) > 0
    for row, e in enumerate(pair):
        assert used[row].nonzero()[:, 0].tolist() == list(range(len(e.prompt) - 1, len(e) - 1))


# ------------------------------------------------------------------------------------------------- theta_0
@pytest.mark.parametrize("tau, layers", [(4.0, None), (4.0, [1]), ([[1.0, 2.0, 3.0, 4.0]] * 2, None), (1.0, None)])
def test_cached_teacher_equals_live_teacher(model, examples, tau, layers):
    live, cached = (teacher_of(model, examples, tau, layers, live=live) for live in (True, False))
    part = [examples[i] for i in (0, len(examples) - 1, 5)]
    batch = data.collate(part)
    with torch.no_grad():
        expected = answer_logp(model, batch, tau=tau, layers=layers)
    move(model)                                             # the student moves on, the teacher must not
    one, other = (theta_0.teacher("logp", part, batch) for theta_0 in (live, cached))
    assert not one.requires_grad and not other.requires_grad
    assert torch.allclose(one[batch.mask], other[batch.mask], atol=1e-5)
    assert torch.allclose(one[batch.mask], expected[batch.mask], atol=1e-5)


@pytest.mark.parametrize("live", [True, False])
def test_at_tau_one_loss_and_gradient_are_zero(model, examples, live):
    def loss(tau):
        theta_0 = teacher_of(model, examples[:6], tau, live=live)
        return asu.asu(**asu.look(model, theta_0, examples[:6], asu.asu)[0])
    at_one = loss(1.0)
    at_one.backward()
    assert abs(at_one.item()) < 1e-6 and gradients(model).abs().max() < 1e-5
    assert loss(4.0).item() > 1e-3


def test_theta_0_is_not_asked_again_once_the_student_has_moved(model, examples):
    """The states that are kept are those of the first weights, and of the example they are looked up by."""
    theta_0 = teacher_of(model, examples, 4.0, loss=lambda teacher_logp, reference_hidden: None, hidden_layer=1)
    part = examples[3:9]
    batch = data.collate(part)
    with torch.no_grad():
        logp = [answer_logp(model, data.collate([e]), tau=4.0)[0] for e in part]
        hidden = [model.hidden(data.collate([e]).idx, n_layers=1)[0, len(e.prompt) - 1:] for e in part]
    move(model)
    for row, e in enumerate(part):
        A = len(e.answer)
        assert torch.allclose(theta_0.says("teacher", "logp", part, batch)[row, :A], logp[row], atol=1e-5)
        assert torch.allclose(theta_0.says("reference", "hidden", part, batch)[row, :A], hidden[row], atol=1e-5)


# ---------------------------------------------------------------------------------------------- unlearning
@torch.no_grad()
def step_by_hand(model, theta_0, forget, retain, retain_loss, c_forget, c_retain, lr, tau):
    """One step of plain gradient descent on c_forget L_ASU + c_retain L_retain, example by example."""
    def logp(model, e, **kw):
        return model(torch.tensor([e.prompt + e.answer])[:, :-1], **kw).log_softmax(-1)[0, len(e.prompt) - 1:]

    def kl(p, q):
        return (p.exp() * (p - q)).sum(-1).mean()
    with torch.enable_grad():
        loss = c_forget * sum(kl(logp(theta_0, e, tau=tau).detach(), logp(model, e)) for e in forget) / len(forget)
        for e in retain:
            term = -logp(model, e).gather(-1, torch.tensor(e.answer)[:, None]).mean()
            if retain_loss == "kl":
                term = kl(logp(theta_0, e).detach(), logp(model, e))
            loss = loss + c_retain * term / len(retain)
    for p, g in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters()))):
        p -= lr * g
    return loss.item()


def plain_descent(model, lr, *_):
    return torch.optim.SGD(model.parameters(), lr)


@pytest.mark.parametrize("c_forget, c_retain", [(1.0, 1.0), (3.0, 0.5)])
@pytest.mark.parametrize("retain_loss", ["gd", "kl"])
@pytest.mark.parametrize("teacher, micro_batches", [("cached", 1), ("cached", 3), ("live", 3)])
def test_three_steps_are_those_of_the_written_objective(examples, monkeypatch, c_forget, c_retain, retain_loss, teacher,
                                                        micro_batches):
    """By gradient descent worked out from the formulas: teacher at tau, student at 1, theta_0 fixed."""
    monkeypatch.setattr(asu, "adamw", plain_descent)
    forget, retain, log = examples[:8], examples[20:28], Log("test")
    ours, theta_0, model = small_model(), small_model(), small_model()
    asu.unlearn(ours, forget, retain, log=log, teacher=teacher, micro_batches=micro_batches, retain_loss=retain_loss,
                c_forget=c_forget, c_retain=c_retain, grad_clip=1e9, **settings(epochs=3, lr=0.05, warmup=0.5))
    for step, point in enumerate(log.record["curve"]):
        lr = lr_at(step, 3, 0.05, 0.5)
        loss = step_by_hand(model, theta_0, forget, retain, retain_loss, c_forget, c_retain, lr, 4.0)
        assert point["loss"] == pytest.approx(loss, rel=1e-4)
        total = c_forget * point["forget_loss"] + c_retain * point["retain_loss"]
        assert point["loss"] == pytest.approx(total, rel=1e-6)
    assert step == 2 and torch.allclose(flat(ours), flat(model), atol=2e-5)
    assert (flat(model) - flat(theta_0)).abs().max() > 5e-3


def test_a_weight_of_zero_leaves_its_term_out(examples):
    without = unlearned(examples, retain_loss="none")[0]
    assert torch.equal(flat(unlearned(examples, c_retain=0.0)[0]), flat(without))
    one, other = (unlearned(examples, c_forget=0.0, tau=tau)[0] for tau in (4.0, 8.0))
    assert torch.equal(flat(one), flat(other)) and not torch.equal(flat(one), flat(unlearned(examples)[0]))


def test_gradients_are_clipped(examples):
    """Far below Adam's epsilon, 1e-8, a clipped gradient moves nothing."""
    start = flat(small_model())
    still, free = (flat(unlearned(examples, grad_clip=clip, weight_decay=0.0)[0]) for clip in (1e-15, 1.0))
    assert (still - start).abs().max() < 1e-6 and (free - start).abs().max() > 1e-3


def test_weight_decay_shrinks_matrices_and_nothing_else(examples):
    """With no gradient left, a step at learning rate lr multiplies a matrix by 1 - lr * weight_decay; norms stay."""
    model, record = unlearned(examples, grad_clip=1e-15, weight_decay=0.5, lr=0.1, epochs=6)
    shrunk = 1.0
    for step in range(6):
        shrunk *= 1 - 0.5 * lr_at(step, 6, 0.1, 0.1)
    assert record["steps"] == 6 and shrunk < 0.9
    for before, after in zip(small_model().parameters(), model.parameters()):
        assert torch.allclose(after, before * (shrunk if before.dim() == 2 else 1), rtol=1e-4, atol=1e-5)


def test_unlearning_at_tau_one_changes_nothing(model, examples, capsys):
    before = copy.deepcopy(model.state_dict())
    _, record = unlearned(examples, model, tau=1.0)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert record["curve"] == [] and record["steps"] == record["tokens"] == 0
    assert "nothing changes" in capsys.readouterr().out


@pytest.mark.parametrize("retain_loss", ["gd", "kl", "none"])
def test_cached_and_live_teacher_train_the_same(examples, retain_loss):
    curves = []
    for teacher in ("cached", "live"):
        _, record = unlearned(examples, retain_loss=retain_loss, teacher=teacher)
        curves.append([point["loss"] for point in record["curve"]])
    assert curves[0] == pytest.approx(curves[1], abs=1e-5) and len(curves[0]) == 2


@pytest.mark.parametrize("retain_loss, key", [("none", "forget_loss"), ("gd", "retain_loss")])
def test_unlearning_lowers_each_of_its_losses(examples, retain_loss, key):
    start = small_model()
    model, record = unlearned(examples, start, retain_loss=retain_loss, epochs=60, lr=3e-3)
    assert model is start
    assert record["curve"][-1][key] < 0.7 * record["curve"][0][key]


def test_micro_batches_are_one_batch(examples):
    """After one optimiser step from one batch of unequal micro-batches (3, 3, 2)."""
    one, three = (flat(unlearned(examples, micro_batches=parts, epochs=1, lr=1e-2)[0]) for parts in (1, 3))
    assert torch.allclose(one, three, atol=2e-5)
    assert (one - flat(small_model())).abs().max() > 5e-3


def test_the_seed_fixes_the_weights(examples):
    first, second, other = (flat(unlearned(examples, seed=seed)[0]) for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_the_record_counts_steps_and_tokens(examples):
    """Tokens are those the student runs over, padding and all: of the forget and the retain rows of every step."""
    forget = [data.Example([1] * 9, [2] * 4)] * 8
    log = Log("test")
    asu.unlearn(small_model(), forget, [data.Example([1] * 5, [2] * 3)] * 2, log=log,
                **settings(epochs=3, batch_size=3))
    assert log.record["steps"] == 9 and log.record["tokens"] == 3 * 8 * (12 + 7)
    assert [point["step"] for point in log.record["curve"]] == [3, 6, 9]


def test_each_forget_batch_meets_fresh_retain_rows(examples, monkeypatch):
    """An epoch passes over the forget set once; retain rows repeat only when all have been drawn."""
    seen, collate = [], data.collate
    monkeypatch.setattr(data, "collate", lambda rows, device="cpu": seen.append(rows) or collate(rows, device))
    forget, retain = examples[:6], examples[6:21]
    asu.unlearn(small_model(), forget, retain, teacher="live", **settings(epochs=5, batch_size=4))
    forget_rows = [e for rows in seen[0::2] for e in rows]
    retain_rows = [e for rows in seen[1::2] for e in rows]
    assert len(forget_rows) == len(retain_rows) == 30
    for epoch in range(5):
        assert sorted(map(id, forget_rows[epoch * 6:epoch * 6 + 6])) == sorted(map(id, forget))
    assert sorted(map(id, retain_rows[:15])) == sorted(map(id, retain)) == sorted(map(id, retain_rows[15:]))
    assert list(map(id, retain_rows[:15])) != list(map(id, retain_rows[15:]))


# ------------------------------------------------------------------------------------------- what is refused
@pytest.mark.parametrize("changes, message", [
    ({"tau": [2.0, 3.0, 4.0]}, "table of heads"),
    ({"tau": 0.0}, "above 0"), ({"tau": float("nan")}, "above 0"), ({"layers": []}, "empty"),
    ({"layers": [9]}, "layers 0 to 1"), ({"retain_loss": "GD"}, "choose from"), ({"teacher": "dead"}, "choose from"),
    ({"tau": None}, "asu needs tau, the attention temperature"),
    ({"tau": None, "method": "asu_hidden"}, "asu_hidden needs tau, the attention temperature")])
def test_bad_settings_are_refused(model, examples, changes, message):
    with pytest.raises(ValueError, match=message):
        unlearned(examples, model, **changes)


def test_a_method_without_a_teacher_needs_no_tau(examples):
    one, other = (unlearned(examples, method="npo", tau=tau)[0] for tau in (None, 8.0))
    assert torch.equal(flat(one), flat(other)) and not torch.equal(flat(one), flat(small_model()))


def test_empty_sets_and_long_rows_are_refused(model, examples):
    with pytest.raises(ValueError, match="must not be empty"):
        asu.unlearn(model, [], examples, **settings())
    with pytest.raises(ValueError, match="must not be empty"):
        asu.unlearn(model, examples, [], **settings())
    with pytest.raises(ValueError, match="do not fit the model's context of 64"):
        asu.unlearn(model, [data.Example([1] * 60, [2] * 6)], examples, **settings())


def test_a_loss_that_is_not_finite_names_the_step(examples):
    model = small_model()
    with torch.no_grad():
        model.norm.weight[0] = float("inf")
    with pytest.raises(ValueError, match="at step 1 of 2"):
        unlearned(examples, model)


def test_a_hidden_teacher_that_is_the_model_itself_is_refused(model, examples):
    with pytest.raises(ValueError, match="after 1 layers is the model's own"):
        unlearned(examples, model, method="asu_hidden", tau=8.0, layers=[1], hidden_layer=1)
    with pytest.raises(ValueError, match="hidden_layer=3: the model has 2 layers"):
        unlearned(examples, model, method="asu_hidden", tau=8.0, hidden_layer=3)


# ---------------------------------------------------------------------------------------- ours: a stronger teacher
def test_extrapolation_goes_through_the_smoothed_model_and_on(model, examples):
    batch = data.collate(examples[:2])
    at = {alpha: teacher_of(model, examples[:2], 4.0, alpha=alpha).teacher("logp", examples[:2], batch)[batch.mask]
          for alpha in (0.0, 1.0, 2.0)}
    with torch.no_grad():
        teacher, reference = (answer_logp(model, batch, tau=tau)[batch.mask] for tau in (4.0, 1.0))
    assert torch.allclose(at[1.0], teacher, atol=1e-5) and torch.allclose(at[0.0], reference, atol=1e-5)
    odds = lambda logp: logp - logp[:, :1]
    assert torch.allclose(odds(at[2.0]), 2 * odds(teacher) - odds(reference), atol=1e-4)
    assert torch.allclose(at[2.0].logsumexp(-1), torch.zeros(len(teacher)), atol=1e-5)


@pytest.mark.parametrize("live", [True, False])
def test_the_hidden_states_of_a_stronger_teacher_lie_beyond_the_smoothed_models(model, examples, live):
    theta_0 = teacher_of(model, examples[:2], 4.0, alpha=2.0, loss=asu.asu_hidden, hidden_layer=1, live=live)
    batch = data.collate(examples[:2])
    with torch.no_grad():
        smoothed, plain = (batch.at_answers(model.hidden(batch.idx, tau=tau, n_layers=1)) for tau in (4.0, 1.0))
    made = theta_0.teacher("hidden", examples[:2], batch)
    assert torch.allclose(made[batch.mask], (2 * smoothed - plain)[batch.mask], atol=1e-5)


@pytest.mark.parametrize("teacher", ["cached", "live"])
def test_unlearning_follows_the_extrapolated_teacher(examples, teacher):
    plain, stronger = (unlearned(examples, teacher=teacher, alpha=alpha)[1] for alpha in (1.0, 2.0))
    assert stronger["curve"][0]["forget_loss"] > 1.2 * plain["curve"][0]["forget_loss"]


# -------------------------------------------------------------------------------------------------- flags
@pytest.mark.parametrize("flags, unused", [
    ("--method=npo --tau=8", "--tau"), ("--method=npo --tau 8", "--tau"), ("--method=npo", None), ("--tau=8", None),
    ("--method=npo --layers=1 --hidden_layer=1", "--layers, --hidden_layer"), ("--hidden_layer=1", "--hidden_layer"),
    ("--method=rmu --hidden_layer=1 --alpha=1.2", "--alpha"), ("--target=hidden --hidden_layer=1 --heads=all", None),
    ("--base=x", "--base"), ("--base=x --start=0.5", None), ("--heal_lr=1", "--heal_lr"),
    ("--heal_lr=1 --heal=2", None),
    ("--teacher_from=original", "--teacher_from"), ("--teacher_from=original --tasks=2", None),
    ("--retain=none --replay=1 --c_retain=2", "--c_retain, --replay"), ("--replay=1 --c_retain=2", None),
    ("--method=simnpo --teacher=live", "--teacher"), ("--method=npo --teacher=live", None),
    ("--method=simnpo --retain=kl --teacher=live", None)])
def test_a_flag_that_is_given_and_not_used_is_named(monkeypatch, capsys, flags, unused):
    monkeypatch.setattr(sys, "argv", ["asu.py", *flags.split()])
    asu.parse()
    printed = capsys.readouterr().out
    assert re.findall("does not use (.*)\n", printed) == ([unused] if unused else [])


def test_every_flag_of_unlearning_arrives(out, tmp_path, monkeypatch):
    """What main hands to unlearn, flag by flag; none of these values is a default."""
    given = dict(alpha=1.5, c_forget=2.0, c_retain=3.0, epochs=4, lr=0.5, batch_size=6, micro_batches=2, warmup=0.25,
                 weight_decay=0.125, grad_clip=7.0, optimizer_dtype="float32", seed=9, teacher="live", hidden_layer=2)
    arrived = {}

    def recorder(model, forget, retain, **kw):
        arrived.update(kw, forget=forget, retain=retain, checkpointing=model.checkpointing)
    monkeypatch.setattr(asu, "unlearn", recorder)
    call(asu, TINY, f"--run={out / 'target'}", f"--out={tmp_path}", "--tau=3", "--layers=1-", "--retain=kl",
         "--phrasings=2",
         "--checkpointing", "--method=asu_idk", *(f"--{flag}={value}" for flag, value in given.items()))
    assert {flag: arrived[flag] for flag in given} == given
    assert arrived["tau"] == 3 and arrived["layers"] == [1] and arrived["checkpointing"]
    assert (arrived["method"], arrived["retain_loss"], arrived["beta"]) == ("asu_idk", "kl", None)
    assert len(arrived["forget"]) == 2 * 20 * 2 and len(arrived["retain"]) == 18 * 20 * 2
    assert len(arrived["refusals"]) == len(data.REFUSALS) and arrived["teacher_model"] is None
    call(asu, TINY, f"--run={out / 'target'}", f"--out={tmp_path}", "--method=simnpo", "--beta=0.25")
    assert arrived["beta"] == 0.25 and arrived["layers"] is None and arrived["epochs"] == 2
