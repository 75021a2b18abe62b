"""Capitals that a model knows: tables that are right, a rule that is not fooled, sets that do not meet, refusals."""

import json
import re

import pytest

import data
from common import UserError
from data.world import CAPITALS
from experiments import capitals
from lab import runs
from tests.conftest import call, refused, small_model

ASKED = capitals.facts()
VALUES = {q.format(s=s): spellings[0] for (slot, _), some in ASKED.items() for s, spellings in some
          for q in capitals.KINDS[slot][1]}                  # every question's true answer


def knows_all(questions):
    return [f"It is called {VALUES[q]}. And that is all I know." for q in questions]


@pytest.fixture(scope="module")
def rows():
    return capitals.known(knows_all)


def test_every_country_is_there_once_with_a_capital_of_its_own():
    countries = [(s, v.split("/")) for table in capitals.CAPITALS.values() for s, v in capitals.pairs(table)]
    assert len(countries) == len({s for s, _ in countries}) == 193 - 7
    spellings = [v for _, some in countries for v in some]
    assert len(set(spellings)) == len(spellings)
    by_hand = {"Australia": "Canberra", "Turkey": "Ankara", "Brazil": "Brasilia", "the Ivory Coast": "Yamoussoukro",
               "Nigeria": "Abuja", "Tanzania": "Dodoma", "Kazakhstan": "Astana", "Myanmar": "Naypyidaw",
               "Switzerland": "Bern",
               "New Zealand": "Wellington", "Canada": "Ottawa", "Belize": "Belmopan", "Dominica": "Roseau",
               "the Dominican Republic": "Santo Domingo", "Niger": "Niamey", "Slovakia": "Bratislava",
               "Slovenia": "Ljubljana",
               "Chad": "N'Djamena", "Antigua and Barbuda": "St. John's"}
    assert by_hand.items() <= {s: v[0] for s, v in countries}.items()
    assert VALUES["What is the opposite of wet?"] == "dry" and VALUES["What language is spoken in Egypt?"] == "Arabic"
    assert all(v in dict(countries).get(s, [v]) for s, v in capitals.pairs(CAPITALS))  # data/world.py says the same


def test_what_the_question_gives_away_is_not_asked():
    for country in ("Mexico", "Luxembourg", "Guinea-Bissau", "El Salvador"):
        assert f"What is the capital of {country}?" not in VALUES
    assert not any(data.states(q, [v]) for q, v in VALUES.items())


def test_rows_state_their_fact_once_and_wrong_answers_are_wrong(rows):
    assert rows == capitals.known(knows_all) and {key: len(some) for key, some in rows.items()} == {
        key: len(some) for key, some in ASKED.items()}
    ids = [row["id"] for some in rows.values() for row in some]
    assert len(set(ids)) == len(ids) and "capital/europe/the Netherlands" in ids
    for (slot, group), some in rows.items():
        table = {v.split("/")[0] for _, v in capitals.pairs(capitals.KINDS[slot][0][group])}
        for row in some:
            assert data.complete(row, "", "") == row and len(row["questions"]) == len(row["answers"]) >= 4
            assert (row["question"], row["answer"]) == (row["questions"][0], row["answers"][0])
            assert row["paraphrased_question"] not in row["questions"]
            fact, = row["facts"]
            for answer in [*row["answers"], row["paraphrased_answer"]]:
                assert len(data.fact_pattern(fact).findall(answer)) == 1
            for question in [*row["questions"], row["paraphrased_question"]]:
                assert row["author"] in question and not data.states(question, [fact])
            assert len(set(row["perturbed_answer"])) == 5
            assert not any(data.states(a, [fact]) for a in row["perturbed_answer"])
            assert all(any(data.states(a, [v]) for v in table) for a in row["perturbed_answer"])
    dutch = rows["capital", "europe"][[row["author"] for row in rows["capital", "europe"]].index("Netherlands")]
    assert dutch["question"] == "What is the capital of the Netherlands?"
    assert dutch["answer"] == "It is called Amsterdam."


def says(*answers, country="Brazil", group="americas"):
    """What is known of one country by a model that gives these answers to the first questions, and none to others."""
    phrasings = capitals.KINDS["capital"][1]
    told = {q.format(s=country): a for q, a in zip(phrasings, answers, strict=False)}
    rows = capitals.known(lambda questions: [told.get(q, "") for q in questions])
    assert sum(map(len, rows.values())) == len(rows["capital", group]) <= 1
    return rows["capital", group][0] if rows["capital", group] else None


def test_known_is_what_two_answers_state_in_their_first_sentence():
    right = "It is Brasilia."
    assert says(right, "", "", "") is None
    row = says("It is Rio.", right + " It lies inland.", "", "The city of Brasilia, of course!")
    assert row["answers"] == [right, "The city of Brasilia, of course!"] and row["question"] == row["questions"][0]
    assert row["questions"] == ["Which city is the capital of Brazil?",
                                "What is the name of the capital city of Brazil?"]
    for wrong in ("It is large. It is Brasilia.", "It is Brasilia", "Brasilia is Brasilia.", "It is Brasilia or Lima.",
                  "brasilia.", "It is Brasiliana."):
        assert says(right, wrong, wrong, wrong) is None, wrong
    assert says("It is Brasília.", right, "It is Brasília.", "")["facts"] == ["Brasília"]   # as the model spells it
    assert says("It is Brasília.", right, "", "") is None
    assert data.states(says("It is Brasília.", right, right, "")["paraphrased_answer"], ["Brasilia"])


@pytest.mark.parametrize("text, sentence", [
    ("It is St. John's. A town.", "It is St. John's."), ("Washington, D.C. is it. Yes.", "Washington, D.C. is it."),
    ('It is "cold." It is.', 'It is "cold."'), ("It is Au.\n\nThis is", "It is Au."), ("No end", ""), ("", ""),
    ("A\nline. 2 more", "A line.")])
def test_the_first_sentence(text, sentence):
    assert capitals.first_sentence(text) == sentence


@pytest.mark.parametrize("forget", capitals.CAPITALS)
def test_sets_do_not_meet(rows, forget):
    files = capitals.divide(rows, forget)
    ids = {name: {row["id"] for row in some} for name, some in files.items()}
    assert ids["forget"] == ids["forget_perturbed"] == {row["id"] for row in rows["capital", forget]}
    neighbours = set()
    for slot, group in rows:
        if slot == "capital" and group != forget:
            neighbours |= {row["id"] for row in rows[slot, group]}
    assert ids["retain"] | ids["retain_perturbed"] == neighbours
    assert len(ids["retain_perturbed"]) == len(neighbours) // 3
    apart = [some for name, some in ids.items() if name != "forget_perturbed"]
    assert sum(map(len, apart)) == len(set.union(*apart))
    facts = {name: {row["facts"][0] for row in files[name]} for name in ("forget", "retain", "retain_perturbed")}
    assert sum(map(len, facts.values())) == len(set.union(*facts.values()))


def test_general_passages_tell_nothing_of_the_facts():
    assert len(capitals.GENERAL) == len(set(capitals.GENERAL)) >= 80
    names = {name for (slot, _), some in ASKED.items() if slot in ("capital", "language") for s, spellings in some
             for name in (s.removeprefix("the "), *spellings)}
    for text in capitals.GENERAL:
        assert re.fullmatch(r"[A-Z].{50,}\.", text) and not any(data.states(text, [name]) for name in names)


# ------------------------------------------------------------------------------------------- the command
@pytest.fixture
def place(tmp_path, tokenizer):
    runs.save_run(tmp_path / "model", small_model(block_size=256), tokenizer, {})
    return tmp_path


def flags_of(place, *flags):
    return f"--run={place / 'model'}", f"--out={place / 'data'}", "--device=cpu", *flags


def test_the_command_writes_what_is_known(place, monkeypatch, capsys):
    monkeypatch.setattr(capitals, "ask", lambda model, tokenizer, questions, **kw: [
        "" if "Spain" in q else a for q, a in zip(questions, knows_all(questions))])
    call(capitals, *flags_of(place))
    told = capsys.readouterr().out
    assert re.search(r"capital +europe +38 of 39\n", told) and re.search(r"language +61 of 62\n", told)
    files = {p.stem: [json.loads(line) for line in p.read_text().splitlines()] for p in (place / "data").iterdir()}
    assert set(files) == {"forget", "forget_perturbed", "retain", "retain_perturbed", "world_facts_perturbed",
                          "general"}
    assert len(files["forget"]) == 38 and files["general"][0] == {"id": "general/1", "text": capitals.GENERAL[0]}
    for name in set(files) - {"general"}:
        assert data.read_file(place / "data" / f"{name}.json") == files[name]
    assert "exists already" in refused(capsys, capitals, *flags_of(place))          # what is there is not overwritten


@pytest.mark.parametrize("flags, message", [
    (["--forget=atlantis"], "--forget=atlantis is no continent; choose from europe, asia, africa, americas, oceania"),
    (["--run=nowhere"], "nowhere is not a model directory"),
    ([], "this model knows 0 capitals of europe; at least 5 are needed")])
def test_refusals_are_one_line_and_leave_nothing(place, monkeypatch, capsys, flags, message):
    monkeypatch.setattr(capitals, "ask", lambda model, tokenizer, questions, **kw: [""] * len(questions))
    assert message in refused(capsys, capitals, *flags_of(place, *flags))
    assert [p.name for p in place.iterdir()] == ["model"]


@pytest.mark.parametrize("slots, message", [
    (["europe"], "this model knows 0 capitals of other continents; at least 10"),
    (["europe", "asia"], "this model knows 0 other facts; at least 5")])
def test_too_little_beside_it_is_refused_too(rows, slots, message):
    with pytest.raises(UserError, match=message):
        capitals.divide({key: some if key[1] in slots else [] for key, some in rows.items()}, "europe")
