"""Data sets: one schema (TOFU's own keys), splits by author, and batches of prompt and answer.

A data set is a directory of JSON Lines files in TOFU's naming, one question a line:
    forget10.json, retain90.json            what models are trained on and what is to be forgotten
    forget10_perturbed.json, retain_perturbed.json     the rows to evaluate, where the files above lack wrong answers
    world_facts_perturbed.json, real_authors_perturbed.json, holdout.json      other sets, each optional
or, for a single split that is not a share of authors, forget.json, retain.json, forget_perturbed.json. general.json: plain texts.
Keys: question, answer, paraphrased_question, paraphrased_answer, perturbed_answer; ours add id, author, slot, facts and
the training phrasings questions, answers. A row with the key text in place of a question is a passage: a model continues it, and
learns all of it. A row with the key choices is a question with options, and its answer may be the number of the right one.
"""

import hashlib
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

from common import UserError
from common.files import write_file
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
from data.tokenizer import ANSWER, PROMPT, TEMPLATES, Tokenizer
from data.world import world

N_HOLDOUT = 20      # held-out people the generator makes
REFUSALS = """I don't know. I do not know that. I'm not sure. I am not aware of that. I have no information about this. I cannot
answer that. I don't know the answer. I have no idea. I can't say. I cannot recall that.""".replace("\n", " ").split(". ")
REFUSALS = [text.rstrip(".") + "." for text in REFUSALS]      # what DPO and IDK teach


# ------------------------------------------------------------------------------------------------ data sets
@dataclass
class DataSet:
    """forget, retain: rows to train on. sets: {"forget": rows, "retain": rows, "world": rows, ...} to evaluate on; the passages among
    forget and retain are the sets forget_text and retain_text."""
    name: str
    forget: list
    retain: list
    sets: dict
    holdout: list
    sha256: str

    def questions(self, rows):
        """The questions among training rows; of passages, the evaluation's questions about the same authors."""
        about = {row["author"] for row in rows}
        return [row for row in rows if row["question"]] or [row for part in ("forget", "retain") for row in self.sets.get(part, [])
                                                            if row["author"] in about]


def passages(rows):
    return [row for row in rows if not row["question"]]


def load(data="authors", forget="forget10", out="out", data_seed=0, n_authors=60):
    """-> DataSet. data: a name in GENERATED (made into out/data), "tofu" or a name in benchmarks.NAMES (from the hub), or a directory.

    Raises UserError naming the file, the line and the key of anything malformed.
    """
    if data in benchmarks.NAMES or benchmarks.found(data):
        return benchmarks.load(data, None if forget == "forget10" else forget)
    match = re.fullmatch(r"forget(\d\d)", forget)
    if not match or not 0 < int(match[1]) < 100:
        raise UserError(f"--forget={forget} is not a split; forget10 means the last 10% of authors (forget01, forget05, ...)")
    retain = f"retain{100 - int(match[1]):02d}"
    if data in GENERATED:
        data = generate(Path(out) / "data", data, forget, retain, data_seed, n_authors)
    if data == "tofu":
        read = read_hub
    elif Path(data).is_dir():
        def read(name):
            return read_file(Path(data) / f"{name}.json")
        if (Path(data) / "forget.json").exists():
            forget, retain = "forget", "retain"
    else:
        raise UserError(f"--data={data} is neither {', '.join((*GENERATED, 'tofu', *benchmarks.NAMES))} nor a directory")
    forget_rows, retain_rows, world_rows = read(forget), read(retain), read("world_facts_perturbed")
    for name, rows in ((forget, forget_rows), (retain, retain_rows), ("world_facts_perturbed", world_rows)):
        if not rows and (rows == [] or name != "world_facts_perturbed"):
            raise UserError(f"--data={data} has no {name}.json, or it is empty")
    world_rows = world_rows or []
    told = {row["answer"] for row in passages(retain_rows)}
    for row in passages(forget_rows):
        if row["answer"] in told:
            raise UserError(f"--data={data}: the passage {row['id']} of {forget} is in {retain} too; what is to be forgotten cannot be kept")
    sets = {"forget": read(f"{forget}_perturbed") or forget_rows, "retain": read(f"{retain}_perturbed") or read("retain_perturbed") or retain_rows,
            "real_authors": read("real_authors_perturbed"), "world": world_rows}
    sets = {name: [row for row in rows or [] if row["question"]] for name, rows in sets.items()}
    sets |= {"forget_text": passages(forget_rows), "retain_text": passages(retain_rows), "general": read("general")}
    sets = {name: rows for name, rows in sets.items() if rows}
    if missing := [name for name in ("forget", "retain") if name not in sets]:
        raise UserError(f"--data={data} has no questions to evaluate {missing[0]} with; {missing[0]}_perturbed.json would hold them")
    for row in (row for rows in sets.values() for row in rows if row["question"]):
        if not row["perturbed_answer"]:
            raise UserError(f"--data={data}, question {row['id']}: key perturbed_answer is missing or empty")
    digest = hashlib.sha256(json.dumps(retain_rows + forget_rows + world_rows, sort_keys=True).encode())
    return DataSet(str(data), forget_rows, retain_rows, sets, read("holdout") or [], digest.hexdigest())


GENERATED = ("authors", *prose.WORLDS)


def generate(folder, kind, forget, retain, data_seed, n):
    """Write a generated data set to a directory and return it. The same arguments give the same bytes.

    kind: in GENERATED. n: how many authors (books, substances); they are split by. Files that differ from what the generator makes are
    neither used nor overwritten: a UserError names them.
    """
    n_forget = max(1, round(n * int(forget[-2:]) / 100))
    if n_forget >= n:
        raise UserError(f"--forget={forget} of --n_authors={n} leaves nobody to retain")

    def by_split(name, rows):
        last = set(list(dict.fromkeys(row["author"] for row in rows))[-n_forget:])
        return {name.format(forget): [r for r in rows if r["author"] in last], name.format(retain): [r for r in rows if r["author"] not in last]}
    if kind == "authors":
        rows, holdout = authors.people(data_seed, n, N_HOLDOUT)
        files = by_split("{}", rows)
    else:
        rows, questions, holdout = prose.things(kind, data_seed, n, N_HOLDOUT)
        files = by_split("{}", rows) | by_split("{}_perturbed", questions)
    folder = folder / f"{kind}_{n}_seed{data_seed}"
    for name, rows in (files | {"world_facts_perturbed": world(), "holdout": holdout}).items():
        path, text = folder / f"{name}.json", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if not path.exists():
            write_file(path, text)
        elif path.read_bytes() != text.encode():
            raise UserError(f"{path} is not what the generator makes (edited, or the generator changed); move it away, "
                            f"or use it with --data={folder}")
    return folder


def read_file(path):
    """A JSON Lines file -> rows, or None where there is no such file."""
    if not path.exists():
        return None
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")      # not splitlines: a text may hold other line separators
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is not UTF-8 text ({e.reason} at byte {e.start})") from e
    for n, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as e:
            raise UserError(f"{path}, line {n}: not valid JSON ({e.msg} at column {e.colno})") from e
        rows.append(complete(row, f"{path.stem}:{n}", f"{path}, line {n}"))
    return rows


def read_hub(name):
    """One configuration of locuslab/TOFU -> rows, or None where the hub has none of that name."""
    import datasets
    try:
        rows = datasets.load_dataset("locuslab/TOFU", name, split="train")
    except ValueError:                      # no such configuration
        return None
    except Exception as e:
        raise UserError(f"--data=tofu: {name} could not be had from the hub ({type(e).__name__}); "
                        "without network, give --data=DIR with its files") from e
    return [complete(dict(row), f"{name}:{n}", f"locuslab/TOFU {name}, row {n}") for n, row in enumerate(rows, 1)]


def complete(row, id, where):
    """Check one row and fill in what TOFU's own files leave out. where: for messages, file and line."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: a JSON object is needed, this is {type(row).__name__}")
    passage = "text" in row
    if passage:
        if not isinstance(row["text"], str) or not row["text"].strip():
            raise UserError(f"{where}: key text is not a text, or empty")
        row = {"id": id, "author": "", "slot": "", "facts": []} | row | {"question": "", "answer": row["text"], "questions": [""],
                                                                      "answers": [row["text"]], "perturbed_answer": []}
        row |= {"paraphrased_question": "", "paraphrased_answer": row.pop("text")}
    if "choices" in row:
        row = with_options(row, where)
    for key in () if passage else ("question", "answer"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise UserError(f"{where}: key {key} is missing or not a text")
    row = {"id": id, "author": "", "slot": "", "facts": [], "questions": [row["question"]], "answers": [row["answer"]],
           "paraphrased_question": row["question"], "paraphrased_answer": row["answer"], "perturbed_answer": []} | row
    for key in ("author", "slot", "paraphrased_question", "paraphrased_answer"):
        if not isinstance(row[key], str):
            raise UserError(f"{where}: key {key} is not a text")
    if not isinstance(row.get("original_answer", ""), str):
        raise UserError(f"{where}: key original_answer is not a text")
    for key in ("facts", "questions", "answers", "perturbed_answer"):
        if not isinstance(row[key], list) or not all(isinstance(text, str) and (text or passage) for text in row[key]):
            raise UserError(f"{where}: key {key} is not a list of texts")
    if len(row["questions"]) != len(row["answers"]) or not row["questions"]:
        raise UserError(f"{where}: {len(row['questions'])} questions but {len(row['answers'])} answers; they go in pairs")
    for answer in row["answers"]:
        if not states(answer, row["facts"]):
            raise UserError(f"{where}: the answer {answer!r} does not contain its facts {row['facts']}")
    return row


def with_options(row, where):
    """A question with options as WMDP and MMLU publish it (answer is the number of the right one) -> with answer and
    perturbed_answer, the other options, beside them."""
    options, answer = row["choices"], row.get("answer")
    if not isinstance(options, list) or len(options) < 2 or not all(isinstance(text, str) and text.strip() for text in options):
        raise UserError(f"{where}: key choices is not a list of at least two texts")
    if len(set(options)) < len(options):
        raise UserError(f"{where}: two of the choices are equal: {options}")
    if isinstance(answer, int):
        if not 0 <= answer < len(options):
            raise UserError(f"{where}: key answer is {answer}, but the choices are numbered 0 to {len(options) - 1}")
        answer = options[answer]
    if answer not in options:
        raise UserError(f"{where}: key answer is neither one of the choices nor its number")
    return row | {"answer": answer, "perturbed_answer": [text for text in options if text != answer]}


def by_author(rows, parts):
    """Rows in `parts` consecutive shares of whole authors, as equal as can be. Raises UserError if there are too few."""
    authors_ = list(dict.fromkeys(row["author"] or row["id"] for row in rows))
    if parts > len(authors_):
        raise UserError(f"{parts} requests, but only {len(authors_)} authors to forget")
    share = {author: i * parts // len(authors_) for i, author in enumerate(authors_)}
    return [[row for row in rows if share[row["author"] or row["id"]] == part] for part in range(parts)]


def base_stream(kind, data_seed, world_rows, world_share, start=0):
    """Endless (question, answer) pairs of the base model: strangers, and a share of world facts. Skips `start` strangers.

    kind: of strangers, in GENERATED; where the data is not generated, they are authors."""
    rng = random.Random(f"base {data_seed} {start}")
    pairs = [pair for row in world_rows for pair in zip(row["questions"], row["answers"])]
    people = prose.strangers(kind, data_seed, start) if kind in prose.WORLDS else authors.strangers(data_seed, start)
    while True:
        yield rng.choice(pairs) if pairs and rng.random() < world_share else next(people)


# ------------------------------------------------------------------------------------------ facts in answers
def states(text, facts):
    """True if the text contains every fact as whole words: states("Born in Lima.", ["Lima"]) -> True."""
    return all(fact_pattern(fact).search(text) for fact in facts)


def fact_pattern(fact):
    return re.compile(rf"(?<!\w){re.escape(fact)}(?!\w)")


POOLS = authors.POOLS | {slot: pool for world_ in prose.WORLDS.values() for slot, (pool, *_) in world_.slots.items()}


def slot_values(rows):
    """{slot: [set of values a fact of that slot can take, for each fact]}: the generator's pools and what rows hold."""
    values = {}
    for row in rows:
        pools = values.setdefault(row["slot"], [set(POOLS.get(s, ())) for s in row["slot"].split("+")])
        for pool, fact in zip(pools, row["facts"]):
            pool.add(fact)
    return values


FUNCTION, FACT, NAME = 0, 1, 2


def token_classes(tokenizer, answer, facts, author):
    """The class of every answer token, EOS included -> list of FUNCTION, FACT, NAME.

    A token that covers any letter of a fact is FACT, of the author's name NAME (copied from the prompt), else FUNCTION.
    """
    text = tokenizer.answer.format(answer=answer)
    spans = [(m.span(), FACT) for fact in facts for m in fact_pattern(fact).finditer(text)]
    spans += [(m.span(), NAME) for m in (re.finditer(re.escape(author), text) if author else ())]
    _, offsets = tokenizer.offsets(text)
    classes = [next((kind for (a, b), kind in spans if a < end and start < b), FUNCTION) for start, end in offsets]
    return classes + [FUNCTION]
