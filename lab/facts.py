"""Which words of an answer are facts, where the data does not say (TOFU's own files): found by a model that has
learnt them.

A token y_t of the answer y to a question x is factual if it is much likelier here than where the same is asked and
answered about others:

    log p(y_t | x, y_<t) - mean over (x', y') of log p(y_t | x', y'_<t) > 1 nat

x' and y' are x and y with the person's name exchanged for another person's, DRAWS times: in y too, for a model may
read the name there. Where x does not hold the name, x' is a question about that other person as it stands, and y' is
y. The person of a row is its key author; without one, the capitalised words (not the question's first) that most
questions hold, the longest at a tie; in a script without capitals and blanks, the characters that do so in rows that
stand together. A word is a fact if one of its tokens is factual, unless it also stands in x: that is copied; where each
character is a word, those in a row are one. The parts of a value that all values share ("University", "Songs of") are
not found: they tell nothing about the person. Ours, not the paper's. """

import collections
import random

import regex
import torch

import data
from common.cli import mistake
from data.words import UNSPACED, UNSPACED_LETTER, WORD
from lab.answers import answer_nll

THRESHOLD, DRAWS = 1.0, 4
NAME = regex.compile(r"(?<!^)\b\p{Lu}[\w-]*(?: \p{Lu}[\w-]*)*")
UNSPACED_RUN = regex.compile(rf"[{UNSPACED}\p{{M}}]+")
LONGEST_NAME = 8        # characters, of a script without blanks


def find_facts(model, tokenizer, rows, others=()):
    """-> rows in which those without facts have the words found in key found, and whom they are about in key author.

    model: one that has learnt the rows; forward passes alone. It looks at the training phrasings, and a word found in
    one counts in all. others: more rows whose people are asked about. Where nobody else is, nothing is found."""
    names = people([*rows, *others])
    asked = dict(zip(names, [*rows, *others]))                          # person -> one row that asks about them
    rng, texts = random.Random("facts"), []                             # (row number, versions), each a (x, y, person)
    for number, (row, name) in enumerate(zip(rows, names)):
        strangers = [other for other in asked if other and other != name]
        if row["facts"] or not strangers:
            continue
        for question, answer in zip(row["questions"], row["answers"]):
            versions = [(question, answer, name)]                       # the first is the text itself
            for other in rng.sample(strangers, min(DRAWS, len(strangers))):
                if name and name in question:
                    versions.append((exchanged(question, name, other), exchanged(answer, name, other), other))
                else:
                    versions.append((asked[other]["question"], answer, name))
            texts.append((number, versions))
    logp = token_logp(model, tokenizer, [(x, y) for _, versions in texts for x, y, _ in versions])
    found, end = [[] for _ in rows], 0
    for number, versions in texts:
        start, end = end, end + len(versions)
        own, *theirs = [outside(tokenizer, y, person, values)
                        for (_, y, person), values in zip(versions, logp[start:end])]
        theirs = [values for values in theirs if len(values) == len(own)]   # a tokenizer may join a name to more
        if theirs:
            gain = torch.tensor(own) - torch.tensor(theirs).mean(0)
            words = factual_words(tokenizer, *versions[0], gain)
            found[number] += [word for word in words if word not in found[number]]
    return [row if row["facts"] else row | {"found": words, "author": name}
            for row, words, name in zip(rows, found, names)]


def find_in_sets(model, tokenizer, sets, rows):
    """sets of questions and passages -> sets in which questions without facts have those found, see find_facts.

    rows: the data.DataSet. On forget and retain the others are all people of the training questions, or, where models
    learn passages, of the questions about them; elsewhere those of the whole set."""
    trained = [row for row in rows.forget + rows.retain if row["question"]] or rows.sets["forget"] + rows.sets["retain"]
    with_found = {}
    for part, questions in sets.items():
        others = trained if part in ("forget", "retain") else rows.sets[part]
        with_found[part] = find_facts(model, tokenizer, questions, others) if questions[0]["question"] else questions
    return with_found


def find_by_first(paths, load, sets, rows):
    """Where the data names no facts: find_in_sets with the target, or with the first of the runs where there is none or
    it cannot be used -> (sets, notes). paths: {name: path}; load(path) -> (model, tokenizer, record)."""
    if all(row["facts"] for part in sets.values() for row in part if row["question"]):
        return sets, []
    for name in sorted(paths, key=lambda name: name != "target"):
        try:
            model, tokenizer, _ = load(paths[name])
            sets = find_in_sets(model, tokenizer, sets, rows)
        except Exception as e:                              # its row will say so
            if not mistake(e):
                raise
            continue
        return sets, [f"fact spans found by the rule (lab/facts.py, with {name}) where the data names none: fact and "
                      "function NLL are of those spans, and fact accuracy and coherence, which need exact facts, are "
                      "left out"]
    return sets, ["the data names no facts, and no model could be used to find them"]


def exchanged(text, name, other):
    """The text with one name, as whole words, for another."""
    return data.fact_pattern(name).sub(lambda _: other, text)


def people(rows):
    """Whom (or what) each row asks about, see above; "" where nothing tells. -> list of texts"""
    names = [NAME.findall(row["question"]) for row in rows]
    if not any(names):
        names = together([row["question"] for row in rows])
    count = collections.Counter(name for in_question in names for name in set(in_question))
    longest = [max(in_question, key=lambda name: (count[name], len(name)), default="") for in_question in names]
    return [row["author"] or name for row, name in zip(rows, longest)]


def together(questions):
    """Characters that may be a name in a script without capitals: two or more in a row that at least two questions hold
    which stand together, as those about a person do (more than two thirds of those from the first to the last).

    -> a list of such texts for each question"""
    where = collections.defaultdict(list)
    for number, question in enumerate(questions):
        parts = set()
        for run in UNSPACED_RUN.findall(question):
            parts |= {run[i:i + n] for n in range(2, LONGEST_NAME + 1) for i in range(len(run) - n + 1)}
        for part in sorted(parts):
            where[part].append(number)
    names = [[] for _ in questions]
    for part, numbers in where.items():
        if len(numbers) > 1 and numbers[-1] - numbers[0] + 1 < 1.5 * len(numbers):
            for number in numbers:
                names[number].append(part)
    return names


def outside(tokenizer, answer, name, values):
    """Of one value for each token of the answer, those of tokens that are not the name's -> list"""
    return [value for value, kind in zip(values, data.token_classes(tokenizer, answer, [], name)) if kind != data.NAME]


def factual_words(tokenizer, question, answer, name, gain):
    """The words of an answer that are facts by the gain, in nats, of its tokens outside the name; words of the
    question are not."""
    text, copied = tokenizer.answer_text(answer), set(data.words(question))
    spans, words = outside(tokenizer, answer, name, tokenizer.offsets(text)[1]), []
    factual = [span for span, g in zip(spans, gain) if g > THRESHOLD]
    end = None                                              # of the factual character before, where each is a word
    for word in WORD.finditer(text):
        if data.normal(word[0]).casefold() in copied or not any(
                first < word.end() and word.start() < last for first, last in factual):
            continue
        unspaced = UNSPACED_LETTER.match(word[0])
        if unspaced and end == word.start():
            words[-1] += word[0]
        else:
            words.append(word[0])
        end = word.end() if unspaced else None
    return words


@torch.no_grad()
def token_logp(model, tokenizer, pairs, batch_size=64):
    """log p(y_t | x, y_<t) of every answer token of (question, answer) pairs -> list of lists, in nats."""
    examples = [data.encode(tokenizer, question, answer) for question, answer in pairs]
    data.check_length(examples, model.config.block_size)
    logp = [None] * len(pairs)
    for numbers, part in data.by_length(examples, batch_size):
        batch = data.collate(part, model.device)
        for number, nll, mask in zip(numbers, answer_nll(model, batch).cpu(), batch.mask.cpu()):
            logp[number] = (-nll[mask]).tolist()
    return logp
