"""A teacher-forced look at answers: what a model thinks of each token of the true (or of a wrong) answer."""

import numpy as np
import torch

import data
from common import UserError
from lab.answers import answer_logp
from lab.statistics import auc

TAUS = (1, 1.5, 2, 3, 4, 6, 8, 12, 16)


@torch.no_grad()
def score(model, tokenizer, pairs, batch_size=64, **smoothing):
    """(question, answer) pairs -> for each a dict of arrays (T,) over the answer's tokens, EOS included: logp of the
    true tokens, their ids, the argmax, the true token's rank (1 = first), and z, logp normalised by the mean and
    deviation of log p (Min-k%++)."""
    examples = [data.encode(tokenizer, question, answer) for question, answer in pairs]
    data.check_length(examples, model.config.block_size)
    scores = [None] * len(examples)
    for numbers, part in data.by_length(examples, batch_size):
        batch = data.collate(part, model.device)
        logp = answer_logp(model, batch, **smoothing)                                               # (B, A, V)
        if not torch.isfinite(logp).all():
            raise UserError("the model's log-probabilities are no numbers (nan or infinite)")
        true = logp.gather(-1, batch.target[..., None])                                             # (B, A, 1)
        mean = (logp.exp() * logp).sum(-1, keepdim=True)
        deviation = ((logp.exp() * (logp - mean) ** 2).sum(-1, keepdim=True)).sqrt()
        arrays = {"logp": true, "ids": batch.target, "argmax": logp.argmax(-1), "rank": (logp > true).sum(-1) + 1,
                  "z": (true - mean) / deviation.clamp(min=1e-6)}
        arrays = {key: array.reshape(batch.mask.shape).cpu().numpy() for key, array in arrays.items()}
        for line, number in enumerate(numbers):
            length = len(examples[number].answer)
            scores[number] = {key: array[line, :length] for key, array in arrays.items()}
    return scores


def nll(scores):
    """-> (N,): l(a|q) of scored pairs."""
    return np.array([-s["logp"].mean() for s in scores])


def total(scores):
    """-> (N,): log p(a|q) of scored pairs, summed over the answer."""
    return np.array([s["logp"].sum() for s in scores])


def by_class(scores, rows, tokenizer, kind, key="logp"):
    """One value for every token of a class (data.FACT, ...) in the scored answers of rows -> (number of them,).

    Where rows name no facts, those found for them count, see lab/facts.py. Of a fact counts what tells it from the
    other values of its pool: any model knows that a prize ends in "Prize"."""
    values = []
    for s, row in zip(scores, rows):
        facts = [data.told_apart(fact) for fact in row["facts"]] or row.get("found", [])
        classes = np.array(data.token_classes(tokenizer, row["answer"], facts, row["author"]))
        values.append(s[key][classes == kind])
    return np.concatenate(values)


def min_k(logp, k=0.4):
    """Mean of the k share of lowest values, at least one (Min-k%; of normalised log-probabilities: Min-k%++)."""
    return float(np.sort(logp)[:max(1, int(len(logp) * k))].mean())


ATTACKS = {"mia_loss": lambda s: s["logp"].mean(), "mia_min_k": lambda s: min_k(s["logp"]),
           "mia_min_k_pp": lambda s: min_k(s["z"])}


def membership(scores, others):
    """AUC of loss, Min-k% and Min-k%++ between trained-on (or forgotten) answers and answers about people nobody met.

    The goal is not 0.5 but the retrained model's value."""
    return {key: auc([attack(s) for s in scores], [attack(s) for s in others]) for key, attack in ATTACKS.items()}


def privleak(auc, auc_retrained):
    """(AUC - AUC_retrained) / AUC_retrained, in percent. 0 is best, above it too little was forgotten; None where
    AUC_retrained is 0. Here AUC 1 is a forget set likelier than what nobody met; MUSE counts the other way round, so
    there too little forgotten is below 0 (arXiv 2407.06460)."""
    return 100 * (auc - auc_retrained) / auc_retrained if auc_retrained else None


def tau_curves(model, tokenizer, sets):
    """NLL of fact and of function tokens of the smoothed model against tau, on forget and retain -> dict of lists."""
    curves = {"tau": list(TAUS)}
    for part in ("forget", "retain"):
        pairs = [(row["question"], row["answer"]) for row in sets[part]]
        scored = [score(model, tokenizer, pairs, tau=tau) for tau in TAUS]
        for kind, token_class in (("fact", data.FACT), ("function", data.FUNCTION)):
            curves[f"{part}_{kind}_nll"] = [float(-by_class(scores, sets[part], tokenizer, token_class).mean())
                                            for scores in scored]
    return curves
