"""Rows: the one schema of a question, the check that a row keeps to it, and the data set that rows make."""

import hashlib
import itertools
import json
import random
import re
from dataclasses import dataclass, field

from common import UserError
from data.words import normal, states


@dataclass
class DataSet:
    """forget, retain: rows to train on. holdout: rows no model is trained on.

    sets: {"forget": rows, "retain": rows, "world": rows, ...} to evaluate on; the passages among forget and retain are
    the sets forget_text and retain_text. sha256: of all that a result may depend on, see digest. any_split_sha256:
    the same, whichever of the rows are to be forgotten. notes: what a report should say about the data. made_by: (kind,
    data_seed) of the generator, if one made it."""
    name: str
    forget: list
    retain: list
    sets: dict
    holdout: list
    sha256: str
    notes: list = field(default_factory=list)
    made_by: tuple | None = None
    any_split_sha256: str = ""

    def questions(self, rows):
        """The questions among training rows. Where all are passages: the evaluation's questions about the same
        authors."""
        asked = questions(rows)
        if asked:
            return asked
        about = {row["author"] for row in rows}
        return [row for row in self.sets["forget"] + self.sets["retain"] if row["author"] in about]


def digest(*parts):
    """Lists of rows -> their sha256, without their ids, which may be the number of a line: the same rows cut into
    another split have the same hash, if all of them come in the same order."""
    parts = [[without_id(row) for row in rows] for rows in parts]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def without_id(row):
    return {key: value for key, value in row.items() if key != "id"}


def sorted_rows(rows):
    """The rows in an order of their own, whichever way they were cut into sets."""
    return sorted(rows, key=lambda row: json.dumps(without_id(row), sort_keys=True))


def overlaps(**sets):
    """Rows of sets that should have none in common -> a note on each two that ask the same question."""
    notes, asked = [], {name: {normal(row["question"].strip()) for row in rows} - {""} for name, rows in sets.items()}
    for (one, first), (other, second) in itertools.combinations(asked.items(), 2):
        if common := first & second:
            notes.append(f"{len(common)} of {len(second)} questions of the {other} set are in the {one} set too, as "
                         f"{min(common)!r}")
    return notes


def questions(rows):
    return [row for row in rows if row["question"]]


def passages(rows):
    return [row for row in rows if not row["question"]]


def by_author(rows, parts):
    """Rows in `parts` consecutive shares of whole authors, as equal as can be. Raises UserError if there are too
    few."""
    names = list(dict.fromkeys(row["author"] or row["id"] for row in rows))
    if parts > len(names):
        raise UserError(f"{parts} requests, but only {len(names)} authors to forget")
    share = {name: i * parts // len(names) for i, name in enumerate(names)}
    shares = [[] for _ in range(parts)]
    for row in rows:
        shares[share[row["author"] or row["id"]]].append(row)
    return shares


def never_met(rows, others):
    """The rows asked about people who do not exist: each row's author becomes the first name and surname of two others.

    For data without held-out people. others: more rows, whose authors' names are drawn from as well. A phrasing that
    does not name its author in full, or names a part elsewhere, is about the real one still: it is left out. Raises
    UserError where nobody can be made, or nothing is left."""
    names = list(dict.fromkeys(row["author"] for row in rows + others if row["author"].strip()))
    made = sorted({f"{a.split()[0]} {b.split()[-1]}" for a in names for b in names} - set(names))
    if not made or not all(row["author"].strip() for row in rows):
        raise UserError("people the model never met are needed: a holdout.json, or authors with first names and "
                        "surnames to swap")
    rng, swapped = random.Random("never met"), []
    for row in rows:
        name = rng.choice(made)
        pairs = [pair for pair in zip(row["questions"], row["answers"]) if names_in_full(pair, row["author"])]
        if pairs:
            texts = [[text.replace(row["author"], name) for text in part] for part in zip(*pairs)]
            swapped.append(row | {"author": name, "questions": texts[0], "answers": texts[1]})
    if not swapped:
        raise UserError("people the model never met are needed: a holdout.json, or rows that name their author as the "
                        "key author does")
    return swapped


def names_in_full(texts, author):
    """Whether texts name an author, and nowhere by a part of the name: names_in_full(["Was Lovelace ..."], "Ada
    Lovelace") -> False"""
    return any(author in text for text in texts) and not names_a_part(texts, author)


def names_a_part(texts, author):
    """Whether texts hold a part of an author's name outside the whole."""
    rest = " ".join(text.replace(author, "") for text in texts)
    return any(re.search(rf"\b{re.escape(part)}\b", rest) for part in author.split() if part[0].isupper())


def swapped(rows, others):
    """The rows, each with the answers and facts of another person's row of the same slot: somebody else's values.

    Answers that name the other by a part of the name are left out: they would stay about the other. Raises UserError
    for a row without an author, or of a slot that none of the others has."""
    of_slot, rng, made = {}, random.Random("swapped"), []
    for other in others:
        if other["author"].strip() and not names_a_part(other["answers"], other["author"]):
            of_slot.setdefault((other["slot"], len(other["answers"])), []).append(other)
    for row in rows:
        same = of_slot.get((row["slot"], len(row["answers"])))
        if not row["author"].strip() or not row["slot"] or not same:
            raise UserError(f"row {row['id']}: nobody else has an answer to this; rows with the keys author and slot "
                            "are needed, all of a slot in as many phrasings")
        other = rng.choice(same)
        answers = [text.replace(other["author"], row["author"]) for text in other["answers"]]
        made.append(row | {"answers": answers, "facts": other["facts"]})
    return made


# ----------------------------------------------------------------------------------------------- the schema
def complete(row, id, where):
    """Check one row and fill in what TOFU's own files leave out. where: file and line, for messages.

    Raises UserError naming the place and the key."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: a JSON object is needed, this is {type(row).__name__}")
    is_passage = "text" in row
    if is_passage and (both := row.keys() & {"question", "answer"}):
        raise UserError(f"{where}: a row is a passage, text, or a question; this has text and {min(both)}")
    if is_passage:
        row = as_question(row, where)
    if "choices" in row:
        row = with_options(row, where)
    for key in ("question", "answer"):
        if not is_passage and (not isinstance(row.get(key), str) or not row[key].strip()):
            raise UserError(f"{where}: key {key} is missing or not a text")
    row = {"id": id, "author": "", "slot": "", "facts": [], "questions": [row["question"]], "answers": [row["answer"]],
           "paraphrased_question": row["question"], "paraphrased_answer": row["answer"], "perturbed_answer": []} | row
    for key in ("author", "slot", "paraphrased_question", "paraphrased_answer", "original_answer"):
        if not isinstance(row.get(key, ""), str):
            raise UserError(f"{where}: key {key} is not a text")
        if key.startswith("paraphrased") and not is_passage and not row[key].strip():
            raise UserError(f"{where}: key {key} is empty; left out, it is as in training")
    if type(row["id"]) not in (str, int):
        raise UserError(f"{where}: key id is neither a text nor a whole number")
    row["id"] = str(row["id"])
    for key in ("facts", "questions", "answers", "perturbed_answer"):
        texts = row[key]
        if not isinstance(texts, list) or not all(isinstance(text, str) and (text or is_passage) for text in texts):
            raise UserError(f"{where}: key {key} is not a list of texts")
    asked, answered = len(row["questions"]), len(row["answers"])
    if asked != answered or not asked:
        raise UserError(f"{where}: {asked} questions but {answered} answers; they go in pairs")
    for answer in row["answers"]:
        if not states(answer, row["facts"]):
            raise UserError(f"{where}: the answer {answer!r} does not contain its facts {row['facts']}")
    return row


def as_question(row, where):
    """A passage, {"text": ...} -> the row of a question that is empty and has the text for its answer."""
    text = row["text"]
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: key text is not a text, or empty")
    others = {key: value for key, value in row.items() if key != "text"}
    return others | {"question": "", "answer": text, "questions": [""], "answers": [text],
                     "paraphrased_question": "", "paraphrased_answer": text, "perturbed_answer": []}


def with_options(row, where):
    """A question with options as WMDP and MMLU publish it (answer is the number of the right one) -> with answer and
    perturbed_answer, the other options, beside them."""
    options, answer = row["choices"], row.get("answer")
    texts = isinstance(options, list) and all(isinstance(text, str) and text.strip() for text in options)
    if not texts or len(options) < 2:
        raise UserError(f"{where}: key choices is not a list of at least two texts")
    if len(set(options)) < len(options):
        raise UserError(f"{where}: two of the choices are equal: {options}")
    if type(answer) is int:
        if not 0 <= answer < len(options):
            raise UserError(f"{where}: key answer is {answer}, but the choices are numbered 0 to {len(options) - 1}")
        answer = options[answer]
    if answer not in options:
        raise UserError(f"{where}: key answer is neither one of the choices nor its number")
    return row | {"answer": answer, "perturbed_answer": [text for text in options if text != answer]}
