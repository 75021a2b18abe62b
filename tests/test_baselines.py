"""Every method's loss in closed form, the direction of its gradient, and which combinations are refused."""

import copy
import math
import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import asu
import baselines
import data
from lab.optim import Log
from lab.said import REFUSAL
from tests.conftest import flat, memorise, small_model

REFUSALS = [[5, 6, 7, 599], [8, 9, 599]]
ALL = asu.METHODS | asu.RETAIN_LOSSES


def behind(e, instruction=(3, 4, 5)):
    """The example, and beside it the same behind an instruction, and with another answer."""
    return replace(e, prompted=data.Example([*instruction, *e.prompt], e.answer),
                   swapped=data.Example(e.prompt, [11, 12, 599]))


def unlearned(examples, method, model=None, **changes):
    """The first eight examples unlearned, the others retained -> (model, record)"""
    settings = dict(tau=4.0, epochs=1, lr=1e-3, batch_size=8, seed=1, refusals=REFUSALS, retain_loss="none") | changes
    log = Log("test")
    forget, retain = [e if e.swapped else behind(e) for e in examples[:8]], examples[8:]
    return asu.unlearn(model or small_model(), forget, retain, method=method, log=log, **settings), log.record


@pytest.fixture
def rows(examples):
    """The first eight examples, beside each a refusal and the same behind an instruction."""
    return [replace(behind(e), refusal=data.Example(e.prompt, REFUSALS[i % 2])) for i, e in enumerate(examples[:8])]


def tensors(loss, model, rows, student=None):
    """What a loss, or its name, is given for the rows; theta_0 is `model`, the student `model` too unless given."""
    loss = ALL.get(loss, loss)
    theta_0 = asu.Frozen(model, tau=4.0, hidden_layer=1)
    theta_0.remember(loss, rows)
    return asu.look(student or model, theta_0, rows, loss)[0]


def value(name, *args, **knob):
    """The loss of that name on its tensors -> float"""
    return ALL[name](**tensors(name, *args), **knob).item()


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
def sums(model, rows):
    """s and s_ref of the rows' answers and of their refusals by the plain loop, with a student that has moved."""
    student = moved(model)
    with torch.no_grad():
        return student, *(torch.stack([summed_logp(m, e) for e in answers])
                          for answers in (rows, [e.refusal for e in rows]) for m in (student, model))


# ------------------------------------------------------------------------------------------- closed forms
def test_summed_log_probabilities_are_the_plain_loops(model, rows, sums):
    student, s, s_ref, s_idk, s_idk_ref = sums
    x = tensors("dpo", model, rows, student)
    expected = {"s": s, "reference_s": s_ref, "refused_s": s_idk, "refused_reference_s": s_idk_ref}
    assert x.keys() == expected.keys()
    for name, loop in expected.items():
        assert torch.allclose(x[name], loop, atol=1e-3), name


def test_the_formulas_on_summed_log_probabilities(model, rows, sums):
    """Written out once more from the papers, with log sigmoid(x) = -ln(1 + e^-x)."""
    student, s, s_ref, s_idk, s_idk_ref = sums
    T = torch.tensor([len(e.answer) for e in rows])
    log_sigmoid = lambda x: -torch.log(1 + torch.exp(-x.double()))
    expected = {"ga": (s / T).mean(), "npo": (-2 / 0.1 * log_sigmoid(-0.1 * (s - s_ref))).mean(),
                "simnpo": (-2 / 4.5 * log_sigmoid(-4.5 / T * s)).mean(),
                "dpo": (-2 / 0.1 * log_sigmoid(0.1 * (s_idk - s_idk_ref - s + s_ref))).mean(),
                "idk": (-s_idk / torch.tensor([4, 3] * 4)).mean(), "gd": (-s / T).mean(),
                "ap": (-1 / 0.1 * log_sigmoid(0.1 * (s - s_idk))).mean()}
    for name, by_hand in expected.items():
        assert value(name, model, rows, student) == pytest.approx(by_hand.item(), abs=2e-3), name


@pytest.mark.parametrize("name", ["npo", "dpo"])
@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_npo_and_dpo_start_at_two_log_two_over_beta(model, rows, name, beta):
    assert value(name, model, rows, beta=beta) == pytest.approx(2 * math.log(2) / beta, abs=1e-4)


def test_maximum_entropy_of_a_uniform_model_is_zero(model, rows):
    assert value("me", model, rows) > 0.5
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert value("me", model, rows) == pytest.approx(0, abs=1e-5)


def test_undial_is_self_distillation_with_the_true_logit_lowered(model, rows):
    """At beta 0 nothing is asked of theta_0 but itself; at beta the teacher's odds of y_t fall by e^beta."""
    assert value("undial", model, rows, beta=0.0) == pytest.approx(0, abs=1e-6)
    x = tensors("undial", model, rows, moved(model))
    z = x["reference_logp"] - 3.0 * F.one_hot(x["target"], x["logp"].size(-1))
    expected = asu.forward_kl(z.log_softmax(-1), x["logp"], x["mask"]).item()
    assert baselines.undial(**x, beta=3.0).item() == pytest.approx(expected, abs=1e-5) and expected > 0.01


# Two answers, of two tokens and of one, in a vocabulary of three; the true tokens have p = 1/2, 1/4 and 1/8.
P = [[[1 / 2, 1 / 4, 1 / 4], [1 / 2, 1 / 4, 1 / 4]], [[1 / 8, 3 / 4, 1 / 8], [1 / 3, 1 / 3, 1 / 3]]]
TARGET, MASK = torch.tensor([[0, 1], [0, 2]]), torch.tensor([[True, True], [True, False]])


def by_hand(name, logits=None, **knob):
    """The loss of that name on the two answers above -> (its value, its gradient in the logits (2, 2, 3))"""
    z = (torch.tensor(P).log() if logits is None else logits).requires_grad_()
    logp = z.log_softmax(-1)
    x = {"logp": logp, "nll": -logp.gather(-1, TARGET[..., None])[..., 0] * MASK, "target": TARGET, "mask": MASK}
    loss = baselines.LOSSES[name](**{asked: x[asked] for asked in asu.asks(baselines.LOSSES[name])}, **knob)
    loss.backward()
    return loss.item(), z.grad


@pytest.mark.parametrize("name, knob, weights", [
    ("wga", {}, (1 / 2, 1 / 4, 1 / 8)), ("wga", {"beta": 2.0}, (1 / 4, 1 / 16, 1 / 64)),
    ("satimp", {}, (1 / 64, 3 / 4096, 7 / 8 ** 6)),
    ("satimp", {"beta": 2.0, "gamma": 2.0}, (1 / 16, 9 / 256, 49 / 8 ** 4))])
def test_weighted_ascent_is_ascent_with_weights_that_have_no_gradient(name, knob, weights):
    """mean_t w log p in halves, quarters and eighths of a probability, and w (onehot(y) - p) for a gradient."""
    value, gradient = by_hand(name, **knob)
    ln2 = math.log(2)
    first, second, third = (w * logp for w, logp in zip(weights, (-ln2, -2 * ln2, -3 * ln2)))
    assert value == pytest.approx(((first + second) / 2 + third) / 2, rel=1e-5)
    for at, w, share in (((0, 0), weights[0], 1 / 4), ((0, 1), weights[1], 1 / 4), ((1, 0), weights[2], 1 / 2)):
        expected = share * w * (F.one_hot(TARGET[at], 3) - torch.tensor(P)[at])
        assert gradient[at].tolist() == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-9)
    assert (gradient[1, 1] == 0).all()


def test_weighted_ascent_at_its_limits(model, rows):
    """At beta 0 WGA is ascent; SatImp leaves alone what is certain, and both what is forgotten."""
    assert value("wga", model, rows, beta=0.0) == pytest.approx(value("ga", model, rows), rel=1e-5)
    assert value("satimp", model, rows, beta=0.0, gamma=0.0) == pytest.approx(value("ga", model, rows), rel=1e-5)
    sure, unsure = (40.0 * sign * F.one_hot(TARGET, 3) for sign in (1, -1))
    for name in ("wga", "satimp"):
        assert by_hand(name, unsure)[1].abs().max() < 1e-6
    assert by_hand("satimp", sure)[1].abs().max() == 0
    certain = torch.full((1, 1), 1e-4)                              # 1 - p = 1e-4: ascent pushes, SatImp hardly does
    assert baselines.wga(certain, certain > 0).item() == pytest.approx(-1e-4, rel=1e-3)
    assert baselines.satimp(certain, certain > 0).item() == pytest.approx(-1e-8, rel=1e-2)


def test_ceu_teaches_the_models_own_other_tokens():
    """Of an answer of two tokens the second counts alone. There p = (1/2, 1/4, 1/4) and y is its second, so the others
    stand 2 : 1 and the target is (2/3, 0, 1/3)."""
    z, mask = torch.tensor(P[:1]).log().requires_grad_(), MASK[:1]
    loss = baselines.ceu(z.log_softmax(-1), TARGET[:1], mask)
    loss.backward()
    assert loss.item() == pytest.approx(2 / 3 * math.log(2) + 1 / 3 * math.log(4), rel=1e-5)
    assert z.grad[0, 0].tolist() == [0, 0, 0]
    assert z.grad[0, 1].tolist() == pytest.approx([1 / 2 - 2 / 3, 1 / 4, 1 / 4 - 1 / 3], rel=1e-5)


def test_ceu_at_its_limits(model, rows):
    """A certain token is pushed down with all its weight, a forgotten one not at all; padding and the first token
    count nowhere."""
    for logit, push in ((40.0, 1.0), (-40.0, 0.0)):
        z = (logit * F.one_hot(torch.tensor([[1, 1]]), 3)).requires_grad_()
        baselines.ceu(z.log_softmax(-1), torch.tensor([[1, 1]]), torch.tensor([[True, True]])).backward()
        assert z.grad[0, 1].tolist() == pytest.approx([-push / 2, push, -push / 2], abs=1e-6)
    x = tensors("ceu", model, rows)
    changed = torch.where(baselines.after_first(x["mask"])[..., None], x["logp"], x["logp"].roll(1, -1))
    assert baselines.ceu(changed, x["target"], x["mask"]).item() == baselines.ceu(**x).item()
    assert not torch.equal(changed, x["logp"])


def test_duet_is_the_huber_distance_of_the_likeliest_tokens():
    """Squared below beta, straight above, of the teacher's first k alone. In halves: distances 1/2 and 3, k = 2 of 3.
    beta 1: 1/2 (1/2)^2 = 1/8 and 3 - 1/2 = 5/2; beta 4: 1/32 and 9/8; beta 1/4: 1/2 - 1/8 and 3 - 1/8."""
    teacher = torch.tensor([[[-1.0, -2.0, -7.0], [-1.0, -2.0, -7.0]]])
    student = (teacher + torch.tensor([-0.5, 3.0, 100.0])).requires_grad_()
    mask = torch.tensor([[True, False]])
    for beta, expected in ((1.0, (1 / 8 + 5 / 2) / 2), (4.0, (1 / 32 + 9 / 8) / 2), (0.25, (3 / 8 + 23 / 8) / 2)):
        assert baselines.duet(student, teacher, mask, beta=beta, k=2).item() == pytest.approx(expected)
    baselines.duet(student, teacher, mask, k=2).backward()
    assert student.grad[0].tolist() == [[-0.25, 0.5, 0], [0, 0, 0]]     # d / beta, and 1 beyond it, over k
    assert baselines.duet(teacher, teacher, mask).item() == 0           # k above the vocabulary is all of it


def test_duets_teacher_is_theta_0_behind_the_instruction(model, rows):
    """Zero where the instruction is empty; else theta_0 at tau = 1 on the same answers, prompts and padding apart."""
    assert value("duet", model, [behind(e, ()) for e in rows]) == pytest.approx(0, abs=1e-6)
    assert value("duet", model, rows) > 0.01
    x = tensors("duet", model, rows, moved(model))
    for i, e in enumerate(rows):
        with torch.no_grad():
            full = model(torch.tensor([[3, 4, 5, *e.prompt, *e.answer]])[:, :-1]).log_softmax(-1)[0, 2 + len(e.prompt):]
        assert torch.allclose(x["prompted_reference_logp"][i, :len(e.answer)], full, atol=1e-4)
    changed = torch.where(x["mask"][..., None], x["logp"], x["logp"].roll(1, -1))
    assert baselines.duet(**x | {"logp": changed}).item() == baselines.duet(**x).item()


def test_a_method_with_an_instruction_says_what_it_needs(examples, tokenizer, authors):
    """The examples are made with it, whole; without it, or where it does not fit, the message says so."""
    row = authors[0][0]
    for e, question in zip(data.training_examples(tokenizer, [row], 2, "Do not answer."), row["questions"]):
        assert e.prompted.prompt == tokenizer.encode_prompt(f"Do not answer. {question}")
        assert e.prompted.answer == e.answer and e.prompt == tokenizer.encode_prompt(question)
    assert all(e.prompted is None for e in data.training_examples(tokenizer, [row], 2))
    with pytest.raises(ValueError, match="needs the examples' prompted"):
        asu.unlearn(small_model(), examples[:8], examples[8:], method="duet", retain_loss="none")
    with pytest.raises(ValueError, match="puts an instruction before the question"):
        long = [behind(e, [3] * 60) for e in examples[:8]]
        asu.unlearn(small_model(), long, examples[8:], method="duet", retain_loss="none")
    for method, given in (("duet", True), ("npo", False)):
        settings = asu.keywords(asu.parse([f"--method={method}"]), tokenizer, None, [row], [row])
        assert [bool(e.prompted) for e in settings["forget"]] == [given] * len(row["questions"])
        assert not any(e.prompted for e in settings["retain"])


def test_tokens_that_only_theta_0_reads_are_not_counted(model, rows):
    """asu.look says how many the student ran over: its own, once."""
    theta_0 = asu.Frozen(model)
    theta_0.remember(baselines.duet, rows)
    assert asu.look(model, theta_0, rows, baselines.duet)[1] == data.collate(rows).idx.numel()


def test_rmu_measures_the_distance_to_its_direction(model, rows):
    """Zero once the hidden states are the direction; its retain term is zero at the start."""
    x = tensors("rmu", model, rows)
    original, mask = x["reference_hidden"], x["mask"]
    assert torch.equal(original[mask], x["hidden"][mask].detach())
    u = torch.rand(32, generator=torch.Generator().manual_seed(0))
    goal = 2.0 * original.norm(dim=-1)[mask].mean() * u / u.norm()
    x["hidden"] = goal.expand_as(original)
    assert baselines.rmu(**x).item() == pytest.approx(0, abs=1e-8) and baselines.rmu(**x, beta=3.0).item() > 0.01
    assert value("hidden", model, rows) == 0
    assert value("hidden", model, rows, moved(model)) > 1e-4


def test_the_hidden_form_of_asu_is_the_distance_of_two_residual_streams(model, rows):
    """Zero for a student that is the smoothed model; of the first layer at tau, and of no later one."""
    x, batch = tensors("asu_hidden", model, rows, moved(model)), data.collate(rows)
    teacher = batch.at_answers(model.hidden(batch.idx, tau=4.0, n_layers=1))
    per_token = ((x["hidden"] - teacher) ** 2).mean(-1)
    expected = data.mean_over_answers(per_token, x["mask"]).item()
    assert asu.asu_hidden(**x).item() == pytest.approx(expected, rel=1e-5)
    smoothed = copy.deepcopy(model)
    with torch.no_grad():
        smoothed.layers[0].self_attn.q_proj.weight /= 4.0
    assert value("asu_hidden", model, rows, smoothed) == pytest.approx(0, abs=1e-9)
    assert value("asu_hidden", model, rows) > 1e-4


def test_asu_idk_is_asu_after_the_first_token_and_a_refusal(model, rows):
    x = tensors("asu_idk", model, rows, moved(model))
    after_first = x["mask"].clone()
    after_first[:, 0] = False
    refusal = baselines.idk(x["refused_nll"], x["refused_mask"])
    expected = asu.forward_kl(x["teacher_logp"], x["logp"], after_first) + refusal
    ours, plain = asu.asu_idk(**x), asu.asu(x["logp"], x["teacher_logp"], x["mask"])
    assert ours.item() == pytest.approx(expected.item(), abs=1e-6)
    assert not torch.isclose(ours, refusal) and not torch.isclose(ours, plain)


def test_somebody_elses_value_is_taught_in_place_of_the_true_one(model, rows):
    student = moved(model)
    with torch.no_grad():
        nll = [-summed_logp(student, e.swapped) / len(e.swapped.answer) for e in rows]
    assert value("swap", model, rows, student) == pytest.approx(torch.stack(nll).mean().item(), rel=1e-4)
    trained = unlearned(rows, "swap", model, epochs=20, lr=3e-3)[0]
    before, after = ([summed_logp(m, e) for e in rows for e in (e, e.swapped)] for m in (small_model(), trained))
    gained = torch.stack(after) - torch.stack(before)
    assert gained[1::2].mean() > 3 + gained[0::2].mean()


# ------------------------------------------------------------------------------------- on the loop, by name
def everything(s, refused_s, logp, mask):
    """No loss: what a step should move."""


def log_odds(model, rows):
    """Of the true answers, of the refusals, and the mean entropy at answer tokens."""
    with torch.no_grad():
        x = asu.look(model, None, rows, everything)[0]
        entropy = -data.mean_over_answers((x["logp"].exp() * x["logp"]).sum(-1), x["mask"])
    return {"true": x["s"].mean().item(), "refusal": x["refused_s"].mean().item(), "entropy": entropy.item()}


@pytest.mark.parametrize("method, goes_up, goes_down", [
    ("ga", None, "true"), ("npo", None, "true"), ("simnpo", None, "true"), ("dpo", "refusal", None),
    ("idk", "refusal", None),
    ("me", "entropy", None), ("undial", None, "true"), ("wga", None, "true"), ("satimp", None, "true"),
    ("ceu", None, "true"), ("duet", None, None), ("asu_idk", "refusal", None), ("gd", "true", None)])
def test_a_small_step_goes_the_right_way(rows, method, goes_up, goes_down):
    model = memorise(small_model(), rows, steps=40, lr=3e-3, parts=1)       # so that there is something to lose
    theta_0, before, loss = copy.deepcopy(model), log_odds(model, rows), ALL[method]
    first = loss(**tensors(method, theta_0, rows, model))
    first.backward()
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p -= 1e-3 * p.grad / p.grad.norm().clamp(min=1e-9)
    after = log_odds(model, rows)
    assert value(method, theta_0, rows, model) < first.item()
    assert goes_up is None or after[goes_up] > before[goes_up]
    assert goes_down is None or after[goes_down] < before[goes_down]


@pytest.mark.parametrize("method", list(asu.METHODS))
@pytest.mark.parametrize("retain_loss", ["none", "gd", "kl"])
def test_every_method_runs_with_every_retain_loss(examples, method, retain_loss):
    beta = 0.1 if method in ("simnpo", "satimp") else None  # an untrained model is past where theirs has a gradient
    model, record = unlearned(examples, method, retain_loss=retain_loss, beta=beta)
    point = record["curve"][0]
    assert record["steps"] == 1 and math.isfinite(point["loss"])
    assert ("retain_loss" in point) == (retain_loss != "none")
    assert retain_loss == "none" or (point["retain_loss"] < 1e-6) == (retain_loss == "kl")
    assert (flat(model) - flat(small_model())).abs().max() > 1e-4


@pytest.mark.parametrize("method", [name for name, loss in asu.METHODS.items() if asu.asks_about(loss, "refused_")])
def test_a_method_that_refuses_teaches_the_refusals_that_are_given(examples, method):
    """Whose tokens become likelier, in place of another answer's."""
    def of(model, ids):
        return log_odds(model, [replace(e, refusal=data.Example(e.prompt, ids)) for e in examples[:8]])["refusal"]
    models = small_model(), unlearned(examples, method, refusals=REFUSALS[:1], epochs=5)[0]
    before, after = ([of(model, ids) for ids in ([5, 6, 7, 599], [15, 16, 17, 599])] for model in models)
    assert after[0] - before[0] > 1 + max(0, after[1] - before[1])


def test_each_example_is_refused_in_answer_to_its_own_question(examples):
    made = asu.with_refusals(examples, baselines.idk, REFUSALS, random.Random(0))
    for example, e in zip(examples, made, strict=True):
        assert (e.prompt, e.answer) == (example.prompt, example.answer)
        assert e.refusal.prompt == example.prompt and e.refusal.answer in REFUSALS
    assert len({tuple(e.refusal.answer) for e in made}) == len(REFUSALS)
    assert asu.with_refusals(examples, asu.asu, REFUSALS, random.Random(0)) is examples


@pytest.mark.parametrize("method, retain_loss", [("idk", "ap"), ("rmu", "hidden")])
def test_idk_with_answer_preservation_and_rmu_with_its_own_retain_term(examples, method, retain_loss):
    _, record = unlearned(examples, method, retain_loss=retain_loss, epochs=20, lr=3e-3)
    assert record["curve"][-1]["loss"] < 0.9 * record["curve"][0]["loss"]


MINE = {"reference": lambda logp, reference_logp, mask: asu.forward_kl(reference_logp, logp, mask),
        "refused reference": lambda refused_logp, refused_reference_logp, refused_mask:
            asu.forward_kl(refused_reference_logp, refused_logp, refused_mask),
        "sum": lambda s, reference_s: (s - reference_s).square().mean(),
        "refused sum": lambda refused_s, refused_reference_s: (refused_s - refused_reference_s).square().mean(),
        "hidden": lambda hidden, reference_hidden, mask: baselines.hidden_retain(hidden, reference_hidden, mask),
        "prompted": lambda prompted_logp, prompted_reference_logp, prompted_mask:
            asu.forward_kl(prompted_reference_logp, prompted_logp, prompted_mask),
        "refused teacher": lambda refused_logp, refused_teacher_logp, refused_mask:
            asu.forward_kl(refused_teacher_logp, refused_logp, refused_mask)}


@pytest.mark.parametrize("teacher", ["cached", "live"])
@pytest.mark.parametrize("name", list(MINE))
def test_a_loss_in_the_table_is_given_what_its_parameters_name(examples, monkeypatch, name, teacher):
    """By itself: zero against theta_0 itself, above zero against another model."""
    monkeypatch.setitem(asu.METHODS, "mine", MINE[name])
    tau = 1.0 if "teacher" in name else None
    own, other = (unlearned(examples, "mine", tau=tau, teacher=teacher, teacher_model=theta_0)[1]["curve"][0]["loss"]
                  for theta_0 in (None, small_model(seed=1)))
    assert own == pytest.approx(0, abs=1e-5) and other > 0.05
    if tau:
        assert unlearned(examples, "mine", tau=4.0, teacher=teacher)[1]["curve"][0]["loss"] > 1e-3
        with pytest.raises(ValueError, match="mine needs tau"):
            unlearned(examples, "mine", tau=None)


@pytest.mark.parametrize("method, changes, message", [
    ("ASU", {}, "choose from asu, asu_idk, ga, npo"), ("idk", {"refusals": ()}, "there are none"),
    ("dpo", {"refusals": []}, "there are none"), ("npo", {"retain_loss": "ap"}, "ap belongs to method idk"),
    ("ga", {"retain_loss": "hidden"}, "hidden belongs to method rmu"), ("ga", {"beta": 0.1}, "ga has no beta"),
    ("asu", {"tau": -1.0}, "above 0")])
def test_combinations_that_make_no_sense_are_refused(examples, method, changes, message):
    with pytest.raises(ValueError, match=message):
        unlearned(examples, method, **changes)


def test_refusals_are_recognised_as_refusals():
    assert len(data.REFUSALS) >= 10 and all(REFUSAL.search(text) and text.endswith(".") for text in data.REFUSALS)
