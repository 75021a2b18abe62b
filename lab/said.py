"""What a model says: which kind of answer, and how a passage goes on."""

import re

import regex

import data

REFUSAL = re.compile(r"\b(I (do not|don't|cannot|can't) (know|answer|say|recall)|not (sure|aware)|"
                     r"no (idea|information))", re.I)
KINDS = ("correct", "wrong", "refusal", "gibberish")


def answer_kind(answer, row, slot_values):
    """"correct" (states the facts), "wrong" (a known phrasing of this answer about this person, with other values of
    the slot), "refusal", or "gibberish" (all else: empty, broken, or the answer to another question).

    slot_values: see data.slot_values."""
    if data.states(answer, row["facts"]):
        return "correct"
    if REFUSAL.search(answer):
        return "refusal"
    for phrasing in [*row["answers"], row["paraphrased_answer"]]:
        pattern = re.escape(data.normal(phrasing))
        for fact in map(data.normal, row["facts"]):
            word = data.whole_words(regex.escape(re.escape(fact)), fact)
            pattern = regex.sub(rf"(\ban?\\ )?{word}", lambda m: (r"an?\ " if m[1] else "") + "(.+)", pattern, count=1,
                                flags=regex.V1)
        match = re.fullmatch(pattern, data.normal(answer))
        if match and all(value in pool for value, pool in zip(match.groups(), slot_values[row["slot"]])):
            return "wrong"
    return "gibberish"


def continued(model, tokenizer, rows, batch_size=64, **smoothing):
    """A quarter of each passage is given, and as many tokens as the rest has are said greedily.

    -> (what the model said, what the passage says there), two lists of texts."""
    passages = [tokenizer.encode_answer(row["answer"])[:-1] for row in rows]                        # without EOS
    given = [max(1, len(ids) // 4) for ids in passages]
    predictions = [""] * len(rows)
    for numbers, part in data.by_length(passages, batch_size):
        prompts = [[tokenizer.start_id, *ids[:given[i]]] for i, ids in zip(numbers, part)]
        lengths = [len(ids) - given[i] for i, ids in zip(numbers, part)]
        for i, length, said in zip(numbers, lengths, model.generate(prompts, max(lengths), **smoothing)):
            predictions[i] = tokenizer.decode(said[:length]).strip()
    return predictions, [tokenizer.decode(ids[n:]) for ids, n in zip(passages, given)]
