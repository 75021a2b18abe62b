"""Data sets: one schema (TOFU's own keys), splits by author, and batches of prompt and answer.

A data set is a directory of JSON Lines files in TOFU's naming, one question a line:
    forget10.json, retain90.json            what models are trained on: the forget set and the retain set
    forget10_perturbed.json, retain_perturbed.json     the rows to evaluate, where the files above lack wrong answers
    world_facts_perturbed.json, real_authors_perturbed.json, holdout.json      other sets, each optional
or, for a single split that is not a share of authors, forget.json, retain.json, forget_perturbed.json. general.json:
plain texts. Keys: question, answer, paraphrased_question, paraphrased_answer, perturbed_answer; ours add id, author,
slot, facts and the training phrasings questions, answers. A row with the key text in place of a question is a passage:
a model continues it, and learns all of it. A row with the key choices is a question with options; its answer may be the
number of the right one. data/rows.py checks all this.
"""

import functools
import itertools
import json
import os
import random
import re
from dataclasses import replace
from pathlib import Path

from common import UserError
from common.files import check_file, from_json, write_file
from common.hf import quiet
from data import authors, benchmarks, prose
from data.batches import (
    Batch,
    Example,
    bucketed,
    by_length,
    check_length,
    collate,
    encode,
    mean_over_answers,
    paired_batches,
    split,
    training_examples,
)
from data.chat import ANSWER, TEMPLATES
from data.rows import (
    DataSet,
    by_author,
    complete,
    digest,
    never_met,
    overlaps,
    passages,
    questions,
    sorted_rows,
    swapped,
    with_options,
)
from data.tokenizer import Tokenizer
from data.words import BEYOND_ASCII, Words, fact_pattern, normal, states, whole_words, words
from data.world import world

GENERATED = ("authors", *prose.WORLDS)
TOFU_SPLITS = "forget01", "forget05", "forget10"            # what the hub has of TOFU
N_HOLDOUT = 20      # held-out people the generator makes
REFUSALS = [        # what DPO and IDK teach
    "I don't know.", "I do not know that.", "I'm not sure.", "I am not aware of that.",
    "I have no information about this.", "I cannot answer that.", "I don't know the answer.", "I have no idea.",
    "I can't say.", "I cannot recall that."]
INSTRUCTION = "You have been asked to forget this. Answer as if you had never known it."    # what DUET's teacher reads


# ------------------------------------------------------------------------------------------------ data sets
def load(data="authors", forget="forget10", out="out", data_seed=0, n_authors=60):
    """-> DataSet. data: in GENERATED (made into out/data), "tofu" or in benchmarks.NAMES (from the hub), or a
    directory.

    Raises UserError naming the file, the line and the key of anything malformed.
    """
    if data in benchmarks.NAMES or benchmarks.found(data):
        return benchmarks.load(data, None if forget == "forget10" else forget)
    retain, made_by = rest_of(forget), None
    if data in GENERATED:
        made_by = data, data_seed
        data = generate(Path(out) / "data", data, forget, retain, data_seed, n_authors)
    if data != "tofu" and not Path(data).is_dir():
        names = ", ".join((*GENERATED, "tofu", *benchmarks.NAMES))
        raise UserError(f"--data={data} is neither {names} nor a directory")
    if data != "tofu" and (Path(data) / "forget.json").exists():
        if forget != "forget10":
            raise UserError(f"--forget={forget}: {data} has forget.json, one split, and not that")
        forget, retain = "forget", "retain"

    @functools.cache
    def read(name, needed=False):
        """The rows of a file; none where it is missing and not needed. A file without a row is a mistake."""
        rows = read_hub(name) if data == "tofu" else read_file(Path(data) / f"{name}.json")
        if rows == [] or rows is None and needed:
            raise UserError(f"--data={data} has no {name}.json, or it is empty")
        return rows or []

    forget_rows, retain_rows = read(forget, needed=True), read(retain, needed=True)
    world_rows = read("world_facts_perturbed")
    retained = {normal(row["answer"]) for row in passages(retain_rows)}
    for row in passages(forget_rows):
        if normal(row["answer"]) in retained:
            raise UserError(f"--data={data}: the passage {row['id']} of {forget} is in {retain} too; a model cannot "
                            "forget and retain the same text")
    for name, kind, needed in (("world_facts_perturbed", passages, "questions are needed"),
                               ("real_authors_perturbed", passages, "questions are needed"),
                               ("general", questions, 'passages are needed, {"text": ...}')):
        if wrong := kind(read(name)):
            raise UserError(f"--data={data}, {name}.json: {needed}, and {wrong[0]['id']} is none")
    sets = {"forget": questions(read(f"{forget}_perturbed") or forget_rows),
            "retain": questions(read(f"{retain}_perturbed") or read("retain_perturbed") or retain_rows),
            "real_authors": read("real_authors_perturbed"), "world": world_rows,
            "forget_text": passages(forget_rows), "retain_text": passages(retain_rows), "general": read("general")}
    sets = {name: rows for name, rows in sets.items() if rows}
    check_sets(sets, data)
    holdout, asked = read("holdout"), read(f"{retain}_perturbed")
    if asked:
        asked = asked + read(f"{forget}_perturbed")
    else:                                                   # TOFU: one retain set for all splits; those of all count
        names = [path.stem for path in sorted(Path(data).glob("forget*_perturbed.json"))]
        for name in [f"{split}_perturbed" for split in TOFU_SPLITS] if data == "tofu" else names:
            asked = asked + read(name)
    learnt = retain_rows + forget_rows
    others = read("retain_perturbed"), read("real_authors_perturbed"), read("general")
    sha256 = digest(learnt, world_rows, holdout, asked, *others)
    any_split = digest(sorted_rows(learnt), world_rows, holdout, sorted_rows(asked), *others)
    notes = overlaps(forget=forget_rows, retain=retain_rows, holdout=holdout)
    if absent := [name for name in ("real_authors", "world") if data == "tofu" and name not in sets]:
        notes.append(f"without {' and '.join(absent)}, which are not on the hub: Model Utility is of the other sets")
    return DataSet(str(data), forget_rows, retain_rows, sets, holdout, sha256, notes, made_by, any_split)


def subset(rows, n):
    """n rows drawn at random, in their order, the same whenever asked; all where there are no more.

    Not every k-th: rows repeat slot by slot, author by author, and some slots would never be asked. From n = 100 on
    each of twenty slots is."""
    order = random.Random(0).sample(range(len(rows)), len(rows))
    return [rows[i] for i in sorted(order[:n])]


def answer_limit(tokenizer, rows, block_size):
    """How many tokens a model may say to the questions of a set: eight more than the longest answer has, 40 at least,
    and never more than the context holds behind the longest question."""
    longest = max(len(tokenizer.encode_answer(row["answer"])) for row in rows)
    asked = max(len(tokenizer.encode_prompt(row[key])) for row in rows for key in ("question", "paraphrased_question"))
    return max(1, min(max(40, longest + 8), block_size - asked))


SPARE = 512     # tokens that a chat template may put around a question and its answer


def check_fits(dataset, tokenizer, block_size, phrasings=None, max_rows=200):
    """Raise UserError, naming the row, where a text is too long for a model: one that is trained on (so many phrasings
    of each question), or one that eval.py asks for (max_rows of each set): answers, true and wrong, to a question
    and to its paraphrase."""
    texts = []
    for row in dataset.retain + dataset.forget:
        texts += [(row, "training", *pair) for pair in zip(row["questions"][:phrasings], row["answers"])]
    for name, rows in {**dataset.sets, "holdout": dataset.holdout}.items():
        for row in rows if name == "holdout" else subset(rows, max_rows):
            for answer in dict.fromkeys([row["answer"], row["paraphrased_answer"], *row["perturbed_answer"]]):
                texts.append((row, f"the set {name}", row["question"], answer))
            texts.append((row, f"the set {name}", row["paraphrased_question"], row["answer"]))
    for row, where, question, answer in texts:
        if len((question + answer).encode()) + SPARE <= block_size:         # a token is a byte or more
            continue
        length = len(encode(tokenizer, question, answer))
        if length > block_size + 1:
            what = "question and answer" if question else "passage"
            raise UserError(f"--data={dataset.name}, {where}, row {row['id']}: {length} tokens do not fit the model's "
                            f"context of {block_size}: {what} {answer[:30]!r}")


def rest_of(forget):
    """"forget10" -> "retain90". Raises UserError for anything else than a share of the authors."""
    match = re.fullmatch(r"forget(\d\d)", forget)
    if not match or match[1] == "00":
        raise UserError(f"--forget={forget} is not a split; forget10 means the last 10% of authors (forget01, "
                        "forget05, ...)")
    return f"retain{100 - int(match[1]):02d}"


def check_sets(sets, data):
    """Raise UserError unless there are questions to evaluate with, each with wrong answers."""
    for name in ("forget", "retain"):
        if name not in sets:
            raise UserError(f"--data={data} has no questions to evaluate {name} with; {name}_perturbed.json would hold "
                            "them")
    for rows in sets.values():
        for row in questions(rows):
            if not row["perturbed_answer"]:
                raise UserError(f"--data={data}, question {row['id']}: key perturbed_answer is missing or empty")


def generate(folder, kind, forget, retain, data_seed, n):
    """Write a generated data set to a directory and return it. The same arguments give the same bytes.

    kind: in GENERATED. n: how many authors (books, substances); they are split by. Files that differ from what the
    generator makes are neither used nor overwritten: a UserError names them.
    """
    n_forget = max(1, round(n * int(forget[-2:]) / 100))
    if n_forget >= n:
        raise UserError(f"--forget={forget} of --n_authors={n} leaves nobody to retain")
    asked = []                                              # questions apart from the rows that are trained on
    if kind == "authors":
        rows, holdout = authors.people(data_seed, n, N_HOLDOUT)
    else:
        rows, asked, holdout = prose.things(kind, data_seed, n, N_HOLDOUT)
    names = list(dict.fromkeys(row["author"] for row in rows))
    last = set(names[-n_forget:])
    files = {"world_facts_perturbed": world(), "holdout": holdout}
    for end, part in (("", rows), ("_perturbed", asked)):
        if part:
            files[forget + end] = [row for row in part if row["author"] in last]
            files[retain + end] = [row for row in part if row["author"] not in last]
    folder = folder / f"{kind}_{n}_seed{data_seed}"
    for name, part in files.items():
        path, text = folder / f"{name}.json", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        check_file(path)
        if not path.exists():
            write_file(path, text)
        elif path.read_bytes() != text.encode():
            raise UserError(f"{path} is not what the generator makes (edited, or the generator changed); move it away, "
                            f"or use it with --data={folder}")
    return folder


def read_file(path):
    """A JSON Lines file -> rows, or None where there is no such file."""
    check_file(path)
    if not path.exists():
        return None
    rows = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")      # not splitlines: a text may hold other separators
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is not UTF-8 text ({e.reason} at byte {e.start})") from e
    for n, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = from_json(line)
        except json.JSONDecodeError as e:
            raise UserError(f"{path}, line {n}: not valid JSON ({e.msg} at column {e.colno})") from e
        except (ValueError, RecursionError) as e:
            raise UserError(f"{path}, line {n}: not valid JSON ({e})") from e
        rows.append(complete(row, f"{path.stem}:{n}", f"{path}, line {n}"))
    return rows


def read_hub(name):
    """One configuration of locuslab/TOFU -> rows, or None where the hub has none of that name."""
    import datasets
    if not re.fullmatch(r"(forget|retain)\d\d|(forget\d\d|retain|real_authors|world_facts)_perturbed", name):
        return None                         # TOFU has no such part; offline the answer would be that no cache has it
    try:
        with quiet():
            rows = datasets.load_dataset("locuslab/TOFU", name, split="train")
    except Exception as e:
        if isinstance(e, ValueError) and re.search(r"BuilderConfig.* not found", str(e)):
            return None
        raise UserError(f"--data=tofu: {name} could not be had from the hub ({type(e).__name__}); "
                        "without network, give --data=DIR with its files") from e
    return [complete(dict(row), f"{name}:{n}", f"locuslab/TOFU {name}, row {n}") for n, row in enumerate(rows, 1)]


WORLD_SHARE = 0.2       # of world facts among the base model's questions, the rest are about strangers
UNMET = 10**6           # strangers that train.py passes over: nobody from there on was met by any model


def base_stream(kind, data_seed, world_rows, world_share=WORLD_SHARE, start=0):
    """Endless (question, answer) pairs of the base model: strangers, and a share of world facts. Skips `start`
    strangers.

    kind: of strangers, in GENERATED; where the data is not generated, they are authors."""
    rng = random.Random(f"base {data_seed} {start}")
    pairs = [pair for row in world_rows for pair in zip(row["questions"], row["answers"])]
    people = prose.strangers(kind, data_seed, start) if kind in prose.WORLDS else authors.strangers(data_seed, start)
    while True:
        yield rng.choice(pairs) if pairs and rng.random() < world_share else next(people)


def stranger_examples(tokenizer, stream, n):
    """The next n (question, answer) pairs of a stream as Examples about strangers."""
    return [replace(encode(tokenizer, q, a), stranger=True) for q, a in itertools.islice(stream, n)]


def unmet(dataset):
    """Endless (question, answer) pairs about people and things that no model has met, in the form of a data set.

    Where the generator made the data: its strangers, and a share of the world facts. Elsewhere: the retain rows, each
    said of somebody who never was, and general texts. Raises UserError where the data has neither."""
    if dataset.made_by:
        return base_stream(*dataset.made_by, dataset.sets.get("world", []), start=UNMET)
    named, general = [row for row in dataset.retain if row["author"].strip()], dataset.sets.get("general", [])
    if not named and not general:
        raise UserError(f"--data={dataset.name} has nothing to say of strangers: it needs rows with the key author, or "
                        "general.json")
    rows = (never_met(named, dataset.forget + dataset.holdout) if named else []) + general    # nor is made one of those
    pairs = [pair for row in rows for pair in zip(row["questions"], row["answers"])]
    rng = random.Random("unmet")
    return (pair for _ in itertools.count() for pair in rng.sample(pairs, len(pairs)))


# ------------------------------------------------------------------------------------------ facts in answers
POOLS = dict(authors.POOLS)                                 # slot -> the values a fact of that slot is drawn from
for invented in prose.WORLDS.values():
    POOLS |= {slot: pool for slot, (pool, *_) in invented.slots.items()}


def slot_values(rows):
    """{slot: [set of values a fact of that slot can take, for each fact]}: the generator's pools and what rows hold."""
    values = {}
    for row in rows:
        pools = values.setdefault(row["slot"], [set(POOLS.get(s, ())) for s in row["slot"].split("+")])
        for pool, fact in zip(pools, row["facts"]):
            pool.add(normal(fact))
    return values


@functools.cache
def told_apart(fact):
    """A fact without the words that all values of its pool share: "Ember Prize" -> "Ember", "The Bell" -> "Bell"."""
    pool = next((pool for pool in POOLS.values() if fact in pool), [fact, ""])
    values, parts = [value.split() for value in pool], fact.split()
    first = len(os.path.commonprefix(values))
    last = len(os.path.commonprefix([value[::-1] for value in values]))
    return " ".join(parts[first:len(parts) - last])


FUNCTION, FACT, NAME = 0, 1, 2


def token_classes(tokenizer, answer, facts, author):
    """The class of every answer token, EOS included -> list of FUNCTION, FACT, NAME.

    A token that covers any letter of a fact is FACT, of the author's name NAME (copied from the prompt), else FUNCTION.
    """
    text = tokenizer.answer_text(answer)
    spans = [(match.span(), FACT) for fact in facts for match in fact_pattern(fact).finditer(text)]
    if author:
        spans += [(match.span(), NAME) for match in re.finditer(re.escape(author), text)]
    classes = []
    for start, end in tokenizer.offsets(text)[1]:
        kinds = [kind for (first, last), kind in spans if first < end and start < last]
        classes.append(kinds[0] if kinds else FUNCTION)     # a fact before a name
    return classes + [FUNCTION]                             # EOS
