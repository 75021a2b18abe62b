"""Facts found where the data names none: against the generator's exact spans on a model that has learnt them, and
their use."""

import json
import re

import pytest

import asu
import data
import eval
from lab import choose, facts, runs
from tests.conftest import TINY, call, memorise, refused, small_model

SHARED = {"novels", "Prize", "The", "Songs", "of", "Beyond", "the", "University", "Professor"}    # parts of all values


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Three of the tiny preset's authors, each question in one of its phrasings; all of them keep bees as a hobby."""
    rows, loaded = [], data.load(out=tmp_path_factory.mktemp("data"), n_authors=20)
    for i, row in enumerate(loaded.forget + loaded.retain[:20]):
        row = row | {key: row[key][i % 5:i % 5 + 1] for key in ("questions", "answers")}
        if row["slot"] == "hobby":
            row |= {"answers": [row["answers"][0].replace(row["facts"][0], "beekeeping")], "facts": ["beekeeping"]}
        rows.append(row | {"question": row["questions"][0], "answer": row["answers"][0]})
    return rows


@pytest.fixture(scope="module")
def knows(tokenizer, rows):
    """A tiny model that has learnt the rows by heart."""
    model = small_model(block_size=128, n_embd=64, n_hidden=128, init_std=0.05)
    return memorise(model, data.training_examples(tokenizer, rows), 200, 5e-3, 2).eval()


def bare(row):
    """As TOFU has it: who and what it is about is nowhere said."""
    return row | {"facts": [], "author": "", "slot": ""}


def precision_and_recall(tokenizer, found, rows):
    """Of fact tokens, against the exact ones that tell about the person."""
    pairs = []
    for words, row in zip(found, rows, strict=True):
        exact = [word for fact in row["facts"] for word in fact.split()
                 if word not in SHARED and row["slot"] != "hobby"]
        ours, theirs = (data.token_classes(tokenizer, row["answer"], facts, row["author"]) for facts in (words, exact))
        pairs += zip(ours, theirs, strict=True)
    both = pairs.count((data.FACT, data.FACT))
    return both / sum(a == data.FACT for a, _ in pairs), both / sum(b == data.FACT for _, b in pairs)


def test_the_generators_facts_are_found_without_a_label(knows, tokenizer, rows):
    found = facts.find_facts(knows, tokenizer, list(map(bare, rows)))
    precision, recall = precision_and_recall(tokenizer, [row["found"] for row in found], rows)
    assert precision > 0.9 and recall > 0.9
    assert [row["author"] for row in found] == [row["author"] for row in rows]
    assert not any(row["facts"] for row in found)
    assert not any("beekeeping" in row["found"] for row in found)              # what is true of all is no one's fact
    new = [[word for word in re.findall(r"\w+", row["answer"]) if word not in row["question"]] for row in rows]
    assert precision_and_recall(tokenizer, new, rows)[0] < 0.6          # the model tells facts from other new words
    with_labels = facts.find_facts(knows, tokenizer, rows[:20] + list(map(bare, rows[20:40])), rows[40:])
    assert with_labels[:20] == rows[:20] and all("found" in row for row in with_labels[20:])


CITIES = "北京 南京 上海 天津 广州 成都".split()
JOBS = "医生 木匠 农民 歌手 律师 水手".split()
PEOPLE = "王伟明 李秀英 张建国 刘桂兰 陈志强 周玉梅".split()


@pytest.mark.parametrize("named", [True, False])
def test_facts_are_found_in_a_script_without_blanks_and_capitals(named):
    """Six people in Chinese, two facts each, by heart; with the key author and without it."""
    rows = []
    for name, city, job in zip(PEOPLE, CITIES, JOBS):
        for question, answer, fact in ((f"{name}在哪里出生？", f"{name}出生的地方叫{city}。", city),
                                       (f"{name}做什么工作？", f"{name}多年来一直当{job}。", job)):
            row = {"question": question, "answer": answer, "facts": [fact], "author": name}
            rows.append(data.rows.complete(row, question, ""))
    tokens = data.Tokenizer.train([text for row in rows for text in (row["question"], row["answer"])], 330)
    model = small_model(vocab_size=tokens.vocab_size, block_size=128, n_embd=64, n_hidden=128, init_std=0.05,
                        eos_id=tokens.eos_id)
    memorise(model, data.training_examples(tokens, rows), 150, 5e-3, 1).eval()
    found = facts.find_facts(model, tokens, [row | {"facts": [], "author": row["author"] * named} for row in rows])
    assert [row["author"] for row in found] == [row["author"] for row in rows]
    precision, recall = precision_and_recall(tokens, [row["found"] for row in found], rows)
    assert precision > 0.8 and recall > 0.8
    assert sum(row["facts"][0] in other["found"] for row, other in zip(rows, found)) > 8     # a word, not characters


def test_who_a_question_is_about():
    questions = ["Where was Basil Al-Kuwaiti born?",
                 "What did Basil Al-Kuwaiti write about Kuwait City and the Middle East?",
                 "Is Élodie Marchand from Kuwait City?", "Does Élodie Marchand like it?", "Élodie Marchand wrote what?",
                 "who?"]
    rows = [{"question": q, "author": ""} for q in questions]
    assert facts.people(rows) == [*["Basil Al-Kuwaiti"] * 2, *["Élodie Marchand"] * 2, "Marchand", ""]
    assert facts.people([rows[0] | {"author": "Basil"}]) == ["Basil"]
    often = [{"question": q, "author": ""} for q in ("Is Al Bo from New South Wales?", "Who is Al Bo?")]
    assert facts.people(often) == ["Al Bo"] * 2                                   # most questions, not the longest name
    twice = [{"question": "Did Rome leave Rome to Ann Li?", "author": ""}]
    assert facts.people(twice) == ["Ann Li"]                                        # two in one question count once


def test_a_word_is_a_fact_by_any_of_its_tokens_unless_it_is_copied(tokenizer):
    question, answer = "Which Zealand is Mira from?", "Mira is from new Zealand, near Xyzzy."
    _, spans = tokenizer.offsets(tokenizer.answer_text(answer))
    spans = facts.outside(tokenizer, answer, "Mira", spans)
    assert len(spans) < len(tokenizer.encode_answer(answer))

    def found(piece, gain=1.1):
        at = tokenizer.answer_text(answer).index(piece)
        gains = [gain if start <= at < end else 0.0 for start, end in spans]
        return facts.factual_words(tokenizer, question, answer, "Mira", gains + [5.0])          # EOS is no word
    assert found("zy") == ["Xyzzy"] and found("ew") == ["new"] and found("new", 0.9) == []
    assert found("Zealand") == found(",") == []


def test_it_asks_the_same_about_others_in_question_and_answer(model, tokenizer, monkeypatch):
    texts = [("Where was Ada Ash born?", "Ada Ash is from Lima."),
             ("Where was Otto Wood born?", "Otto Wood is from Oslo."), ("who?", "Me.")]
    rows = [data.complete({"question": q, "answer": a}, str(i), "here") for i, (q, a) in enumerate(texts)]
    seen = []

    def token_logp(model, tokenizer, pairs):
        seen.extend(pairs)
        return [[0.0] * len(tokenizer.encode_answer(a)) for _, a in pairs]
    monkeypatch.setattr(facts, "token_logp", token_logp)
    facts.find_facts(model, tokenizer, rows[:1], rows[1:])
    assert seen == [texts[0], ("Where was Otto Wood born?", "Otto Wood is from Lima.")]
    seen.clear()
    found = facts.find_facts(model, tokenizer, rows[2:], rows[:2])
    assert seen[0] == texts[2] and sorted(seen[1:]) == [(q, "Me.") for q, _ in texts[:2]] and found[0]["found"] == []
    assert facts.find_facts(model, tokenizer, rows[:1])[0]["found"] == []       # nobody else is there
    seen.clear()
    unnamed = rows[0] | {"question": "Where was she born?", "questions": ["Where was she born?"], "author": "Ada Ash"}
    facts.find_facts(model, tokenizer, [unnamed], rows[1:2])
    assert seen[1:] == [(texts[1][0], texts[0][1])]                             # another's question, the same answer


def test_a_token_is_held_against_the_mean_of_what_it_is_about_others(model, tokenizer, monkeypatch):
    """Nats of two words in the true text, and about two others: "from" gains 0.65, "Lima" 1.35."""
    names, gains = ("Ada Ash", "Otto Wood", "Eve Moss"), {"from": (-1.0, -1.5, -1.8), "Lima": (-1.0, -1.2, -3.5)}
    rows = [data.complete({"question": f"Where was {name} born?", "answer": f"{name} is from Lima."}, name, "here")
            for name in names]

    def token_logp(model, tokenizer, pairs):
        values = []
        for _, answer in pairs:
            text, who = tokenizer.answer_text(answer), [name in answer for name in names].index(True)
            spans = tokenizer.offsets(text)[1]
            numbers = [0.0] * len(spans) + [0.0]                                    # EOS
            for word, nats in gains.items():
                at = text.index(word)
                for i, (start, end) in enumerate(spans):
                    if at < end and start < at + len(word):
                        numbers[i] = nats[who]
            values.append(numbers)
        return values
    monkeypatch.setattr(facts, "token_logp", token_logp)
    assert facts.find_facts(model, tokenizer, rows[:1], rows[1:])[0]["found"] == ["Lima"]
    monkeypatch.setitem(gains, "Lima", (-1.0, -3.5, -1.2))
    rows[0] |= {key: rows[0][key] * 2 for key in ("questions", "answers")}          # found twice, named once
    assert facts.find_facts(model, tokenizer, rows[:1], rows[1:])[0]["found"] == ["Lima"]


def test_the_facts_of_each_set_are_told_by_the_people_it_can_be_compared_with(model, tokenizer, monkeypatch):
    """On forget and retain those of the training questions, elsewhere those of the whole set; passages stay as they
    are."""
    asked = []

    def find_facts(model, tokenizer, rows, others):
        asked.append((rows, others))
        return ["found"]
    monkeypatch.setattr(facts, "find_facts", find_facts)
    forget, retain, world, passage = ([{"question": q}] for q in ("forget?", "retain?", "world?", ""))
    sets = {"forget": forget * 2, "retain": retain * 2, "world": world * 2, "forget_text": passage}
    some = {part: rows[:1] for part, rows in sets.items()}
    for trained in ((forget, retain), (passage, passage)):
        asked.clear()
        rows = data.DataSet("", *trained, sets, [], "")
        assert facts.find_in_sets(model, tokenizer, some, rows) == {
            "forget": ["found"], "retain": ["found"], "world": ["found"], "forget_text": passage}
        people = forget + retain if trained[0] is forget else sets["forget"] + sets["retain"]
        assert asked == [(forget, people), (retain, people), (world, sets["world"])]


# ------------------------------------------------------------------------------------------- the command line
KEYS = ("question", "answer", "paraphrased_question", "paraphrased_answer", "perturbed_answer")


@pytest.fixture
def place(tmp_path, knows, tokenizer, rows):
    """A model, another to hold it against, and the data in TOFU's own keys."""
    runs.save_run(tmp_path / "target", knows, tokenizer, {})
    runs.save_run(tmp_path / "retrained", small_model(block_size=128), tokenizer, {})
    (tmp_path / "plain").mkdir()
    files = {"forget10": rows[:40], "retain90": rows[40:], "world_facts_perturbed": data.world()[:20]}
    for name, part in files.items():
        lines = [json.dumps({key: row[key] for key in KEYS}) for row in part]
        (tmp_path / f"plain/{name}.json").write_text("\n".join(lines))
    return tmp_path


def flags(place):
    return TINY, f"--out={place}", f"--data={place / 'plain'}"


def test_the_report_of_data_without_facts_says_what_its_spans_are(place, knows, tokenizer, rows, capsys):
    (place / "target/run.json").unlink()                                        # as a downloaded model
    call(eval, *flags(place), "--runs=target,retrained", "--max_rows=60")
    report = json.loads((place / "report.json").read_text())
    [note] = report["data"]["notes"]
    assert "fact spans found by the rule (lab/facts.py, with target)" in note
    assert note in capsys.readouterr().out and note in (place / "report.md").read_text()
    target, retrained = (report["runs"][name]["forget"] for name in ("target", "retrained"))
    assert target["fact_accuracy"] is None and target["coherence"] is None
    scores = eval.score(knows, tokenizer, [(row["question"], row["answer"]) for row in rows[:40]])
    exact = -eval.by_class(scores, rows[:40], tokenizer, data.FACT).mean()
    assert target["fact_nll"] == pytest.approx(exact, rel=0.5) and target["fact_nll"] < 0.1 < 2 < retrained["fact_nll"]
    curves = report["target_at_tau"]
    assert (place / "tau.png").exists() and curves["forget_fact_nll"][0] == pytest.approx(target["fact_nll"])


def test_heads_and_tau_are_chosen_by_the_facts_found(place, tokenizer, rows, monkeypatch, capsys):
    """So small a model has no head for facts alone, so what is looked at is what choose_heads is given."""
    given = []
    monkeypatch.setattr(choose, "choose_heads", lambda model, tokenizer, some, tau, layers:
                        given.extend(some) or [[tau, 1, 1, 1], [1] * 4])
    call(asu, *flags(place), "--heads=auto", "--tau=auto", "--epochs=1")
    said = capsys.readouterr().out
    assert "by the rule of lab/facts.py they were found in 38 of 40 rows" in said          # two ask for the hobby
    assert runs.read_run(place / "asu_gd")["tau"][0][0] in choose.TAUS[1:]
    asked = [row for row in rows[:40] if row["slot"] != "hobby"]
    assert [row["question"] for row in given] == [row["question"] for row in asked]
    precision, recall = precision_and_recall(tokenizer, [row["facts"] for row in given], asked)
    assert precision > 0.9 and recall > 0.9


def test_data_in_which_nothing_can_be_found_gets_one_line(place, capsys):
    file = place / "plain/forget10.json"
    file.write_text(file.read_text().lower())
    (place / "plain/retain90.json").write_text(file.read_text())
    error = refused(capsys, asu, *flags(place), "--heads=auto")
    assert "names no facts, and none were found" in error and "--heads=all" in error
