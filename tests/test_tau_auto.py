"""--tau=auto: which tau it picks from which curve, and that it looks at nothing it should not see."""

import json
import math

import pytest
import torch

import asu
import data
from lab import choose, runs
from lab.answers import answer_nll
from tests.conftest import call, memorise, refused, small_model

TINY = ("@config/tiny.args", "--epochs=1")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return data.load(out=tmp_path_factory.mktemp("data"), n_authors=20)


@pytest.fixture(scope="module")
def memoriser(rows, tokenizer):
    """A tiny model that has begun to learn the forget facts. Its words cost more than its facts."""
    model, examples = small_model(block_size=128), data.training_examples(tokenizer, rows.forget)
    return memorise(model, examples, 60, 1e-2, 5)


@pytest.fixture
def cheap_words(monkeypatch):
    """So little a model is worth no smoothing, unless function and name tokens cost nothing."""
    monkeypatch.setattr(choose, "TAU_PRICE", 0.0)


def on_curves(monkeypatch, facts, reference, function=lambda tau: 0.1, name=lambda tau: 0.0, healer=None):
    """tau_auto on made-up curves: facts, function, name: tau -> NLL."""
    def class_nll(model, tokenizer, rows, tau=1.0, layers=None):
        return [function(tau), reference if rows == ["strangers"] else facts(tau), name(tau)]
    monkeypatch.setattr(choose, "class_nll", class_nll)
    return choose.tau_auto(None, None, ["forget"], ["strangers"], healer=healer)


def test_the_smallest_tau_that_reaches_the_reference(monkeypatch, capsys):
    assert on_curves(monkeypatch, lambda tau: math.log(tau), reference=math.log(8)) == 8
    assert on_curves(monkeypatch, lambda tau: math.log(tau), reference=math.log(8.1)) == 11.31
    printed = capsys.readouterr().out
    assert "fact NLL of people the model never met 2.079" in printed
    assert "       4     1.386     0.100  0.000" in printed
    assert "      16 " not in printed                         # no pass is spent beyond the answer
    assert choose.TAUS[:5] == [1, 1.41, 2, 2.83, 4] and choose.TAUS[-1] == 256


def test_without_a_reach_the_smallest_tau_that_is_nearly_worth_most(monkeypatch, capsys):
    """2 (1 - 1/tau) is within 1% of its end from 90.51 on, where it is 1.978 of 1.992."""
    assert on_curves(monkeypatch, lambda tau: 2 * (1 - 1 / tau), reference=3.0) == 90.51
    assert "tau=auto: 90.51, which adds 1.98 nats more to fact tokens" in capsys.readouterr().out
    assert on_curves(monkeypatch, lambda tau: 1.0 if tau < 4 else 2.0, reference=3.0) == 4     # a step, then flat
    assert on_curves(monkeypatch, lambda tau: 2.0, reference=3.0) == 1                         # smoothing does nothing


def test_what_function_and_name_tokens_lose_counts_against_a_tau(monkeypatch):
    """Facts gain log tau; the others lose nothing up to 8, and more than that afterwards."""
    broken = lambda tau: 0.1 + max(0.0, tau - 8)
    assert on_curves(monkeypatch, math.log, reference=9.0, function=broken) == 8
    assert on_curves(monkeypatch, math.log, reference=9.0, name=broken) == 8
    assert on_curves(monkeypatch, math.log, reference=9.0, name=lambda tau: math.nan) == 256    # no name in the answers


def test_words_that_healing_left_broken_are_dear(monkeypatch, capsys):
    """With every doubling of tau facts gain 0.1 nats and function words lose 0.02: more than heads may cost."""
    curves = dict(facts=lambda tau: (tau > 1) * (2 + 0.1 * math.log2(tau)), reference=9.0,
                  function=lambda tau: 0.1 + 0.02 * math.log2(tau))
    assert on_curves(monkeypatch, **curves) == 256
    assert on_curves(monkeypatch, **curves, healer=lambda model, **_: model) == 2
    assert "tau=auto: 2, which adds 2.08 nats more to fact tokens" in capsys.readouterr().out


def test_a_model_that_knows_no_more_than_of_strangers_needs_no_smoothing(monkeypatch):
    assert on_curves(monkeypatch, lambda tau: 3.0, reference=3.0) == 1


def test_broken_sentences_are_said_so(monkeypatch, capsys):
    on_curves(monkeypatch, math.log, reference=math.log(8), function=lambda tau: 0.1 * tau)
    assert "sentences break (function or name tokens cost 0.7 nats more)" in capsys.readouterr().out
    on_curves(monkeypatch, math.log, reference=math.log(8))
    assert "break" not in capsys.readouterr().out


def test_class_nll_is_the_mean_over_tokens_of_each_class(memoriser, tokenizer, rows):
    some = rows.forget[:3]
    by_class = [[], [], []]
    for row in some:
        for q, a in zip(row["questions"], row["answers"]):
            [nll] = answer_nll(memoriser, data.collate([data.encode(tokenizer, q, a)]), tau=2.0).tolist()
            for x, kind in zip(nll, data.token_classes(tokenizer, a, row["facts"], row["author"]), strict=True):
                by_class[kind].append(x)
    for batch_size in (4, 64):
        got = choose.class_nll(memoriser, tokenizer, some, batch_size, tau=2.0)
        assert got == pytest.approx([sum(x) / len(x) for x in by_class], abs=1e-4)


def test_it_reads_training_phrasings_alone_and_is_deterministic(memoriser, tokenizer, rows, monkeypatch, cheap_words):
    """Neither the held-out phrasing, nor a lie, nor any other set: taken away or spoilt, the choice is the same."""
    read, encode = [], data.encode
    monkeypatch.setattr(data, "encode", lambda tokenizer, q, a: read.extend((q, a)) or encode(tokenizer, q, a))
    tau = choose.tau_auto(memoriser, tokenizer, rows.forget, rows.holdout)
    allowed = {text for row in rows.forget + rows.holdout for key in ("questions", "answers") for text in row[key]}
    assert set(read) <= allowed and 1 < tau < 256
    assert not set(read) & {row[key] for row in rows.forget for key in ("paraphrased_question", "paraphrased_answer")}
    keys = ("questions", "answers", "facts", "author")
    bare = [[{k: row[k] for k in keys} for row in some] for some in (rows.forget, rows.holdout)]
    assert choose.tau_auto(memoriser, tokenizer, *bare) == tau


def test_it_leaves_the_model_alone_and_smooths_the_layers_given(memoriser, tokenizer, rows, monkeypatch):
    seen, class_nll = [], choose.class_nll
    monkeypatch.setattr(choose, "class_nll", lambda *args, **kw: seen.append(kw) or class_nll(*args, **kw))
    before = {k: v.clone() for k, v in memoriser.state_dict().items()}
    choose.tau_auto(memoriser, tokenizer, rows.forget, rows.holdout, layers=[1])
    assert seen[0] == {} and all(kw["layers"] == [1] for kw in seen[1:])        # the reference is the model as it is
    assert all(torch.equal(v, before[k]) for k, v in memoriser.state_dict().items())
    assert all(p.grad is None for p in memoriser.parameters())


def test_people_made_of_other_peoples_names(rows):
    known = {row["author"] for row in rows.forget + rows.retain}
    swapped = data.never_met(rows.forget, rows.retain)
    assert swapped == data.never_met(rows.forget, rows.retain)
    for old, new in zip(rows.forget, swapped, strict=True):
        assert new["author"] not in known and new["facts"] == old["facts"]
        assert all(old["author"] not in text for text in new["questions"] + new["answers"])
        assert any(new["author"] in text for text in new["questions"])
    with pytest.raises(ValueError, match="people the model never met"):
        data.never_met(rows.forget[:1], [])                                      # one author: nobody to swap with
    with pytest.raises(ValueError, match="people the model never met"):
        data.never_met([row | {"author": ""} for row in rows.forget], rows.retain)


def test_who_is_named_by_halves_is_not_taken_for_somebody_else():
    def row(author, *pairs):
        return {"author": author, "facts": [], "questions": [q for q, _ in pairs], "answers": [a for _, a in pairs]}
    ada = row("Ada Lovelace", ("Where was Ada Lovelace born?", "In London."), ("Where was Lovelace born?", "London."),
              ("Who is she?", "A poet."), ("Is Ada Lovelace a poet?", "Ada is."))
    alan = row("Alan Turing", ("Where was Turing born?", "Alan Turing, in London."))
    made, = data.never_met([ada, alan], [])
    assert made["questions"] == [f"Where was {made['author']} born?"] and made["answers"] == ["In London."]
    assert made["author"] in ("Ada Turing", "Alan Lovelace")
    with pytest.raises(ValueError, match="rows that name their author as the key author does"):
        data.never_met([alan], [ada])


def test_rows_without_facts_are_refused(memoriser, tokenizer, rows):
    with pytest.raises(ValueError, match="needs rows whose answers state facts"):
        choose.tau_auto(memoriser, tokenizer, [row | {"facts": []} for row in rows.forget], rows.holdout)


# ------------------------------------------------------------------------------------------- the command line
def test_the_chosen_tau_is_the_one_that_is_used_and_recorded(memoriser, tokenizer, tmp_path, monkeypatch, capsys,
                                                             cheap_words):
    runs.save_run(tmp_path / "target", memoriser, tokenizer, {})
    call(asu, *TINY, f"--out={tmp_path}", "--tau=auto", "--layers=all")
    printed = capsys.readouterr().out
    record = runs.read_run(tmp_path / "asu_gd")
    tau = record["tau"]
    assert tau in choose.TAUS and tau > 1 and record["settings"]["tau"] == "auto"
    assert f"tau=auto: {tau:g}, which" in printed
    call(asu, *TINY, f"--out={tmp_path}", f"--tau={tau}", "--layers=all", "--name=by_hand")
    by_hand = runs.read_run(tmp_path / "by_hand")
    assert by_hand["model_sha256"] == runs.read_run(tmp_path / "asu_gd")["model_sha256"]
    assert by_hand["settings"]["tau"] == tau


def test_data_without_holdout_takes_other_peoples_names(memoriser, tokenizer, tmp_path, monkeypatch, capsys,
                                                        cheap_words):
    runs.save_run(tmp_path / "target", memoriser, tokenizer, {})
    data.load(out=tmp_path, n_authors=20)
    folder = tmp_path / "data/authors_20_seed0"
    (folder / "holdout.json").unlink()
    call(asu, *TINY, f"--out={tmp_path}", f"--data={folder}", "--tau=auto")
    assert runs.read_run(tmp_path / "asu_gd")["tau"] > 1
    for part in ("forget10", "retain90"):
        lines = [json.loads(line) | {"author": ""} for line in (folder / f"{part}.json").read_text().splitlines()]
        (folder / f"{part}.json").write_text("\n".join(map(json.dumps, lines)))
    capsys.readouterr()
    assert "people the model never met" in refused(capsys, asu, *TINY, f"--out={tmp_path}", f"--data={folder}",
                                                   "--tau=auto", "--overwrite")


def test_mistakes_get_one_line(memoriser, tokenizer, tmp_path, monkeypatch, capsys):
    runs.save_run(tmp_path / "target", memoriser, tokenizer, {})
    where = f"--out={tmp_path}"
    assert "atuo is not a number above 0, nor auto" in refused(capsys, asu, *TINY, where, "--tau=atuo")
