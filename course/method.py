"""Problem 8: a method of your own, which the leaderboard runs on asu.unlearn."""

from data import mean_over_answers


def loss(nll, mask):
    """The loss on the forget set -> scalar to minimise. Choose its parameters from the list at the top of asu.py: their
    names say what it is given. It is a function of tensors alone."""
    p = (-nll).exp().detach()                               # WGA, whose ascent lets go of what is unlikely already
    return -mean_over_answers(p * nll, mask)


def settings():
    """Keywords of asu.unlearn -> dict. Any of tau, layers, alpha, retain_loss, beta, c_forget, c_retain, epochs, lr,
    batch_size, warmup, weight_decay, grad_clip. Training stops when the seconds are over, whatever epochs says."""
    return {"retain_loss": "gd", "c_retain": 3.0, "epochs": 40, "lr": 1e-3}
