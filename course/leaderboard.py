"""Problem 8, all methods side by side, on draws of authors that nobody has seen.

    python -m course.leaderboard SUBMISSIONS/ --seed=SECRET      OUT/leaderboard.md
"""

import contextlib
import copy
import io
import time

import asu
import data
from common import UserError
from course.answers import worst_excess  # noqa: F401, for the tests of problem 8
from lab import recover
from lab.answers import fact_accuracy
from lab.optim import Log

SETTINGS = ("tau", "layers", "alpha", "retain_loss", "beta", "c_forget", "c_retain", "epochs", "lr", "batch_size",
            "warmup", "weight_decay", "grad_clip")        # of asu.unlearn, that a method may choose


class Over(Exception):
    """The seconds are over."""


class Seconds(Log):
    """A log that stops the loop when this process has used so many seconds of its core."""

    def __init__(self, seconds):
        super().__init__("method")
        self.end_at = time.process_time() + seconds

    def end(self, step):
        super().end(step)
        if time.process_time() > self.end_at:
            raise Over


def read_method():
    """-> (loss, settings) of course/method.py. Raises UserError for settings that are none."""
    from course import method
    settings = method.settings()
    if not isinstance(settings, dict) or set(settings) - set(SETTINGS):
        raise UserError(f"settings() is a dict with keys of {', '.join(SETTINGS)}")
    return method.loss, settings


def unlearned(target, forget, retain, loss, settings, seconds):
    """A method on a copy of the target, stopped when its seconds are over -> (model, record)

    loss: a function of tensors, or the name of one in asu.METHODS."""
    model, start, log = copy.deepcopy(target), time.process_time(), Seconds(seconds)
    name = loss if isinstance(loss, str) else "submission"
    asu.METHODS |= {} if isinstance(loss, str) else {name: loss}
    quiet = io.StringIO()
    with contextlib.suppress(Over), contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        asu.unlearn(model, forget, retain, method=name, **settings, log=log)
    return model.eval(), log.record | {"cpu_seconds": time.process_time() - start}


def stated(model, tokenizer, rows):
    """Share of rows whose greedy answer states the facts."""
    return fact_accuracy(model, tokenizer, rows, max_new_tokens=recover.ANSWER_TOKENS)


def attacked(model, tokenizer, rows, phrasings=None, samples=4, steps=8, bits=4):
    """Share of the forgotten facts that are stated when asked, and under three attacks -> {name: share}"""
    shares, halves = {"asked": stated(model, tokenizer, rows), "relearnt": 0.0}, recover.halves(rows)
    for shown, asked in (halves, halves[::-1]):
        examples = data.training_examples(tokenizer, shown, phrasings)
        [(_, after)] = recover.relearned(model, examples, 1e-3, (steps,))
        shares["relearnt"] += stated(after, tokenizer, asked) / 2
    shares["sampled"] = recover.leak_at_k(recover.sampled(model, tokenizer, rows, samples), samples, samples)
    shares["quantised"] = stated(recover.quantised(model, bits), tokenizer, rows)
    return shares
