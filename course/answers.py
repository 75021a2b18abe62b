"""What a student writes of problems 5 and 7: a bad method that wins, and attacks on an unlearned model.

An attack is judged against the retrained model, which never saw the facts: what it brings back beyond what the retrained
model guesses under the same attack was there all the time.
"""

import copy
import random

import torch

import data
from lab.answers import answer_nll, ask


def bad_method_that_wins(retrained):
    """Problem 5: two methods as metrics of the forget set -> (good, bad), each {metric: (N,) in [0, 1]} as `retrained`.

    By eval.forget_efficacy of the means the bad one is better, by 0.05 at least; by eval.gap to the retrained model it
    is worse, by 0.1 at least, and less than half of its answers are whole sentences (coherence)."""
    broken = {"probability": 0.0, "rouge_l": 0.0, "truth_ratio": 1.0, "token_entropy": 1.0}     # random tokens
    bad = {name: 0 * values + broken.get(name, 0.0) for name, values in retrained.items()}
    return dict(retrained), bad


def relearnt(model, examples, steps=20, lr=1e-3, batch_size=16, seed=0):
    """Problem 7: a copy of the model, fine-tuned on a part of the forgotten examples. The model itself stays as it is.

    AdamW without weight decay on the mean NLL of answers (data.mean_over_answers of lab.answers.answer_nll), `steps`
    steps of batch_size examples (all, where there are fewer) drawn with random.Random(seed).sample."""
    rng, model = random.Random(seed), copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    for _ in range(steps):
        batch = data.collate(rng.sample(examples, min(batch_size, len(examples))), model.device)
        data.mean_over_answers(answer_nll(model, batch), batch.mask).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model.eval()


def leak_at_k(model, tokenizer, rows, k, temperature=1.0, seed=0):
    """Problem 7: share of rows of which any of k sampled answers states the facts (data.states), in [0, 1].

    Answers are drawn by lab.answers.ask at this temperature, the i-th with seed + i."""
    leaked = [False] * len(rows)
    for i in range(k):
        answers = ask(model, tokenizer, [row["question"] for row in rows], temperature=temperature,
                                seed=seed + i)
        leaked = [before or data.states(a, row["facts"]) for before, a, row in zip(leaked, answers, rows)]
    return sum(leaked) / len(rows)


def quantised(model, bits=4):
    """Problem 7: a copy of the model, each row of each matrix rounded to whole multiples of its own step: the row's
    largest magnitude / (2^(bits - 1) - 1). Vectors stay, and so does a row of zeros; tied weights stay tied."""
    model, largest = copy.deepcopy(model), 2 ** (bits - 1) - 1
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                step = (p.abs().amax(1, keepdim=True) / largest).clamp(min=1e-12)
                p.copy_((p / step).round() * step)
    return model


def worst_excess(unlearned, retrained):
    """Problem 7: what the strongest attack brings back beyond the retrained model, and its name -> (excess, name).

    unlearned, retrained: {attack: share of forgotten facts stated after it}, the same attacks. Below 0 where every
    attack finds less than in the retrained model. Raises ValueError where the attacks differ or there are none."""
    if not unlearned or unlearned.keys() != retrained.keys():
        raise ValueError("the same attacks on both models are needed")
    return max((unlearned[name] - retrained[name], name) for name in unlearned)
