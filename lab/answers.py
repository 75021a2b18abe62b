"""A model's answers: their log-probabilities, and what it says by itself."""

import random

import torch.nn.functional as F

from data import answer_limit, states, subset


def answer_logp(model, batch, **kw):
    """Log-probabilities (B, A, V) at the answer tokens. Only those positions are projected to the vocabulary."""
    return model.lm_head(batch.at_answers(model.hidden(batch.idx, **kw))).float().log_softmax(-1)


def answer_nll(model, batch, **kw):
    """-log p(y_t | x, y_<t) of every answer token, (B, A), in nats; 0 on padding."""
    logits = model.lm_head(batch.at_answers(model.hidden(batch.idx, **kw))).float()             # (B, A, V)
    return F.cross_entropy(logits.transpose(1, 2), batch.target, reduction="none") * batch.mask


def ask(model, tokenizer, questions, max_new_tokens=40, batch_size=128, seed=0, **kw):
    """Answer questions, greedily unless generate()'s keywords say otherwise -> list of texts, in the questions' order.

    tau and layers, among the keywords, answer as the forget-teacher would. seed: of all samples; the same question
    twice draws twice.
    """
    seeds = random.Random(seed)                             # a batch has its own, or samples would come again
    prompts = [tokenizer.encode_prompt(q) for q in questions]
    kw = {"eos_id": [tokenizer.eos_id, *model.config.eos_ids]} | kw
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers = [""] * len(prompts)
    for i in range(0, len(order), batch_size):
        some = order[i:i + batch_size]
        said = model.generate([prompts[j] for j in some], max_new_tokens, seed=seeds.getrandbits(32), **kw)
        for j, ids in zip(some, said):
            answers[j] = tokenizer.decode(ids).strip()
    return answers


def fact_accuracy(model, tokenizer, rows, n=100, **kw):
    """Share of n rows (data.subset) whose greedy answer, as long as eval.py lets it be, states the facts, in [0, 1];
    for progress logs. nan where the rows have no facts to look for."""
    rows = [row for row in rows if row["facts"] and row["question"]]
    if not rows:
        return float("nan")
    rows = subset(rows, n)
    limit = answer_limit(tokenizer, rows, model.config.block_size)
    answers = ask(model, tokenizer, [row["question"] for row in rows], limit, **kw)
    return sum(states(a, row["facts"]) for a, row in zip(answers, rows)) / len(rows)
