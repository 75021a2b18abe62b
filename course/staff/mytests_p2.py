"""Tests of forward_kl, asu, kl and look such as a student hands in."""

import torch

import asu
from course.checking import Live, Speaker, close


def loop(p, q, mask):
    values = []
    for b in range(len(mask)):
        values.append(sum((p[b, t].exp() * (p[b, t] - q[b, t])).sum() for t in range(len(mask[b])) if mask[b, t]))
        values[-1] = values[-1] / mask[b].sum()
    return sum(values) / len(values)


def test_forward_kl(draw):
    p, q, mask = draw.logp(4, 7, 11), draw.logp(4, 7, 11), draw.mask(4, 7)
    assert close(asu.forward_kl(p, q, mask), loop(p, q, mask))
    assert close(asu.asu(q, p, mask), loop(p, q, mask))
    assert close(asu.kl(q, p, mask), loop(p, q, mask))


def test_look(draw):
    model = Speaker(draw)
    student, examples, theta_0 = Speaker(draw, model), draw.examples(6, model.vocab_size), Live(model, 3.0)
    for batch in (examples[:4], examples[2:]):
        for loss, who, tau in ((asu.asu, "teacher", 3.0), (asu.kl, "reference", 1.0)):
            x, _ = asu.look(student, theta_0, batch, loss)
            for i, e in enumerate(batch):
                ids = torch.tensor([e.prompt + e.answer])[:, :-1]
                for name, speaker, at in ((f"{who}_logp", model, tau), ("logp", student, 1.0)):
                    logp = speaker.lm_head(speaker.hidden(ids, tau=at)).log_softmax(-1)[0, len(e.prompt) - 1:]
                    assert close(x[name][i, :len(e.answer)], logp)
