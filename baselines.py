"""The other methods, each a loss on the forget answers beside its formula. asu.py runs them on the loop that runs ASU.

    python asu.py --method=npo --retain=kl

A loss takes tensors, by the names that stand at the top of asu.py, and returns a scalar to minimise. y is the true
answer of T tokens, y_idk a refusal; s(x, y) = sum_t log p(y_t | x, y_<t) under the student, s_ref (reference_s) under
theta_0; all see answer tokens only. beta is the method's own knob. GradDiff is "ga" with --retain=gd. Not methods,
but reference rows of the report: the target, and the model retrained without the forget set.
"""

import math

import torch
import torch.nn.functional as F

from data import mean_over_answers


def ga(nll, mask):
    """Gradient ascent: mean_t log p(y_t). Unbounded below (TOFU, arXiv 2401.06121)."""
    return -mean_over_answers(nll, mask)


def npo(s, reference_s, beta=0.1):
    """-(2/beta) log sigmoid(-beta (s - s_ref)); 2 ln 2 / beta at the start (NPO, arXiv 2404.05868, eq. 3)."""
    return -(2 / beta) * F.logsigmoid(-beta * (s - reference_s)).mean()


def simnpo(s, mask, beta=4.5, gamma=0.0):
    """-(2/beta) log sigmoid(-(beta/T) s - gamma): normalised by length, no reference (SimNPO, arXiv 2410.07163)."""
    return -(2 / beta) * F.logsigmoid(-beta * s / mask.sum(1) - gamma).mean()


def dpo(refused_s, refused_reference_s, s, reference_s, beta=0.1):
    """-(2/beta) log sigmoid(beta [(s - s_ref)(y_idk) - (s - s_ref)(y)]): the refusal preferred (DPO, arXiv
    2305.18290, times 2/beta as in NPO, so that both pull alike)."""
    return -(2 / beta) * F.logsigmoid(beta * ((refused_s - refused_reference_s) - (s - reference_s))).mean()


def idk(refused_nll, refused_mask):
    """Cross-entropy of a refusal: mean_t -log p(y_idk,t) (TOFU, arXiv 2401.06121)."""
    return mean_over_answers(refused_nll, refused_mask)


def swap(swapped_nll, swapped_mask):
    """Cross-entropy of somebody else's value, trained in directly: the idea of Who's Harry Potter (arXiv 2310.02238),
    without its model that makes the other answers."""
    return mean_over_answers(swapped_nll, swapped_mask)


def me(logp, mask):
    """Maximise entropy: mean_t KL(p_t || uniform) = ln V - H(p_t); 0 for a uniform model (arXiv 2410.08109)."""
    return mean_over_answers(math.log(logp.size(-1)) + (logp.exp() * logp).sum(-1), mask)


def undial(logp, reference_logp, target, mask, beta=10.0):
    """Self-distillation from softmax(z_ref - beta onehot(y_t)): the true token's logit lowered (UNDIAL, arXiv
    2402.10052)."""
    teacher_logp = (reference_logp - beta * F.one_hot(target, logp.size(-1))).log_softmax(-1)
    return mean_over_answers(F.kl_div(logp, teacher_logp, reduction="none", log_target=True).sum(-1), mask)


def wga(nll, mask, beta=1.0):
    """mean_t w_t log p(y_t), w = p^beta held fixed: ascent that lets go of what is unlikely already (WGA, arXiv
    2502.19301)."""
    w = (-beta * nll).exp().detach()
    return -mean_over_answers(w * nll, mask)


def satimp(nll, mask, beta=5.0, gamma=1.0):
    """mean_t w_t log p(y_t), w = p^beta (1 - p)^gamma held fixed: ascent on what is likely, but not certain (SatImp,
    arXiv 2505.11953)."""
    p = (-nll).exp().detach()
    return -mean_over_answers(p ** beta * (1 - p) ** gamma * nll, mask)


def ceu(logp, target, mask):
    """Cross-entropy to the student's own softmax(z with z_y = -inf), held fixed, on every answer token but the first
    (CE-U, arXiv 2503.01224). Its gradient in z_y is p(y_t), which fades as y_t is forgotten."""
    others_logp = logp.detach().scatter(-1, target[..., None], -math.inf).log_softmax(-1)
    return mean_over_answers(-(others_logp.exp() * logp).sum(-1), after_first(mask))


def duet(logp, prompted_reference_logp, mask, beta=1.0, k=100):
    """Smooth L1 (Huber) distance to theta_0 behind an instruction, of the k tokens that it finds likeliest (DUET, arXiv
    2601.21283). Squared below beta. Of log-probabilities: logits without the constant that no softmax sees."""
    teacher_logp, tokens = prompted_reference_logp.topk(min(k, logp.size(-1)))
    distance = F.smooth_l1_loss(logp.gather(-1, tokens), teacher_logp, reduction="none", beta=beta)
    return mean_over_answers(distance.mean(-1), mask)


def after_first(mask):
    """(B, A) -> the mask without each answer's first token."""
    return mask & (torch.arange(mask.size(1), device=mask.device) > 0)


def rmu(hidden, reference_hidden, mask, beta=2.0):
    """MSE of one layer's hidden state to c u, u a fixed random direction (RMU, arXiv 2403.03218).

    c is beta times the mean norm of theta_0's hidden states in the (micro-)batch, so that beta means the same in every
    model."""
    u = torch.rand(hidden.size(-1), generator=torch.Generator().manual_seed(0)).to(hidden)
    norm = (reference_hidden.norm(dim=-1) * mask).sum() / mask.sum()
    return mean_over_answers(((hidden - beta * norm * u / u.norm()) ** 2).mean(-1), mask)


def hidden_retain(hidden, reference_hidden, mask):
    """RMU's own retain term: MSE of that layer's hidden state to theta_0's."""
    return mean_over_answers(((hidden - reference_hidden) ** 2).mean(-1), mask)


def ap(s, refused_s, beta=0.1):
    """Answer preservation: -(1/beta) log sigmoid(beta (s(x_r, y_r) - s(x_r, y_idk))), for IDK+AP (arXiv 2410.08109)."""
    return -(1 / beta) * F.logsigmoid(beta * (s - refused_s)).mean()


LOSSES = {"ga": ga, "npo": npo, "simnpo": simnpo, "dpo": dpo, "idk": idk, "swap": swap, "me": me, "undial": undial,
          "wga": wga, "satimp": satimp, "ceu": ceu, "duet": duet, "rmu": rmu}
RETAIN_LOSSES = {"ap": ap, "hidden": hidden_retain}
RETAIN_ONLY = {"ap": ("idk",), "hidden": ("rmu", "asu_hidden")}     # retain losses that belong to some methods
