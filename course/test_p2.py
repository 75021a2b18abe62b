"""Problem 2: the masked forward KL."""

import pytest
import torch

import asu
from course.checking import Live, Speaker, check, close, gradient


def tensors(draw):
    """teacher, student (B, T, V) and mask (B, T), no two sizes equal."""
    B, T, V = draw.sizes(3, 4, 12)
    return draw.logp(B, T, V), draw.logp(B, T, V), draw.mask(B, T)


def loop(p, q, mask):
    """mean over answers of the mean over their tokens of KL(p || q), one token at a time."""
    answers = []
    for b in range(len(mask)):
        tokens = [(p[b, t].exp() * (p[b, t] - q[b, t])).sum() for t in range(mask.size(1)) if mask[b, t]]
        answers.append(sum(tokens) / len(tokens))
    return sum(answers) / len(answers)


@pytest.mark.points(0.5)
def test_the_loss_is_the_formula(draw):
    p, q, mask = tensors(draw)
    ours, expected = asu.forward_kl(p, q, mask), loop(p, q, mask)
    per_token = (p.exp() * (p - q)).sum(-1)
    check(torch.as_tensor(ours).dim() == 0, "one number is needed: mean over tokens, then over answers")
    check(not close(ours, loop(q, p, mask)), "student and teacher are swapped: the teacher comes first, KL(teacher || "
          "student), so the log-ratio is weighed by the teacher's probabilities")
    check(not close(ours, -expected), "the sign is wrong: a KL is never negative")
    check(not close(ours, per_token.mean()), "your loss counts padding: multiply by the mask, and divide by the number "
          "of answer tokens, not by T")
    check(not close(ours, (per_token * mask).sum(1).div(mask.size(1)).mean()), "the mean of an answer is over its own "
          "tokens: divide by mask.sum(1), not by T")
    check(not close(ours, (per_token * mask).sum() / mask.sum()), "the mean is over each answer first, then over "
          "answers: now long answers count more than short ones")
    check(not close(ours, expected / p.size(-1)), "sum over the vocabulary, do not take its mean (reduction='mean' "
          "does)")
    check(not close(ours, (per_token * mask).sum(1).mean()), "each answer is summed over its tokens: take the mean")
    check(close(ours, expected), "the value is not mean over answers of mean over tokens of sum_v p (log p - log q)")


@pytest.mark.points(0.5)
def test_a_student_that_is_the_teacher_has_no_loss(draw):
    p, q, mask = tensors(draw)
    check(close(asu.forward_kl(p, p, mask), 0.0, 1e-6), "the KL of a distribution to itself is 0; is it a "
          "cross-entropy? That keeps the teacher's entropy")
    check(asu.forward_kl(p, q, mask) > 0, "a KL of two different distributions is above 0")


@pytest.mark.points(0.5)
def test_padding_does_not_count(draw):
    p, q, mask = tensors(draw)
    other = torch.where(mask[..., None], q, draw.logp(*q.shape))
    check(close(asu.forward_kl(p, q, mask), asu.forward_kl(p, other, mask)),
          "your loss counts padding: it changes when the student changes where the mask is False")
    longer = [torch.cat((x, draw.logp(x.size(0), 5, x.size(2))), 1) for x in (p, q)]
    wider = torch.cat((mask, torch.zeros(mask.size(0), 5, dtype=torch.bool)), 1)
    check(close(asu.forward_kl(p, q, mask), asu.forward_kl(*longer, wider)),
          "your loss counts padding: more of it changes the loss, so something is divided by T")


@pytest.mark.points(0.5)
def test_the_gradient_is_q_minus_p(draw):
    """In the student's logits z, at each answer token: (softmax(z) - p) / (tokens of the answer * answers)."""
    p, z, mask = tensors(draw)
    share = mask / mask.sum(1, keepdim=True) / len(mask)                                        # (B, T)
    expected = (z.softmax(-1) - p.exp()) * share[..., None]
    ours = gradient(lambda z: asu.forward_kl(p, z.log_softmax(-1), mask), z)
    check(close(ours * ~mask[..., None], torch.zeros_like(z)), "padding has a gradient: the mask is not applied")
    check(not close(ours, -expected, 1e-6), "the sign of the gradient is wrong: a step must lead to the teacher")
    check(close(ours, expected, 1e-5), "the gradient in the logits is not (q - p) at answer tokens; that of the "
          "reverse KL is another one")


def moved(draw):
    """theta_0, a student that has moved away from it, and examples."""
    model = Speaker(draw)
    return model, Speaker(draw, model), draw.examples(5, model.vocab_size)


@pytest.mark.points(0.5)
def test_a_batch_of_examples_becomes_the_right_loss(draw):
    """From examples to the number: the teacher at tau, the student at 1, answer tokens alone."""
    model, student, examples = moved(draw)
    theta_0 = Live(model, tau=3.0)
    for batch in (examples, examples[1:4]):
        ours = asu.asu(**asu.look(student, theta_0, batch, asu.asu)[0])
        check(close(ours, by_example(model, student, batch, tau=3.0), 1e-4), "from examples to the loss something is "
              "off: the student runs at tau = 1, the teacher, theta_0, at tau, and the token before an answer token "
              "predicts it")


@pytest.mark.points(0.5)
def test_the_retain_term_holds_the_student_to_the_unsmoothed_model(draw):
    model, student, examples = moved(draw)
    tensors = asu.look(student, Live(model, tau=3.0), examples, asu.kl)[0]
    check(close(asu.kl(**tensors), by_example(model, student, examples, tau=1.0), 1e-4), "the retain term is "
          "KL(theta_0 || student) at tau = 1, answer tokens alone: prompt and padding count in neither term")
    check(close(asu.kl(**tensors), asu.forward_kl(tensors["reference_logp"], tensors["logp"], tensors["mask"])),
          "the retain term is not the forward KL, or not masked")
    other = torch.where(tensors["mask"][..., None], tensors["logp"], draw.logp(*tensors["logp"].shape))
    check(close(asu.kl(**tensors), asu.kl(**tensors | {"logp": other})), "the retain term counts padding")


def by_example(model, student, examples, tau):
    """The loss, one example at a time."""
    def answer_logp(model, e, tau):
        x = model.hidden(torch.tensor([e.prompt + e.answer])[:, :-1], tau=tau)
        return model.lm_head(x)[0, len(e.prompt) - 1:].log_softmax(-1)
    values = []
    for e in examples:
        p, q = answer_logp(model, e, tau), answer_logp(student, e, 1.0)
        values.append((p.exp() * (p - q)).sum(-1).mean())
    return sum(values) / len(values)
