"""The measures of experiments/analyze.py by hand, and a smoke run on the tiny preset."""

import json
import math
import shutil

import numpy as np
import pytest
import torch

import asu
import data
from common.files import strict_json
from experiments import analyze
from lab.answers import answer_nll
from tests.conftest import call, refused, small_model


# ------------------------------------------------------------------------------------------------ measures
def test_attention_entropy_is_one_for_a_uniform_prefix_and_zero_for_one_key():
    uniform = torch.ones(4, 4).tril() / torch.arange(1, 5)[:, None]
    assert torch.allclose(analyze.attention_entropy(uniform.view(1, 1, 4, 4)), torch.ones(1, 1, 4))
    rows = torch.tensor([[1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0.5, 0, 0.5, 0]])
    entropy = analyze.attention_entropy(rows.view(1, 1, 4, 4))[0, 0]
    assert entropy.tolist() == pytest.approx([1, 0, 0, 0.5])                                # ln 2 / ln 4


def test_reading_answers_is_the_loss_and_the_entropy_where_each_token_is_predicted(model, examples):
    together = analyze.read_answers(model, examples[:7], batch_size=3, tau=2.0, layers=[1])
    for example, (nll, entropy) in zip(examples, together):
        batch, weights = data.collate([example]), []
        with torch.no_grad():
            expected = answer_nll(model, batch, tau=2.0, layers=[1], weights=weights)[0]
        assert nll == pytest.approx(expected.numpy(), abs=1e-4) and entropy.shape == (2, 4, len(example.answer))
        for t in (0, len(example.answer) - 1):                              # the last prompt token predicts the first
            row = weights[1][0, 2, len(example.prompt) - 1 + t]
            row = row[row > 0]
            by_hand = -(row * row.log()).sum().item() / math.log(len(example.prompt) + t)
            assert entropy[1, 2, t] == pytest.approx(by_hand, abs=1e-4)
    for _, entropy in analyze.read_answers(model, examples[:7], tau=1e9):
        assert entropy == pytest.approx(np.ones_like(entropy), abs=1e-5)
    assert analyze.read_answers(model, examples[:1], entropy=False)[0][1] is None


def test_the_lens_at_the_last_layer_is_the_model_itself(model, examples):
    batch = data.collate(examples[:5])
    with torch.no_grad():
        own = asu.answer_logp(model, batch, tau=3.0)
        assert torch.equal(analyze.logit_lens(model, batch, model.config.n_layer, tau=3.0), own)
        assert not torch.allclose(analyze.logit_lens(model, batch, 1, tau=3.0), own, atol=0.1)
        first = analyze.logit_lens(model, batch, 0)                         # no layer yet: the token by itself
    alone = model.lm_head(model.norm(model.embed_tokens.weight[batch.idx[0, batch.position[0, 0]]])).log_softmax(-1)
    assert torch.allclose(first[0, 0], alone, atol=1e-5)


def test_rank_and_log_probability_of_the_true_token(model, examples):
    at = [len(e.answer) - 1 - (i % 2) for i, e in enumerate(examples[:5])]
    logp, rank = analyze.lens(model, examples[:5], at, batch_size=2)
    assert logp.shape == rank.shape == (5, model.config.n_layer + 1)
    for i, e in enumerate(examples[:5]):
        with torch.no_grad():
            full = model(torch.tensor([(e.prompt + e.answer)[:-1]])).log_softmax(-1)[0, len(e.prompt) - 1 + at[i]]
        assert logp[i, -1] == pytest.approx(full[e.answer[at[i]]].item(), abs=1e-4)
        assert rank[i, -1] == full.argsort(descending=True).tolist().index(e.answer[at[i]]) + 1


def test_means_are_over_tokens_and_intervals_over_questions():
    assert analyze.mean([2.0, 0.0], [1, 3])[0] == 0.5                       # not the mean 1 of the questions' means
    value, low, high = analyze.mean(np.arange(100.0), 1)
    error = np.std(np.arange(100), ddof=1) / 10
    assert (value, low, high) == pytest.approx((49.5, 49.5 - 1.96 * error, 49.5 + 1.96 * error), abs=1)
    assert analyze.mean([3.0] * 5, 1) == [3.0, 3.0, 3.0]
    assert analyze.mean([[1.0, 2.0], [3.0, 4.0]], [[1], [1]])[0] == [2.0, 3.0]
    assert np.isnan(analyze.mean([0.0, 0.0], [0, 0])).all()
    value, low, high = analyze.median(np.array([[1.0], [2.0], [100.0]]))
    assert value == [2.0] and 1 <= low[0] <= 2 <= high[0] <= 100
    assert json.loads(strict_json({"a": [1.0, float("nan")], "b": "x"})) == {"a": [1.0, None], "b": "x"}


def test_values_of_a_class_are_summed_by_question():
    values, classes = [np.array([1.0, 2.0, 4.0]), np.array([8.0])], [[1, 0, 1], [0]]
    assert analyze.per_class(values, classes, 1) == ([5.0, 0.0], [2, 0])
    assert analyze.per_class(values, classes, 0) == ([2.0, 8.0], [1, 1])


@pytest.fixture
def asked(tokenizer, authors):
    """Rows, the same as examples, the classes of their answers' tokens."""
    rows = authors[0][:6]
    return rows, [data.encode(tokenizer, row["question"], row["answer"]) for row in rows], [
        data.token_classes(tokenizer, row["answer"], row["facts"], row["author"]) for row in rows]


def test_the_true_tokens_rank_at_slots_at_facts_and_everywhere(model, tokenizer, asked):
    """Against a plain loop: the slot of a row that nobody else shares is the first token of its fact, and what is
    averaged are tokens."""
    rows, examples, classes = asked
    ranks = {"slots": [], "facts": [], "answers": []}
    for example, kinds in zip(examples, classes):
        with torch.no_grad():
            full = model(torch.tensor([(example.prompt + example.answer)[:-1]]), tau=3.0)[0, len(example.prompt) - 1:]
        own = [1 + int((line > line[token]).sum()) for line, token in zip(full, example.answer)]
        facts = [rank for rank, kind in zip(own, kinds) if kind == data.FACT]
        for place, numbers in (("slots", facts[:1]), ("facts", facts), ("answers", own)):
            ranks[place] += numbers
    assert len(ranks["slots"]) < len(ranks["facts"]) < len(ranks["answers"])
    result = analyze.gold_rank(model, tokenizer, rows, classes, tau=3.0)
    for place, numbers in ranks.items():
        assert result[place]["first"][0] == pytest.approx(np.mean(np.array(numbers) == 1))
        assert result[place]["reciprocal"][0] == pytest.approx(np.mean(1 / np.array(numbers)))
    value, low, high = result["slots"]["median"]
    assert value == np.median(ranks["slots"]) and low <= value <= high and "median" not in result["facts"]


def test_a_slot_is_where_rows_that_ask_the_same_part():
    """Two titles that begin alike, a month, a fact of one token; the third letter is beyond the second title."""
    rows = [{"slot": slot} for slot in ("title", "title", "month", "title")]
    answers = [np.array(ids) for ids in ([9, 1, 2, 3, 0], [1, 2, 4, 5, 0], [7, 8, 0], [1, 2, 4, 5, 0])]
    facts = [[1, 2, 3], [0, 1, 2, 3], [1], [0, 1, 2, 3]]
    assert analyze.fact_slots(rows, answers, facts) == [3, 2, 1, 2]
    assert analyze.fact_slots(rows[1::2], answers[1::2], facts[1::2]) == [0, 0]       # alike from end to end


def test_a_student_that_attends_as_its_teacher_rises_as_the_teacher_does(model, tokenizer, asked):
    """And the target does not rise; in nats, token by token, in the layers that are smoothed."""
    rows, examples, classes = asked
    same = small_model()
    with torch.no_grad():
        same.layers[0].self_attn.q_proj.weight /= 4.0
    models = {"target": (model, {}), "teacher": (model, {"tau": 4.0, "layers": [0]}), "student": (same, {})}
    part = analyze.student_part(models, tokenizer, rows, examples, classes, [0])
    for kind, number in analyze.CLASSES.items():
        assert part["rise"]["target"][kind] == [0, 0, 0]
        assert part["rise"]["student"][kind] == pytest.approx(part["rise"]["teacher"][kind], abs=1e-4)
        assert part["entropy"]["student"][kind] == pytest.approx(part["entropy"]["teacher"][kind], abs=1e-4)
        by_hand = []
        for example, kinds in zip(examples, classes):
            batch = data.collate([example])
            for tau in (4.0, 1.0):
                weights = []
                with torch.no_grad():
                    model.hidden(batch.idx, tau=tau, layers=[0], weights=weights)
                nats = torch.special.entr(weights[0][0]).sum(-1).mean(0)[batch.position[0]]     # mean of the heads
                by_hand += [(1 if tau > 1 else -1) * x for x, k in zip(nats.tolist(), kinds) if k == number]
        assert part["rise"]["teacher"][kind][0] == pytest.approx(2 * np.mean(by_hand), rel=1e-3)
    assert part["rise"]["teacher"]["fact"][0] > 0.1
    assert part["rank"]["student"]["slots"]["reciprocal"] == part["rank"]["teacher"]["slots"]["reciprocal"]


def test_gains_of_one_head_alone(examples):
    """At tau = 1 nothing is gained; in layers of one head, head and layer are the same; signs and sizes by hand."""
    model, some = small_model(n_head=1, n_kv_head=1, n_layer=2), examples[:6]
    classes = [[i % 3 for i in range(len(e.answer))] for e in some]
    none = analyze.head_gains(model, some, classes, 1.0)
    assert np.abs(none["heads"]["fact"]).max() < 1e-5
    gains = analyze.head_gains(model, some, classes, 8.0)
    for kind, number in analyze.CLASSES.items():
        assert np.array(gains["heads"][kind])[:, :, 0] == pytest.approx(np.array(gains["layers"][kind]), abs=1e-5)
        by_hand = []
        for e, c in zip(some, classes):
            with torch.no_grad():
                before = answer_nll(model, data.collate([e]))[0]
                after = answer_nll(model, data.collate([e]), tau=8.0, layers=[1])[0]
            by_hand += [x for x, k in zip((after - before).tolist(), c) if k == number]
        assert gains["layers"][kind][0][1] == pytest.approx(np.mean(by_hand), abs=1e-4)


def test_a_map_has_one_row_for_each_token_to_predict(model, examples):
    e = examples[0]
    weights = np.array(analyze.attention_map(model, e, layer=1, head=2, tau=1e9, layers=[1]))
    assert weights.shape == (len(e.answer), len(e.prompt) + len(e.answer) - 1)
    assert weights.sum(1) == pytest.approx(np.ones(len(e.answer)), abs=1e-5)
    assert weights[0, :len(e.prompt)] == pytest.approx(np.full(len(e.prompt), 1 / len(e.prompt)), abs=1e-5)
    assert (weights[0, len(e.prompt):] == 0).all()


# ----------------------------------------------------------------------------------------------- smoke run
TINY, RUNS = "@config/tiny.args", ("--max_rows=5", "--runs=npo_gd,asu_gd")


@pytest.fixture(scope="module", autouse=True)
def few():
    """Three temperatures in place of nine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analyze, "TAUS", [1, 8, 256])
        yield


@pytest.fixture(scope="module")
def analyzed(few, out, tmp_path_factory):
    """The models of the main job, two runs unlearned from them, and the analysis of both."""
    analyzed = tmp_path_factory.mktemp("analyze")
    for name in ("data", "target", "retrained"):
        shutil.copytree(out / name, analyzed / name)
    call(asu, TINY, f"--out={analyzed}", "--epochs=1", "--layers=1-", "--tau=1000")
    call(asu, TINY, f"--out={analyzed}", "--epochs=1", "--method=npo")
    call(analyze, TINY, f"--out={analyzed}", *RUNS)
    return analyzed


@pytest.mark.slow
def test_the_analysis_end_to_end(analyzed):
    report = json.loads((analyzed / "analyze/analyze.json").read_text())
    assert (report["tau"], report["layers"]) == (1000, "1-")
    assert report["data"]["questions"] == {"forget": 5, "retain": 5}
    models = ["target", "teacher", "npo_gd", "asu_gd", "retrained"]
    assert list(report["lens"]) == list(report["entropy"]["forget"]) == list(report["attention"]["maps"]) == models
    assert list(report["tokens"]["runs"]) == models[2:] and len(report["tokens"]["target"]) == len(analyze.TAUS)
    for value, low, high in (report["tokens"]["target"][0]["nll"]["fact"], report["teacher"]["retain"]["coherence"][0]):
        assert low <= value <= high
    assert np.array(report["heads"]["heads"]["fact"]).shape == (3, 2, 2)
    assert np.array(report["lens"]["target"]["rank"]).shape == (3, 3)
    layer0, layer1 = np.array(report["entropy"]["forget"]["teacher"][0])
    assert report["entropy"]["forget"]["target"][0][0] == pytest.approx(layer0)
    assert (layer1 > 0.97).all()                                                            # 1- is smoothed
    assert report["tokens"]["target"][0]["nll"]["fact"] != report["tokens"]["target"][-1]["nll"]["fact"]
    student = report["student"]
    assert list(student["entropy"]) == list(student["rise"]) == list(student["rank"]) == models
    assert student["rise"]["teacher"]["fact"][0] > 0.01 and student["rise"]["target"]["fact"] == [0, 0, 0]
    assert student["entropy"]["asu_gd"] != student["entropy"]["target"]
    is_fact = report["attention"]["is_fact"]
    assert any(is_fact) and len(report["attention"]["predicted"]) == len(is_fact)
    for part in analyze.FIGURES:
        assert (analyzed / f"analyze/{part}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_same_command_gives_the_same_digits(analyzed, capsys):
    before = (analyzed / "analyze/analyze.json").read_bytes()
    (analyzed / "analyze/analyze.json").unlink()
    call(analyze, TINY, f"--out={analyzed}", *RUNS)
    assert (analyzed / "analyze/analyze.json").read_bytes() == before
    printed = capsys.readouterr().out
    assert "teacher: tau=1000, layers=1-" in printed and "mean head entropy on forget: target 0." in printed
    report = json.loads(before)["student"]
    fact, first = report["rise"]["asu_gd"]["fact"], report["rank"]["retrained"]["slots"]["first"]
    assert "entropy of asu_gd less the target's, nats a token: fact {:+.3f} [{:+.3f}, {:+.3f}]".format(*fact) in printed
    assert "true token first with retrained, at slots {:.3f} [{:.3f}, {:.3f}], ".format(*first) in printed


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--lora=2"]])
def test_a_healed_teacher_is_healed_again_as_the_run_did_it(analyzed, monkeypatch, more):
    """The model that analyze shows as the teacher has the weights of the one that taught, and the target smoothed but
    not healed stands beside it."""
    heal, made = asu.heal, []

    def keep(*args, **keywords):
        made.append(heal(*args, **keywords))
        return made[-1]
    monkeypatch.setattr(asu, "heal", keep)
    healing = "--tau=8", "--heal=3", "--seed=5", "--name=healed"
    call(asu, TINY, f"--out={analyzed}", "--epochs=1", "--layers=1-", "--overwrite", *healing, *more)
    call(analyze, TINY, f"--out={analyzed}", "--runs=healed", "--max_rows=5")
    taught, shown = (model.state_dict() for model in made)
    assert all(torch.equal(taught[name], shown[name]) for name in taught)
    report = json.loads((analyzed / "analyze/analyze.json").read_text())
    assert list(report["lens"]) == ["target", "teacher", "not healed", "healed", "retrained"]
    assert report["lens"]["teacher"] != report["lens"]["not healed"]
    assert list(report["tokens"]["runs"]) == ["healed", "retrained"]


def test_a_teacher_of_some_heads_keeps_its_heads_at_every_temperature():
    record = {"kind": "unlearned", "settings": {"method": "asu", "layers": "all"}, "tau": [[1.0, 1.0], [9.0, 1.0]]}
    _, tau, at, smoothed, words = analyze.teacher_of({"run": record}, 2, None)
    assert (tau, smoothed, words) == (9, [1], "some heads of all")
    assert at(4.0) == {"tau": [[1.0, 1.0], [4.0, 1.0]]}
    _, tau, at, smoothed, words = analyze.teacher_of({"run": record | {"tau": 3.0}}, 2, None)
    assert (tau, at(4.0), smoothed, words) == (3, {"tau": 4.0, "layers": None}, [0, 1], "all")


@pytest.mark.parametrize("flag, message", [
    ("--runs=nix", "nix; run python asu.py first"), ("--runs=npo_gd", "none of them was unlearned by a forget-teacher"),
    ("--runs=target", "none of them"), ("--row=999", "forget questions, from 0 on"),
    ("--row=-1", "whole number from 0 on"), ("--data_seed=3", "trained on other data"),
    ("--forget=forget20", "not forget20"), ("--max_rows=0", "at least 1")])
def test_mistakes_get_one_line(analyzed, capsys, flag, message):
    assert message in refused(capsys, analyze, TINY, f"--out={analyzed}", flag)


def test_without_a_target_it_says_what_to_run(tmp_path, capsys):
    assert "run python train.py first" in refused(capsys, analyze, TINY, f"--out={tmp_path}")


def test_rows_without_facts_are_refused(analyzed, tmp_path, capsys):
    folder = shutil.copytree(analyzed / "data/authors_20_seed0", tmp_path / "data")
    for file in folder.glob("*.json"):
        rows = [json.loads(line) | {"facts": []} for line in file.read_text().splitlines()]
        file.write_text("\n".join(map(json.dumps, rows)))
    copy = shutil.copytree(analyzed, tmp_path / "out")
    sha = data.load(str(folder), n_authors=20).sha256
    for file in copy.glob("*/run.json"):                                    # as if trained on these rows
        record = json.loads(file.read_text()) | {"data_sha256": sha}
        record.pop("record_sha256")
        file.write_text(json.dumps(record))
    assert "rows whose answers state facts (key facts) are needed" in refused(
        capsys, analyze, TINY, f"--out={copy}", f"--data={folder}")
