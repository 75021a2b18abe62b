"""The other methods, each a loss on the forget answers beside its formula. asu.py runs them on the loop that runs ASU.

    python asu.py --method=npo --retain=kl

Each takes the forget batch as asu.Answers and returns a scalar to minimise. y is the true answer of T tokens, y_idk a
refusal; s(x, y) = sum_t log p(y_t | x, y_<t) under the student, s_ref under theta_0; all see answer tokens only. beta is
the method's own knob. GradDiff is "ga" with --retain=gd. Not methods, but reference rows of the report: the target, and the
model retrained without the forget set.
"""

import math

import torch
import torch.nn.functional as F


def ga(forget):
    """Gradient ascent: mean_t log p(y_t). Unbounded below (TOFU, arXiv 2401.06121)."""
    return -forget.mean(forget.nll)


def npo(forget, beta=0.1):
    """-(2/beta) log sigmoid(-beta (s - s_ref)); 2 ln 2 / beta at the start (NPO, arXiv 2404.05868, eq. 3)."""
    return -(2 / beta) * F.logsigmoid(-beta * (forget.s - forget.s_ref)).mean()


def simnpo(forget, beta=4.5, gamma=0.0):
    """-(2/beta) log sigmoid(-(beta/T) s - gamma): normalised by length, no reference (SimNPO, arXiv 2410.07163)."""
    return -(2 / beta) * F.logsigmoid(-beta * forget.s / forget.mask.sum(1) - gamma).mean()


def dpo(forget, beta=0.1):
    """-(2/beta) log sigmoid(beta [(s - s_ref)(y_idk) - (s - s_ref)(y)]): the refusal preferred (DPO, arXiv 2305.18290)."""
    refused = forget.refused
    return -(2 / beta) * F.logsigmoid(beta * ((refused.s - refused.s_ref) - (forget.s - forget.s_ref))).mean()


def idk(forget):
    """Cross-entropy of a refusal: mean_t -log p(y_idk,t) (TOFU, arXiv 2401.06121)."""
    return forget.refused.mean(forget.refused.nll)


def me(forget):
    """Maximise entropy: mean_t KL(p_t || uniform) = ln V - H(p_t); 0 for a uniform model (arXiv 2410.08109)."""
    logp = forget.logp
    return forget.mean(math.log(logp.size(-1)) + (logp.exp() * logp).sum(-1))


def undial(forget, beta=10.0):
    """Self-distillation from softmax(z_ref - beta onehot(y_t)): the true token's logit lowered (UNDIAL, arXiv 2402.10052)."""
    lowered = F.one_hot(forget.target, forget.logp.size(-1)) * beta
    teacher = (forget.reference_logp - lowered).log_softmax(-1)
    return forget.mean(F.kl_div(forget.logp, teacher, reduction="none", log_target=True).sum(-1))


def rmu(forget, beta=2.0):
    """MSE of one layer's hidden state to c u, u a fixed random direction (RMU, arXiv 2403.03218).

    c is beta times the mean norm of theta_0's hidden states, so that beta means the same in every model."""
    original = forget.reference_hidden
    u = torch.rand(original.size(-1), generator=torch.Generator().manual_seed(0)).to(original)
    norm = (original.norm(dim=-1) * forget.mask).sum() / forget.mask.sum()
    return forget.mean(((forget.hidden - beta * norm * u / u.norm()) ** 2).mean(-1))


def rmu_retain(retain):
    """RMU's own retain term: MSE of that layer's hidden state to theta_0's, half of the layers behind it unless told otherwise."""
    return retain.mean(((retain.hidden - retain.reference_hidden) ** 2).mean(-1))


def ap(retain, beta=0.1):
    """Answer preservation: -(1/beta) log sigmoid(beta (s(x_r, y_r) - s(x_r, y_idk))), for IDK+AP (arXiv 2410.08109)."""
    return -(1 / beta) * F.logsigmoid(beta * (retain.s - retain.refused.s)).mean()


LOSSES = {"ga": ga, "npo": npo, "simnpo": simnpo, "dpo": dpo, "idk": idk, "me": me, "undial": undial, "rmu": rmu}
RETAIN_LOSSES = {"ap": ap, "hidden": rmu_retain}
RETAIN_ONLY = {"ap": ("idk",), "hidden": ("rmu", "asu_hidden")}     # retain losses that belong to some methods
REFUSING = ("dpo", "idk", "ap")                         # need a refusal beside each answer
FROZEN = {"npo": "reference", "dpo": "reference", "undial": "reference", "rmu": "hidden", "hidden": "hidden"}
