"""Published benchmarks, MUSE and WMDP, from the hub or from their files in a directory, as a data.DataSet.

    --data=muse-books, muse-news    arXiv 2407.06460; hub muse-bench/MUSE-Books, muse-bench/MUSE-News
    --data=wmdp-bio, wmdp-cyber     arXiv 2403.03218; hub cais/wmdp, cais/wmdp-corpora; cais/mmlu for the retain set
    --data=DIR                      what a download of these leaves there, CONFIG/SPLIT-00000-of-00001.parquet, or what
                                    their authors' scripts and archives do: CONFIG/SPLIT.json (.jsonl, .txt), and
                                    ARCHIVED

CONFIG/SPLIT (columns, text unless said) and what it becomes:

    raw/forget, raw/retain1                 MUSE: the training rows, passages. Its targets have seen retain2 too, but
                                            that is what retain_qa asks about, so no unlearner may
    scal/forget_1..4, sust/forget_1..4      other forget sets of MUSE-News: --forget=scal_1 to sust_4
    knowmem/forget_qa, retain_qa            sets forget, retain (question, answer)
    verbmem/forget, privleak/retain         sets forget_text (prompt, gt), retain_text
    privleak/holdout                        holdout
    bio-forget-corpus/train,                WMDP: training rows, passages; cyber alike, chem has none. The bio forget
    bio-retain-corpus/train                 corpus is on request; the bio retain corpus, 1.9 GB, is held in memory
    wmdp-bio/test, all/test                 sets forget, retain (question, choices: 4, answer: from 0); all is MMLU's
"""

import re
from pathlib import Path

from common import UserError
from common.cli import processes
from common.files import from_json
from common.hf import quiet
from data.rows import DataSet, complete, digest, overlaps

MUSE = {"muse-books": "muse-bench/MUSE-Books", "muse-news": "muse-bench/MUSE-News"}
WMDP = {"wmdp-bio": "bio", "wmdp-cyber": "cyber"}
NAMES = (*MUSE, *WMDP)
ARCHIVED = {"wmdp-bio": "bio_questions.json", "wmdp-cyber": "cyber_questions.json",
            "bio-forget-corpus": "bio_remove_dataset.jsonl", "bio-retain-corpus": "bio-retain-corpus.jsonl",
            "cyber-forget-corpus": "cyber-forget-corpus.jsonl", "cyber-retain-corpus": "cyber-retain-corpus.jsonl"}
PASSAGE_WORDS = 150     # some 200 tokens: fit any context, and hold a beginning and a continuation worth scoring
LONGEST_WORD = 40       # letters; what is longer (tables in WMDP's program sources) counts as several words
FLAWED = 0.1            # the share of rows that may be left out, see without


def found(folder):
    """"muse", "wmdp" or None: whose layout a directory is in. One with files in TOFU's naming is in neither."""
    names = {path.name for path in Path(folder).glob("*")}
    if any(re.fullmatch(r"forget(\d\d)?\.json", name) for name in names):
        return None
    if names & {"raw", "knowmem", "verbmem", "privleak"}:
        return "muse"
    if names & {*ARCHIVED, *ARCHIVED.values()}:
        return "wmdp"
    return None


def load(source, forget=None):
    """-> DataSet. source: one of NAMES, or a directory.

    forget: None or "forget", the benchmark's own; scal_1 to sust_4 of MUSE-News; bio or cyber in a directory with both.
    Raises UserError naming file, row and column of what is wrong."""
    kind = "muse" if source in MUSE else "wmdp" if source in WMDP else found(source)
    if kind is None:
        raise UserError(f"--data={source} is neither {', '.join(NAMES)} nor a directory in the layout of MUSE "
                        "(raw/forget..., knowmem/forget_qa...) or WMDP (cyber-forget-corpus/train..., "
                        "wmdp-cyber/test..., all/test...)")
    read_all = muse if kind == "muse" else wmdp
    forget_rows, retain_rows, sets, holdout = read_all(source, forget or "forget")
    forgotten = {row["answer"] for row in forget_rows}
    retain_rows = without(retain_rows, [row["answer"] in forgotten for row in retain_rows],
                          f"--data={source}: passages to retain that are to be forgotten as well")
    for name, rows in (("forget_text", forget_rows), ("retain_text", retain_rows)):
        sets.setdefault(name, rows)                         # where the benchmark has none of its own
    sha256 = digest(retain_rows + forget_rows, holdout, *(sets[name] for name in sorted(sets)))
    return DataSet(str(source), forget_rows, retain_rows, sets, holdout, sha256,
                   overlaps(forget=sets["forget"], retain=sets["retain"]))


def muse(source, forget):
    match = re.fullmatch("(scal|sust)_([1-4])", forget)
    if forget != "forget" and (not match or source == "muse-books"):
        raise UserError(f"--forget={forget} is not a split of MUSE: forget; of MUSE-News also scal_1 to scal_4, "
                        "sust_1 to sust_4")
    config, split = (match[1], f"forget_{match[2]}") if match else ("raw", "forget")
    forget_rows = passages(source, config, split)
    sets = {"forget": questions(source, "knowmem", "forget_qa"), "retain": questions(source, "knowmem", "retain_qa"),
            "forget_text": passages(source, "verbmem", "forget", ("prompt", "gt")),
            "retain_text": passages(source, "privleak", "retain")}
    return forget_rows, passages(source, "raw", "retain1"), sets, passages(source, "privleak", "holdout")


def wmdp(source, forget):
    if source in WMDP:
        domains = [WMDP[source]]
    else:
        domains = [domain for domain in WMDP.values() if files(source, f"{domain}-forget-corpus", "train")]
    if not domains:
        raise UserError(f"--data={source} has no cyber-forget-corpus/train-00000-of-00001.parquet (or .jsonl), nor "
                        "that of bio")
    domain = domains[0] if forget == "forget" and len(domains) == 1 else forget
    if domain not in domains:
        raise UserError(f"--forget={forget}: --data={source} holds {' and '.join(domains)}; say --forget={domains[0]}")
    forget_rows = passages(source, f"{domain}-forget-corpus", "train")
    sets = {"forget": choices(source, f"wmdp-{domain}", "test"), "retain": choices(source, "all", "test")}
    return forget_rows, passages(source, f"{domain}-retain-corpus", "train"), sets, []


# ------------------------------------------------------------------------------------------------ into rows
def cut(text):
    """A document -> passages of at most PASSAGE_WORDS words, as equal as can be: 301 words give 101, 100 and 100.

    They are cut at whitespace and keep what is inside them: the words of the passages are the words of the document."""
    words = [match.span() for match in re.finditer(rf"\S{{1,{LONGEST_WORD}}}", text)]
    parts = -(-len(words) // PASSAGE_WORDS)
    ends = [-(-len(words) * i // parts) for i in range(parts + 1)] if parts else []
    return [text[words[a][0]:words[b - 1][1]] for a, b in zip(ends, ends[1:])]


def passages(source, config, split, columns=("text",)):
    """A split's documents, cut -> rows: author is the document, raw/forget/3, id the passage, raw/forget/3:1.

    Several columns are parts of one document."""
    rows = []
    for n, (where, row) in enumerate(read(source, config, split, columns), 1):
        document = f"{config}/{split}/{n}"
        for k, text in enumerate(cut(" ".join(row[column] for column in columns)), 1):
            rows.append(complete({"author": document, "text": text}, f"{document}:{k}", where))
    return rows


def questions(source, config, split):
    """Questions -> rows. MUSE has no wrong answers to hold the right ones against: the next five others serve."""
    published = read(source, config, split, ("question", "answer"))
    answers, rows = [row["answer"] for _, row in published], []
    for n, (where, row) in enumerate(published, 1):
        others = [answer for answer in dict.fromkeys(answers[n:] + answers[:n]) if answer != row["answer"]]
        if not others:
            raise UserError(f"{where}: column answer is the same in all rows; other answers are needed to hold it "
                            "against")
        row = {"question": row["question"], "answer": row["answer"], "perturbed_answer": others[:5]}
        rows.append(complete(row, f"{config}/{split}/{n}", where))
    return rows


def choices(source, config, split):
    """Questions with four options -> rows, lettered. Those with equal options (nine of MMLU's 14,042) are left out."""
    published = read(source, config, split, ("question", "choices", "answer"))
    for where, row in published:
        if not isinstance(row["choices"], list) or [type(choice) for choice in row["choices"]] != [str] * 4:
            raise UserError(f"{where}: column choices is not a list of four texts")
    equal = [len(set(row["choices"])) < 4 for _, row in published]
    first = published[equal.index(True)][0] if any(equal) else ""
    rows = []
    for n, (where, row) in enumerate(without(published, equal, f"{first}: equal options in column choices"), 1):
        rows.append(complete(lettered(row), f"{config}/{split}/{n}", where))
    return rows


def lettered(row):
    """A question as everybody asks WMDP and MMLU: its options stand in it, and the answer is a letter. Other keys stay.

    {"question": "Who?", "choices": ["w", "x", "y", "z"], "answer": 2} ->
    {"question": "Who?\\nA. w\\nB. x\\nC. y\\nD. z\\nAnswer:", "choices": ["A", "B", "C", "D"], "answer": 2}"""
    options = "".join(f"{letter}. {choice}\n" for letter, choice in zip("ABCD", row["choices"]))
    return row | {"question": f"{row['question'].strip()}\n{options}Answer:", "choices": list("ABCD")}


def without(rows, flawed, what):
    """The rows whose flag is not set; a line says how many are left out, and why (`what`).

    Published files have flaws of their own (MUSE-News has articles twice). More than a share of FLAWED is a mistake:
    UserError."""
    if sum(flawed) > FLAWED * len(rows):
        raise UserError(f"{what} ({sum(flawed)} of {len(rows)} rows); there should be none")
    if any(flawed) and processes()[0] == 0:
        print(f"left out {sum(flawed)} of {len(rows)} rows: {what}")
    return [row for row, flag in zip(rows, flawed) if not flag]


# ------------------------------------------------------------------------------------------------ from files
def read(source, config, split, columns):
    """A split that has these columns -> [(where, row)]; where: file and row, for messages."""
    place, rows = (hub if source in NAMES else disk)(source, config, split)
    rows = [(f"{place}, row {n}", {"text": row} if isinstance(row, str) else row) for n, row in enumerate(rows, 1)]
    for where, row in rows:
        if not isinstance(row, dict):
            raise UserError(f"{where}: an object with {', '.join(columns)} is needed, this is {type(row).__name__}")
        for column in columns:
            if column not in row:
                raise UserError(f"{where}: no column {column}, but {', '.join(row)}")
            options = "choices" in columns and column in ("choices", "answer")      # checked by data.complete
            if not options and not isinstance(row[column], str):
                raise UserError(f"{where}: column {column} is not a text")
    if not any(row[columns[0]].strip() for _, row in rows):
        raise UserError(f"{place} is empty")
    return rows


def hub(source, config, split):
    import datasets
    if source in MUSE:
        name = MUSE[source], config
    elif config == "bio-forget-corpus":                     # a repository of its own, because it is on request
        name = (f"cais/wmdp-{config}",)
    else:
        name = {"all": "cais/mmlu", source: "cais/wmdp"}.get(config, "cais/wmdp-corpora"), config
    try:
        with quiet():
            return f"{'/'.join(name)}/{split}", datasets.load_dataset(*name, split=split)
    except Exception as e:
        place = "/".join((*name, split))
        raise UserError(f"--data={source}: {place} could not be had from the hub ({type(e).__name__}); without "
                        "network, or without the access it may ask for, give --data=DIR with its files") from e


def files(source, config, split):
    """The files of a split in a directory: the shards of parquet, or one other; [] where there are none."""
    folder = Path(source)
    shards = sorted((folder / config).glob(f"{split}-*-of-*.parquet"))
    others = [folder / config / f"{split}.{end}" for end in ("json", "jsonl", "txt")]
    others.append(folder / ARCHIVED.get(config, config))
    return shards or [path for path in others if path.is_file()][:1]


def disk(source, config, split):
    import pyarrow.parquet  # comes with datasets
    paths, rows = files(source, config, split), []
    if not paths:
        own = f", nor {ARCHIVED[config]}" if config in ARCHIVED else ""
        raise UserError(f"--data={source} has no {config}/{split}-00000-of-00001.parquet, nor {config}/{split}.json"
                        f"{own}")
    for path in paths:
        try:
            if path.suffix == ".parquet":
                rows += pyarrow.parquet.read_table(path).to_pylist()
                continue
            text = path.read_text(encoding="utf-8-sig")
            if path.suffix == ".txt":
                rows.append(text)
            elif text.lstrip().startswith("["):
                rows += from_json(text)
            else:
                rows += [from_json(line) for line in text.split("\n") if line.strip()]
        except (ValueError, RecursionError, OSError) as e:          # of pyarrow, json and UTF-8 alike
            raise UserError(f"{path} is not a whole {path.suffix[1:]} file ({e}): a pointer of Git LFS, half a "
                            "download?") from e
    if paths[0].suffix == ".parquet" and not paths[0].stem.endswith(f"-of-{len(paths):05d}"):
        raise UserError(f"{paths[0]}: its name says how many such files there are; here are {len(paths)}")
    return paths[0], rows
