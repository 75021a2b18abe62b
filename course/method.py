"""Problem 8: a method of your own, which the leaderboard runs on asu.unlearn.

This one is ASU with the defaults of asu.py, in course clothes.
"""

import asu


def loss(logp, teacher_logp, mask):
    """The loss on the forget set -> scalar to minimise. Choose its parameters from the list at the top of asu.py: their
    names say what it is given. It is a function of tensors alone."""
    return asu.forward_kl(teacher_logp, logp, mask)


def settings():
    """Keywords of asu.unlearn -> dict. Any of tau, layers, alpha, retain_loss, beta, c_forget, c_retain, epochs, lr,
    batch_size, warmup, weight_decay, grad_clip. Training stops when the seconds are over, whatever epochs says."""
    return {"tau": 8.0, "alpha": 1.1, "retain_loss": "gd", "epochs": 10, "lr": 1e-3}
