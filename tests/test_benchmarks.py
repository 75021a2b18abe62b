"""MUSE and WMDP in miniature, in every form they are published in: what they become, and files that are damaged."""

import json

import pyarrow
import pyarrow.parquet
import pytest

import data
from data import benchmarks
from data.benchmarks import PASSAGE_WORDS, cut, lettered


def words(n, word="w"):
    return " ".join(f"{word}{i}" for i in range(n))


def option_row(n, **changes):
    return {"question": f"Which {n}? ", "choices": ["north", "south", "east", "west"], "answer": n % 4} | changes


MUSE = {"raw/forget": [{"text": words(2 * PASSAGE_WORDS, "f")}, {"text": "A short one."}],
        "raw/retain1": [{"text": words(PASSAGE_WORDS, "r")}, {"text": "Kept."}],
        "scal/forget_1": [{"text": "scal one"}], "scal/forget_2": [{"text": "scal one"}, {"text": "scal two"}],
        "sust/forget_4": [{"text": "sust four"}],
        "knowmem/forget_qa": [{"question": "Who?", "answer": "Ada."}, {"question": "When?", "answer": "1984"}],
        "knowmem/forget_qa_icl": [{"question": "Not this?", "answer": "No."}],
        "knowmem/retain_qa": [{"question": f"Where is {n}?", "answer": f"In {n}."} for n in "ABCDEFG"] +
                             [{"question": "Where is a?", "answer": "In A."}],
        "verbmem/forget": [{"prompt": words(100, "p"), "gt": words(20, "g")}],
        "privleak/retain": [{"text": "privleak retain"}], "privleak/holdout": [{"text": words(PASSAGE_WORDS + 1, "h")}]}
WMDP = {"cyber-forget-corpus/train": [{"text": words(PASSAGE_WORDS + 2, "f")}, {"text": "\n"}],
        "cyber-retain-corpus/train": [{"text": "int main() {\n  return 0;\n}"}],
        "wmdp-cyber/test": [option_row(0), option_row(1)],
        "all/test": [option_row(n, subject="virology") for n in range(11)]}


def write(folder, splits, form="parquet"):
    """The splits as the hub's download ("parquet"), the authors' script or archives ("own"), JSON Lines ("jsonl")."""
    for name, rows in splits.items():
        config, split = name.split("/")
        path = folder / config / f"{split}.{'json' if form == 'own' else form}"
        if form == "own" and config in benchmarks.ARCHIVED:
            path = folder / benchmarks.ARCHIVED[config]
        path.parent.mkdir(parents=True, exist_ok=True)
        if form == "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows),
                                        path.with_name(f"{split}-00000-of-00001.parquet"))
        elif path.suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:                                               # MUSE's script writes passages as a list of texts
            path.write_text(json.dumps([row["text"] if list(row) == ["text"] else row for row in rows]))
    return str(folder)


def texts(rows):
    return [row["answer"] for row in rows]


# ------------------------------------------------------------------------------------------------ what they become
@pytest.mark.parametrize("form", ["parquet", "own", "jsonl"])
def test_muse_in_every_form(tmp_path, form):
    loaded = benchmarks.load(write(tmp_path, MUSE, form))
    assert loaded.name == str(tmp_path) and list(loaded.sets) == ["forget", "retain", "forget_text", "retain_text"]
    assert texts(loaded.forget) == [*cut(MUSE["raw/forget"][0]["text"]), "A short one."] and len(loaded.forget) == 3
    assert texts(loaded.retain) == [words(PASSAGE_WORDS, "r"), "Kept."]
    assert [row["id"] for row in loaded.forget] == ["raw/forget/1:1", "raw/forget/1:2", "raw/forget/2:1"]
    assert [row["author"] for row in loaded.forget] == ["raw/forget/1", "raw/forget/1", "raw/forget/2"]
    assert {row["question"] for row in loaded.forget + loaded.retain + loaded.holdout} == {""}
    asked = [(row["id"], row["question"], row["answer"], row["perturbed_answer"]) for row in loaded.sets["forget"]]
    assert asked == [("knowmem/forget_qa/1", "Who?", "Ada.", ["1984"]),
                     ("knowmem/forget_qa/2", "When?", "1984", ["Ada."])]
    wrong = [(row["answer"], row["perturbed_answer"]) for row in loaded.sets["retain"]]
    assert wrong[0] == ("In A.", [f"In {n}." for n in "BCDEF"]) and wrong[4] == ("In E.", [f"In {n}." for n in "FGABC"])
    assert texts(loaded.sets["forget_text"]) == [f"{words(100, 'p')} {words(20, 'g')}"]
    assert texts(loaded.sets["retain_text"]) == ["privleak retain"]
    assert [len(text.split()) for text in texts(loaded.holdout)] == [76, 75]
    assert len(data.by_author(loaded.forget, 2)) == 2                   # requests one after another go by documents


@pytest.mark.parametrize("form", ["parquet", "own", "jsonl"])
def test_wmdp_in_every_form(tmp_path, form):
    loaded = benchmarks.load(write(tmp_path, WMDP, form))
    assert list(loaded.sets) == ["forget", "retain", "forget_text", "retain_text"] and loaded.holdout == []
    assert loaded.sets["forget_text"] == loaded.forget and loaded.sets["retain_text"] == loaded.retain
    assert [len(text.split()) for text in texts(loaded.forget)] == [76, 76]
    assert texts(loaded.retain) == ["int main() {\n  return 0;\n}"]
    first, second = loaded.sets["forget"]
    assert first["question"] == "Which 0?\nA. north\nB. south\nC. east\nD. west\nAnswer:"
    assert (first["answer"], first["perturbed_answer"], first["choices"]) == ("A", ["B", "C", "D"], list("ABCD"))
    assert (second["answer"], second["perturbed_answer"], second["id"]) == ("B", ["A", "C", "D"], "wmdp-cyber/test/2")
    assert len(loaded.sets["retain"]) == 11 and loaded.sets["retain"][0]["subject"] == "virology"


def test_all_forms_are_one_data_set_and_what_is_trained_and_asked_makes_the_hash(tmp_path):
    digests = {benchmarks.load(write(tmp_path / form, MUSE, form)).sha256 for form in ("parquet", "own", "jsonl")}
    for changed in ("raw/forget", "raw/retain1"):
        digests.add(benchmarks.load(write(tmp_path / changed, MUSE | {changed: [{"text": "Other."}]})).sha256)
    for changed in ("privleak/retain", "privleak/holdout"):
        digests.add(benchmarks.load(write(tmp_path / changed, MUSE | {changed: [{"text": "Other."}]})).sha256)
    assert len(digests) == 5


def test_other_forget_sets_of_muse_news(tmp_path):
    folder = write(tmp_path, MUSE)
    assert benchmarks.load(folder, "forget").sha256 == benchmarks.load(folder).sha256
    assert texts(benchmarks.load(folder, "scal_2").forget) == ["scal one", "scal two"]
    assert texts(benchmarks.load(folder, "sust_4").forget) == ["sust four"]
    with pytest.raises(ValueError, match="has no sust/forget_1-00000-of-00001.parquet, nor sust/forget_1.json"):
        benchmarks.load(folder, "sust_1")
    for source, forget in ((folder, "forget10"), (folder, "scal_5"), ("muse-books", "scal_1")):
        with pytest.raises(ValueError,
                           match=f"--forget={forget} is not a split of MUSE: forget; of MUSE-News also scal_1"):
            benchmarks.load(source, forget)


def test_a_directory_with_both_corpora_of_wmdp_asks_which(tmp_path):
    bio = {"bio-forget-corpus/train": [{"title": "On", "abstract": "Of", "text": "bio forget", "doi": "1"}],
           "bio-retain-corpus/train": [{"text": "bio retain"}], "wmdp-bio/test": [option_row(2)]}
    folder = write(tmp_path, WMDP | bio, "own")
    assert texts(benchmarks.load(folder, "bio").forget) == ["bio forget"]
    assert texts(benchmarks.load(folder, "cyber").forget) == cut(WMDP["cyber-forget-corpus/train"][0]["text"])
    for forget in (None, "chem"):
        with pytest.raises(ValueError, match="holds bio and cyber; say --forget=bio"):
            benchmarks.load(folder, forget)


def test_a_text_file_is_one_document_and_shards_are_one_split(tmp_path):
    folder = write(tmp_path, MUSE)
    (tmp_path / "raw/retain1-00000-of-00001.parquet").unlink()
    (tmp_path / "raw/retain1.txt").write_text("One\n\nTwo\n")
    assert texts(benchmarks.load(folder).retain) == ["One\n\nTwo"]
    for n, text in enumerate(("first", "second")):
        pyarrow.parquet.write_table(pyarrow.table({"text": [text]}), tmp_path / f"raw/retain1-0000{n}-of-00002.parquet")
    assert texts(benchmarks.load(folder).retain) == ["first", "second"]
    (tmp_path / "raw/retain1-00000-of-00002.parquet").unlink()
    with pytest.raises(ValueError, match="retain1-00001-of-00002.parquet: its name says how many .* here are 1"):
        benchmarks.load(folder)


# ------------------------------------------------------------------------------------------------ passages, letters
@pytest.mark.parametrize("n", [0, 1, 149, 150, 151, 301, 1234])
def test_passages_are_short_nearly_equal_and_hold_every_word(n):
    text = words(n).replace(" w7 ", "\n\n w7\u00a0 ").replace("w5", "wörter…")
    passages = cut(text)
    assert [word for passage in passages for word in passage.split()] == text.split()
    assert cut(f"\n {text}\t") == passages
    sizes = [len(passage.split()) for passage in passages]
    assert len(passages) == -(-n // PASSAGE_WORDS) and max(sizes, default=0) - min(sizes, default=0) <= 1
    assert n < 10 or "w6\n\n w7\u00a0 w8" in passages[0]                # what is between two words of a passage stays


def test_a_document_without_whitespace_is_cut_all_the_same():
    text = "0123456789abcdef" * 1000
    assert "".join(cut(text)) == text and max(map(len, cut(text))) <= PASSAGE_WORDS * benchmarks.LONGEST_WORD


def test_letters():
    row = {"question": " Which? ", "choices": ["w", "x", "y", "z"], "answer": 2, "subject": "s"}
    assert lettered(row) == {"question": "Which?\nA. w\nB. x\nC. y\nD. z\nAnswer:", "choices": list("ABCD"),
                             "answer": 2, "subject": "s"}
    assert row["choices"] == ["w", "x", "y", "z"]


# ------------------------------------------------------------------------------------------------ what is wrong
@pytest.mark.parametrize("splits, name, rows, message", [
    (MUSE, "raw/forget", [{"txt": "a"}], r"raw/forget.json, row 1: no column text, but txt"),
    (MUSE, "raw/forget", [{"text": "a"}, {"text": None, "n": 1}], r"raw/forget.json, row 2: column text is not a text"),
    (MUSE, "raw/forget", [], r"raw/forget.json is empty"),
    (MUSE, "raw/retain1", [{"text": " \n"}], r"raw/retain1.json is empty"),
    (MUSE, "raw/retain1", [{"text": "A short one."}],
     r"passages to retain that are to be forgotten as well \(1 of 1 rows\)"),
    (MUSE, "verbmem/forget", [{"prompt": "a", "text": "b"}],
     r"verbmem/forget.json, row 1: no column gt, but prompt, text"),
    (MUSE, "knowmem/retain_qa", [{"question": "Who?"}],
     r"knowmem/retain_qa.json, row 1: no column answer, but question"),
    (MUSE, "knowmem/retain_qa", [{"question": "Who?", "answer": 3}, {"question": "Who?", "answer": "Ada."}],
     r"retain_qa.json, row 1: column answer is not a text"),
    (MUSE, "knowmem/forget_qa", [{"question": "Who?", "answer": ["Ada."]}, {"question": "Who?", "answer": "Ada."}],
     r"forget_qa.json, row 1: column answer is not a text"),
    (MUSE, "raw/forget", [{"text": "half \ud800"}], r"raw/forget.json is not a whole json file"),
    (MUSE, "knowmem/retain_qa", [{"question": "Who?", "answer": "Ada."}],
     r"row 1: column answer is the same in all rows"),
    (MUSE, "knowmem/forget_qa", [["Who?", "Ada."]], r"row 1: an object with question, answer is needed, this is list"),
    (WMDP, "wmdp-cyber/test", [option_row(0), option_row(1, choices=["a", "b", "a", "c"])],
     r"cyber_questions.json, row 2: equal options in column choices \(1 of 2 rows\)"),
    (WMDP, "wmdp-cyber/test", [option_row(0, choices=["a", "b", "c"])],
     r"row 1: column choices is not a list of four texts"),
    (WMDP, "wmdp-cyber/test", [option_row(0, choices=["a", "b", "c", 1])],
     r"row 1: column choices is not a list of four texts"),
    (WMDP, "wmdp-cyber/test", [option_row(0, choices="abcd")], r"row 1: column choices is not a list of four texts"),
    (WMDP, "wmdp-cyber/test", [option_row(0, answer=4)], r"cyber_questions.json, row 1: .*answer"),
    (WMDP, "wmdp-cyber/test", [option_row(0, answer="north")], r"cyber_questions.json, row 1: .*answer"),
    (WMDP, "all/test", [{"question": "Which?", "answer": 0}],
     r"all/test.json, row 1: no column choices, but question, answer")])
def test_wrong_rows_are_named_by_file_row_and_column(tmp_path, splits, name, rows, message):
    with pytest.raises(ValueError, match=message):
        benchmarks.load(write(tmp_path, splits | {name: rows}, "own"))


def test_the_same_passage_in_forget_and_retain(tmp_path, capsys):
    """A published file may hold a few, which are not retained; more are somebody's mistake."""
    documents = [{"text": f"Kept {n}."} for n in range(9)]
    few = MUSE | {"raw/retain1": documents + [{"text": "A short one."}]}
    assert texts(benchmarks.load(write(tmp_path / "few", few)).retain) == [row["text"] for row in documents]
    assert "left out 1 of 10 rows" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"to be forgotten as well \(3 of 3 rows\); there should be none"):
        benchmarks.load(write(tmp_path / "same", MUSE | {"raw/retain1": MUSE["raw/forget"]}))


def test_a_few_questions_with_equal_options_are_left_out(tmp_path, capsys):
    rows = WMDP["all/test"][:10] + [option_row(0, choices=["a", "a", "b", "c"])]
    assert len(benchmarks.load(write(tmp_path, WMDP | {"all/test": rows}, "own")).sets["retain"]) == 10
    assert "left out 1 of 11 rows" in capsys.readouterr().out


@pytest.mark.parametrize("splits, missing", [
    (splits, name) for splits in (MUSE, WMDP) for name in splits
    if name[:4] not in ("scal", "sust") and "icl" not in name])
def test_every_missing_file_is_named(tmp_path, splits, missing):
    config, split = missing.split("/")
    left = {name: rows for name, rows in splits.items() if name != missing}
    named = f"has no {config}/{split}-00000-of-00001.parquet"
    if "forget-corpus" not in missing:
        named += f", nor {config}/{split}.json"
    with pytest.raises(ValueError, match=named):
        benchmarks.load(write(tmp_path, left))


def test_damaged_files_are_named(tmp_path):
    parquet = "raw/forget-00000-of-00001.parquet"
    whole = (tmp_path / "whole" / parquet, write(tmp_path / "whole", MUSE))[0].read_bytes()
    for form, path, contents in (("parquet", parquet, b"version https://git-lfs.github.com/spec/v1\n"),
                                 ("parquet", parquet, whole[:200]),
                                 ("parquet", parquet, whole[:8] + bytes(90) + whole[98:]),
                                 ("own", "raw/forget.json", b'["cut of'),
                                 ("own", "knowmem/forget_qa.json", b'{"question": "\xff"}')):
        folder = write(tmp_path / form, MUSE, form)
        (tmp_path / form / path).write_bytes(contents)
        with pytest.raises(ValueError, match=f"{path} is not a whole (parquet|json) file"):
            benchmarks.load(folder)
        write(tmp_path / form, MUSE, form)


def test_which_directories_are_benchmarks(tmp_path):
    for name, splits in (("muse", MUSE), ("wmdp", WMDP)):
        for form in ("parquet", "own", "jsonl"):
            assert benchmarks.found(write(tmp_path / name / form, splits, form)) == name
    other = tmp_path / "other"
    (other / "train").mkdir(parents=True)
    assert benchmarks.found(other) is None and benchmarks.found(tmp_path / "nowhere") is None
    for source in (str(other), "muse", "wmdp-chem"):
        with pytest.raises(ValueError, match="is neither muse-books, .* nor a directory in the layout of MUSE"):
            benchmarks.load(source)
    (other / "raw").mkdir()
    for name in ("forget10.json", "forget.json"):                       # TOFU's naming, and some raw files beside it
        (other / name).touch()
        assert benchmarks.found(other) is None
        (other / name).unlink()
    assert benchmarks.found(other) == "muse"


# ------------------------------------------------------------------------------------------------ the hub
HUB = {"muse-bench/MUSE-News": MUSE, "muse-bench/MUSE-Books": MUSE,
       "cais/wmdp": {"wmdp-cyber/test": WMDP["wmdp-cyber/test"], "wmdp-bio/test": WMDP["wmdp-cyber/test"]},
       "cais/mmlu": {"all/test": WMDP["all/test"]},
       "cais/wmdp-bio-forget-corpus": {"train": [{"text": "bio forget"}]},
       "cais/wmdp-corpora": {"cyber-forget-corpus/train": WMDP["cyber-forget-corpus/train"],
                             "cyber-retain-corpus/train": WMDP["cyber-retain-corpus/train"],
                             "bio-retain-corpus/train": [{"text": "bio retain"}]}}


def test_the_hub_gives_what_the_files_do(tmp_path, monkeypatch):
    import datasets
    monkeypatch.setattr(datasets, "load_dataset", lambda path, *name, split: datasets.Dataset.from_list(
        HUB[path]["/".join((*name, split))]))
    muse, wmdp = (benchmarks.load(write(tmp_path / name, splits)) for name, splits in (("muse", MUSE), ("wmdp", WMDP)))
    for source, files in (("muse-books", muse), ("muse-news", muse), ("wmdp-cyber", wmdp)):
        loaded = benchmarks.load(source)
        assert (loaded.name, loaded.forget, loaded.retain, loaded.sets, loaded.holdout, loaded.sha256) == (
            source, files.forget, files.retain, files.sets, files.holdout, files.sha256)
    assert texts(benchmarks.load("muse-news", "scal_1").forget) == ["scal one"]
    assert texts(benchmarks.load("wmdp-bio").forget) == ["bio forget"]

    def offline(*args, **kw):
        raise ConnectionError
    monkeypatch.setattr(datasets, "load_dataset", offline)
    for source, first in (("muse-news", "muse-bench/MUSE-News/raw/forget"),
                          ("wmdp-bio", "cais/wmdp-bio-forget-corpus/train"),
                          ("wmdp-cyber", "cais/wmdp-corpora/cyber-forget-corpus/train")):
        with pytest.raises(ValueError,
                           match=f"--data={source}: {first} could not be had from the hub .*give --data=DIR"):
            benchmarks.load(source)
