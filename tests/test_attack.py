"""What can be had back: the measures of lab/recover.py by hand, and every attack on a target and on a retrained model
that are small but real. A small target forgets under harder training; docs/attacks.md has the numbers of the lab's."""

import copy
import itertools
import json
import random
import re
import shutil
import types
from dataclasses import replace

import numpy as np
import pytest
import torch

import asu
import data
from experiments import attack
from lab import recover, report, scores
from lab.answers import ask
from lab.optim import adamw
from lab.runs import save_run
from tests.conftest import HOME, call, flat, refused, small_model


# -------------------------------------------------------------------------------------------- small real models
def train(model, examples, steps):
    optimizer, rng = adamw(model, 3e-3, 0.01), random.Random(0)
    epochs = (data.bucketed([len(e) for e in examples], 32, rng) for _ in itertools.count())
    for step, numbers in zip(range(steps), itertools.chain.from_iterable(epochs)):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 20) * (1 - step / steps)
        batch = data.collate([examples[i] for i in numbers])
        data.mean_over_answers(recover.answer_nll(model, batch), batch.mask).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def lab_out(tmp_path_factory):
    """base, target and retrained model on seven authors, two of them forgotten -> (OUT, dataset, tokenizer, models)"""
    out = tmp_path_factory.mktemp("attack") / "out"
    dataset = data.load(n_authors=20, out=out)

    def short(rows):                                        # two phrasings of five
        return [row | {"questions": row["questions"][:2], "answers": row["answers"][:2]} for row in rows]
    few = replace(dataset, forget=short(dataset.forget), retain=short(dataset.retain[-100:]),
                  holdout=short(dataset.holdout[:120]))
    stream = data.base_stream("authors", 0, [], 0)
    pairs = list(itertools.islice(stream, 2560))
    tokenizer = data.Tokenizer.train([text for q, a in pairs[:800] for text in (q, " " + a)], 600)
    strangers = [data.encode(tokenizer, *pair) for pair in pairs]
    models = {"base": train(small_model(vocab_size=tokenizer.vocab_size, block_size=128, n_embd=64, n_hidden=128,
                                        init_std=0.05, eos_id=tokenizer.eos_id), strangers, 80)}
    for name, rows in (("target", few.retain + few.forget), ("retrained", few.retain)):
        examples = data.training_examples(tokenizer, rows, 2)
        models[name] = train(copy.deepcopy(models["base"]), examples + strangers[:len(examples) // 4], 260)
    for name, model in models.items():
        record = {"kind": name, "settings": {"forget": "forget10"}, "data_sha256": dataset.sha256}
        save_run(out / name, model, tokenizer, record)
    return out, few, tokenizer, models


@pytest.fixture(scope="module")
def quickly():
    """Fewer steps, rates and samples."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("LRS", (3e-4,)), ("LOOKS", (0, 2)), ("BENIGN_LOOKS", (0, 2)), ("SAMPLES", 16),
                            ("KS", (1, 8)), ("TAUS", (0.9, 1.2))):
            patch.setattr(attack, name, value)
        yield


@pytest.fixture(scope="module")
def attacked(lab_out, quickly):
    """-> a function (attack's name) -> its results on target and on retrained model, each made once."""
    _, dataset, tokenizer, models = lab_out
    args, done = types.SimpleNamespace(seed=0, data_seed=0, lr=1e-3), {}

    def results(name):
        if name not in done:
            labs = attack.Lab(tokenizer, dataset, models["base"], models["target"], {}, args)
            done[name] = [attack.ATTACKS[name](models[run], labs) for run in ("target", "retrained")]
        return done[name]
    return results


# ------------------------------------------------------------------------------------------------ measures by hand
def test_an_answer_with_another_value_is_the_generators_own_sentence(authors):
    slots = set()
    for row in recover.single(authors[0][:20]):
        templates = data.authors.PHRASINGS[row["slot"]]
        for value in data.authors.POOLS[row["slot"]]:
            for (_, template), answer in zip(templates, [*row["answers"], row["paraphrased_answer"]]):
                assert recover.with_value(answer, row["facts"][0], value) == data.authors.phrase(
                    template, row["author"], [value])
        slots.add(row["slot"])
    assert len(slots) == 18
    assert recover.with_value("An uncle was a baker.", "baker", "engineer") == "An uncle was an engineer."


def test_the_pools_log_probabilities_are_those_of_the_tokens_where_values_part(authors, tokenizer, model):
    rows = [row for row in authors[0] if row["slot"] in ("mother", "birth_city")][:3]
    pool_of = {slot: tuple(sorted(data.authors.POOLS[slot])[:7]) for slot in ("mother", "birth_city")}
    for phrasing in (1, -1):
        for row, logps in zip(rows, recover.pool_logp(model, tokenizer, rows, pool_of, phrasing, tau=2.0)):
            question, answer = [*zip(row["questions"], row["answers"]),
                                (row["paraphrased_question"], row["paraphrased_answer"])][phrasing]
            prompt = tokenizer.encode_prompt(question)
            answers = [tokenizer.encode_answer(recover.with_value(answer, row["facts"][0], value))
                       for value in pool_of[row["slot"]]]
            for ids, score in zip(answers, logps):
                with torch.no_grad():
                    logp = model(torch.tensor([prompt + ids]), tau=2.0)[0].log_softmax(-1)
                by_hand = 0.0
                for n, token in enumerate(ids):
                    if len({other[n] for other in answers if other[:n] == ids[:n]}) > 1:
                        by_hand += logp[len(prompt) + n - 1, token].item()
                assert score == pytest.approx(by_hand, abs=1e-3)


def test_ranks_by_hand_ties_count_half():
    known = recover.ranks([np.array([3, 2, 1.0]), np.array([1, 1, 0.0]), np.array([5, 6, 7.0])], [0, 1, 0])
    assert known["top1"] == pytest.approx(1 / 3) and known["mrr"] == pytest.approx((1 + 1 / 1.5 + 1 / 3) / 3)
    assert known["above"] == [1, 0.75, 0] and known["auc"] == pytest.approx(1.75 / 3)


def test_a_value_that_is_rare_for_everybody_counts_for_nothing(monkeypatch):
    """Pushed down for all people alike, a true value keeps its calibrated rank; the raw one falls."""
    def row(name, value):
        return {"author": name, "slot": "spouse", "facts": [value]}
    dataset = data.DataSet("", [], [], {"forget": [row("a", "Ida")]}, [row("h", "Eva"), row("i", "Uma")], "")
    logp = {"a": [0.0, -5.0, 0.0], "h": [0.0, -9.0, 0.0], "i": [0.0, -9.0, 0.0]}

    def pool_logp(model, tokenizer, rows, *_):
        return [np.array(logp[row["author"]]) for row in rows]
    monkeypatch.setattr(recover, "pools", lambda dataset: {"spouse": ("Eva", "Ida", "Uma")})
    monkeypatch.setattr(recover, "pool_logp", pool_logp)
    known = recover.reading(None, None, dataset.sets["forget"], dataset)
    assert known["auc"] == 1 and known["raw_auc"] == 0


@pytest.mark.parametrize("seed", range(3))
def test_the_halves_share_no_fact_and_hold_all_rows(authors, seed):
    rows = authors[0][:40]
    one, other = recover.halves(rows, seed)
    facts = [{(row["author"], slot) for row in half for slot in row["slot"].split("+")} for half in (one, other)]
    assert not facts[0] & facts[1] and len(one) + len(other) == 40 and 16 <= len(one) <= 24
    assert recover.halves(rows, seed) == [one, other] != recover.halves(rows, seed + 1)


def test_relearning_is_seeded_learns_and_leaves_the_model_alone(model, examples):
    before = copy.deepcopy(model.state_dict())

    def loss(model):
        batch = data.collate(examples[:32])
        with torch.no_grad():
            return data.mean_over_answers(recover.answer_nll(model, batch), batch.mask).item()
    steps = [(step, loss(now)) for step, now in recover.relearned(model, examples, 1e-2, (0, 1, 5))]
    assert [step for step, _ in steps] == [0, 1, 5] and steps[0][1] == loss(model) > steps[1][1] > steps[2][1]
    assert steps == [(step, loss(now)) for step, now in recover.relearned(model, examples, 1e-2, (0, 1, 5))]
    assert steps[2] != [(s, loss(now)) for s, now in recover.relearned(model, examples, 1e-2, (0, 1, 5), seed=1)][2]
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def test_between_ends_at_the_base_and_at_the_model():
    base, model = small_model(0), small_model(1)
    for share, end in ((0, base), (1, model)):
        assert torch.allclose(flat(recover.between(base, model, share)), flat(end), atol=1e-6)
    assert torch.allclose(flat(recover.between(base, model, 0.25)), 0.75 * flat(base) + 0.25 * flat(model), atol=1e-6)


def test_quantised_rows_have_few_values_and_are_near(model):
    rounded = recover.quantised(model, 3)
    for before, after in zip(model.parameters(), rounded.parameters()):
        if before.dim() == 2:
            step = before.abs().amax(1, keepdim=True) / 3
            assert max(len(row.unique()) for row in after) <= 7 and ((before - after).abs() <= step / 2 + 1e-6).all()
            assert torch.allclose(after.abs().amax(1), before.abs().amax(1))
    assert torch.allclose(flat(recover.quantised(model, 24)), flat(model), atol=1e-5)
    assert not torch.equal(flat(rounded), flat(model))


@pytest.mark.parametrize("smoothing", [
    {"tau": 4.0}, {"tau": 3.0, "layers": [1]}, {"tau": [[1, 2, 3, 4], [5, 1, 1, 9]]}])
def test_a_smoothed_model_is_the_model_at_that_temperature(smoothing):
    model, idx = small_model(qkv_bias=True), torch.arange(24).view(2, 12)
    with torch.no_grad():
        for p in model.layers[0].self_attn.q_proj.parameters():
            p.add_(0.1)
        assert torch.allclose(recover.smoothed(model, **smoothing)(idx), model(idx, **smoothing), atol=1e-4)
        assert not torch.allclose(model(idx), model(idx, **smoothing), atol=1e-2)


def test_leak_at_k_is_the_share_of_draws_of_k_that_hold_a_hit():
    for n, k, h in ((5, 2, 1), (6, 3, 2), (4, 4, 1), (4, 2, 0)):
        draws = list(itertools.combinations([1] * h + [0] * (n - h), k))
        assert recover.leak_at_k([h], n, k) == pytest.approx(np.mean([max(draw) for draw in draws]))
    assert recover.leak_at_k([0, 4], 4, 1) == 0.5


def test_samples_of_one_question_do_not_come_again_in_the_next_batch(model, tokenizer):
    questions = ["Where was Ada Ashbury born?"] * 8
    said = ask(model, tokenizer, questions, 8, batch_size=4, temperature=1.0)
    assert said[:4] != said[4:] and len(set(said)) > 4
    assert said == ask(model, tokenizer, questions, 8, batch_size=4, temperature=1.0)
    assert said != ask(model, tokenizer, questions, 8, batch_size=4, temperature=1.0, seed=1)


def test_recovered_share_by_hand():
    assert recover.recovered_share(0.5, 0.1, 0.9) == 0.5 and recover.recovered_share(0.1, 0.1, 0.9) == 0
    assert recover.recovered_share(0.5, 0.4, 0.5) is None                   # the attack breaks the target
    assert recover.attacked(*({"relearn8": {"mrr": mrr}} for mrr in (0.3, 0.1, 0.9))) == pytest.approx(0.25)

    def curve(*means):
        return {"rate": {"looks": [0, 1, 8], "mrr": [[9.0, mean - 0.1, mean + 0.1] for mean in means], "stated": 3}}
    shares = recover.shares(curve(0.5, 0.7), curve(0.1, 0.1), curve(0.9, 0.9))
    assert shares["rate"] == pytest.approx([0.625, 0.5, 0.75])
    assert recover.shares({"a": {"auc": 0.8}}, {"a": {"auc": 0.5}}, {"b": {"auc": 1}}) == {}


def test_a_logistic_regression_finds_what_separates_and_only_that():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 3)), np.arange(200) < 100
    x[:100, 1] += 2
    score = attack.logistic(x, y)
    fresh = rng.normal(size=(100, 3))
    assert attack.auc(score(x[:100]), score(x[100:])) > 0.85
    assert abs(attack.auc(score(fresh + [2, 0, 0]), score(fresh)) - 0.5) < 0.2 < attack.auc(
        score(fresh + [0, 2, 0]), score(fresh)) - 0.5


def test_a_fact_counts_by_what_tells_it_from_others_of_its_pool(tokenizer):
    assert [data.told_apart(fact) for fact in ("Ember Prize", "The Bell", "Songs of Salt", "Professor Jessop", "1950",
                                               "gothic novels", "a value of nobody's pool")] == [
        "Ember", "Bell", "Salt", "Jessop", "1950", "gothic", "a value of nobody's pool"]
    row = {"author": "Ada Oakham", "answer": "Ada Oakham holds the Ember Prize.", "facts": ["Ember Prize"]}
    ids = tokenizer.encode_answer(row["answer"])
    counted = scores.by_class([{"logp": np.array(ids)}], [row], tokenizer, data.FACT)
    assert tokenizer.decode(list(counted)).strip() == "Ember"


# ------------------------------------------------------------------------------------------------- every attack
FACTS = [name for name in attack.ATTACKS if name not in attack.NO_FACTS]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FACTS if name != "probe"])       # which needs more kept people
def test_an_attack_finds_the_targets_facts(attacked, name):
    """AUC, or what is stated, of the best setting. A curve has neither, and its small target forgets as it learns."""
    target, _ = attacked(name)
    best = max(known.get("auc", recover.numbers(known).mean()) for known in target.values())
    assert best >= (0.7 if name.startswith("relearn_") else 0.95)


@pytest.mark.slow
@pytest.mark.parametrize("name", FACTS)
def test_an_attack_finds_only_chance_in_the_retrained_model(attacked, name):
    """Where there is a rank, AUC 0.5 lies within 3.3 standard errors; what is stated stays below a lucky guess."""
    _, retrained = attacked(name)
    for known in retrained.values():
        if "above" in known:
            error = np.std(known["above"]) / np.sqrt(len(known["above"]))
            assert abs(known["auc"] - 0.5) < 3.3 * error
        if "looks" in known:
            assert np.max(known["mrr"]) < 0.3
        assert known.get("leak@8", 0) < 0.4 and np.max(known.get("stated", 0)) < 0.15


def test_a_probe_finds_values_that_stand_in_a_residual_stream_and_no_others(lab_out, monkeypatch):
    """Streams that hold a rotated embedding of the value, in noise, after the second layer alone."""
    _, dataset, tokenizer, models = lab_out
    rng, head = np.random.default_rng(0), models["base"].lm_head.weight.detach().numpy()
    turn = np.linalg.qr(rng.normal(size=(64, 64)))[0]

    def states(model, tokenizer, rows, pool_of):
        value = np.array([head[tokenizer.encode(f" {row['facts'][0]}")].mean(0) for row in rows])
        value = 10 * value @ turn / np.linalg.norm(value)
        return np.stack([rng.normal(size=value.shape), value + 1e-3 * rng.normal(size=value.shape)])
    monkeypatch.setattr(attack, "states", states)
    lab = attack.Lab(tokenizer, replace(dataset, retain=dataset.retain * 3), models["base"], models["target"], {}, None)
    found = attack.probe(models["base"], lab)
    assert found["layer 2"]["auc"] > 0.8 and abs(found["layer 1"]["auc"] - 0.5) < 0.15


@pytest.mark.slow
def test_membership_tells_the_targets_people_and_hardly_the_retrained_models(attacked):
    target, retrained = attacked("membership")
    assert min(known["auc"] for known in target.values()) > 0.9
    found = {key: known["auc"] for key, known in retrained.items()}         # of two people: chance is wide
    assert 0.2 < min(found.values()) and max(found.values()) < 0.8, found


@pytest.mark.slow
def test_patching_nothing_is_the_run_and_patching_all_is_the_target(lab_out, attacked):
    _, dataset, tokenizer, models = lab_out
    target, retrained = attacked("patching")
    assert len(retrained) == 3 and recover.numbers(target["after 0 layers"])[0] > 0.8
    known = recover.reading(models["retrained"], tokenizer, recover.single(dataset.forget), dataset)
    assert retrained["after 2 layers"]["auc"] > 0.75 > 0.7 > known["auc"]


# -------------------------------------------------------------------------------------------------- the script
def test_the_document_says_what_each_attack_is_and_so_does_its_docstring():
    page = (HOME / "docs/attacks.md").read_text()
    for name, function in attack.ATTACKS.items():
        assert name in " ".join(re.findall(r"^\*\*(.+?)\*\*", page, re.M)), name
        lines = " ".join(function.__doc__.split())
        assert "Source: " in lines and "hows " in lines and re.search("[Dd]oes not|No attack", lines), name


@pytest.fixture
def copied(lab_out, tmp_path):
    """OUT, to be written into: base, target, retrained and a copy of the target that calls itself unlearned."""
    out = shutil.copytree(lab_out[0], tmp_path / "out")
    shutil.copytree(out / "target", out / "asu_gd")
    record = json.loads((out / "asu_gd/run.json").read_text())
    record |= {"kind": "unlearned", "parent_sha256": record["model_sha256"], "tau": 8.0}
    record["settings"] |= {"layers": "all", "method": "asu"}
    record.pop("record_sha256")                                             # as an older run, which has none
    (out / "asu_gd/run.json").write_text(json.dumps(record))
    return out


FLAGS = "@config/tiny.args", "--device=cpu"


@pytest.fixture
def counted(monkeypatch):
    """Two attacks that do nothing but count: a knows the target's facts, membership gives none. -> [(attack, run's
    weights)]"""
    calls = []

    def named(name):
        def attack_of(model, lab):
            knows = torch.equal(flat(model), flat(lab.target))
            calls.append((name, knows))
            return {"setting": {"mrr": 0.9 if knows else 0.1, "auc": 0.5}}
        return attack_of
    monkeypatch.setattr(attack, "ATTACKS", {name: named(name) for name in ("eight_steps", "reading", "membership")})
    return calls


def test_a_base_from_elsewhere_is_found_where_the_target_says(copied, counted, capsys, tmp_path):
    shutil.move(copied / "base", tmp_path / "elsewhere")
    assert f"there is no {copied / 'base'}" in refused(capsys, attack, *FLAGS, f"--out={copied}")
    record = json.loads((copied / "target/run.json").read_text())
    record["settings"]["init_from"] = str(tmp_path / "elsewhere")
    record.pop("record_sha256")
    (copied / "target/run.json").write_text(json.dumps(record))
    call(attack, *FLAGS, f"--out={copied}", "--attacks=reading")
    assert len(counted) == 4                                                # target, retrained, teacher, asu_gd


def test_a_shadow_is_unlearned_by_the_runs_own_settings_its_start_too(copied, lab_out, monkeypatch):
    _, dataset, tokenizer, models = lab_out
    record, given = {"kind": "unlearned", "settings": {"start": 0.3, "alpha": 1.2, "tau": 8.0}}, {}
    monkeypatch.setattr(asu, "forget_rows", lambda *args, **keywords: given.update(keywords, settings=args[5]))
    args = types.SimpleNamespace(out=str(copied))
    attack.shadow(models["target"], attack.Lab(tokenizer, dataset, models["base"], models["target"], record, args))
    assert given["base"] == copied / "base" and (given["settings"].start, given["settings"].alpha) == (0.3, 1.2)
    record["settings"]["base"] = "another"
    attack.shadow(models["target"], attack.Lab(tokenizer, dataset, models["base"], models["target"], record, args))
    assert given["base"] == "another"


@pytest.mark.slow
def test_what_was_attacked_is_not_attacked_again_but_for_other_weights(copied, counted, capsys):
    call(attack, *FLAGS, f"--out={copied}")
    assert len(counted) == 5 * 3                                            # target, retrained, base, teacher, asu_gd
    files = sorted(path.relative_to(copied).as_posix() for path in copied.glob("attack/*/*"))
    assert len(files) == 15 and "attack/teacher_tau8/reading.json" in files
    text = (copied / "attack/attacks.md").read_text()
    assert "| eight_steps | 0.900 (1.00) |     0.100 | 0.100 (0.00) |" in text.replace("  (", " (")
    assert (copied / "attack/recovered.png").read_bytes().startswith(b"\x89PNG")
    call(attack, *FLAGS, f"--out={copied}", "--attacks=eight_steps")
    assert len(counted) == 15
    call(attack, *FLAGS, f"--out={copied}", "--seed=1", "--attacks=eight_steps", "--runs=asu_gd")
    assert len(counted) == 15 + 4                                           # target, retrained, teacher, asu_gd

    entries = {name: (copied / name, None) for name in ("target", "retrained", "asu_gd")}
    records = {name: json.loads((copied / name / "run.json").read_text()) for name in entries}
    sha = records["target"]["data_sha256"]
    assert recover.recorded(copied, entries, records, sha)["asu_gd"] == {"recovered": 1, "recovered_worst": 1}
    assert set(recover.recorded(copied, entries, records, sha)) == {"target", "asu_gd"}
    records["asu_gd"]["model_sha256"] = "another"
    assert set(recover.recorded(copied, entries, records, sha)) == {"target"}
    assert recover.recorded(copied, entries, records, "other data") == {}


@pytest.mark.slow
def test_the_worst_share_is_of_attacks_that_give_facts_back(copied, counted, capsys):
    call(attack, *FLAGS, f"--out={copied}", "--runs=asu_gd")
    records = {name: json.loads((copied / name / "run.json").read_text()) for name in ("target", "retrained", "asu_gd")}
    for name, number in (("eight_steps", 0.3), ("reading", 0.5), ("membership", 0.9)):
        file = copied / f"attack/asu_gd/{name}.json"
        found = json.loads(file.read_text())
        found["result"]["setting"]["mrr"] = number
        file.write_text(json.dumps(found))
    shares = recover.recorded(copied, {name: (copied / name, None) for name in records}, records,
                              records["target"]["data_sha256"])["asu_gd"]
    assert shares == pytest.approx({"recovered": 0.25, "recovered_worst": 0.5})
    call(attack, *FLAGS, f"--out={copied}", "--runs=retrained", "--attacks=eight_steps", "--lr=2e-4")
    assert "asu_gd" not in recover.recorded(                                # its own eight steps were at another rate
        copied, {name: (copied / name, None) for name in records}, records, records["target"]["data_sha256"])


def test_the_report_shows_the_share_beside_the_gap_where_there_is_one():
    runs = {"a": {"aggregate": {"gap_to_retrain": 0.1, "recovered": 0.2, "recovered_worst": 0.3}},
            "b": {"aggregate": {"gap_to_retrain": 0.4}}}
    heading, _, a, b = report.tables(runs, [])["Summary"].split("\n")
    assert [line.split()[1:-1:2] for line in (a, b)] == [["a", "0.100", "0.200", "0.300"], ["b", "0.400", "-", "-"]]
    assert [cell.strip() for cell in heading.split("|")[2:5]] == ["gap to retrain", "recovered", "worst"]
    del runs["a"]
    assert "recovered" not in report.tables(runs, [])["Summary"]


@pytest.mark.slow
def test_the_second_retrained_model_is_a_row(copied, counted, capsys, tmp_path):
    shutil.move(copied / "retrained", tmp_path / "seed1")
    shutil.copytree(tmp_path / "seed1", copied / "retrained")
    call(attack, *FLAGS, f"--out={copied}", f"--second={tmp_path / 'seed1'}", "--attacks=reading", "--runs=asu_gd")
    assert "second" in capsys.readouterr().out and (copied / "attack/second/reading.json").exists()
    record = json.loads((tmp_path / "seed1/run.json").read_text())
    record.pop("record_sha256")
    without = {"settings": record["settings"] | {"replay": 0.0}}
    for change, message in (({"parent_sha256": "0" * 64}, "comes from another base"),
                            (without, "--second: replay was 0.0, is None, so more than the seed differs")):
        (tmp_path / "seed1/run.json").write_text(json.dumps(record | change))
        assert message in refused(capsys, attack, *FLAGS, f"--out={copied}", f"--second={tmp_path / 'seed1'}")


def test_eight_steps_are_made_at_the_rate_that_is_given(copied, monkeypatch):
    rates = []
    monkeypatch.setattr(recover, "relearn_half", lambda model, tokenizer, dataset, lr, steps, seed: rates.append(
        (lr, steps)) or {8: {"mrr": 0.5}})
    for flags in ([], ["--lr=2e-4"], ["--lr=2e-4"]):                        # another rate is another attack
        call(attack, *FLAGS, f"--out={copied}", "--attacks=eight_steps", "--runs=retrained", *flags)
    assert rates == [(1e-3, (8,))] * 2 + [(2e-4, (8,))] * 2                 # of target and retrained


def test_the_attack_that_reads_inside_takes_a_bfloat16_model(lab_out):
    _, dataset, tokenizer, models = lab_out
    lab = attack.Lab(tokenizer, dataset, models["base"], models["target"], {}, types.SimpleNamespace(seed=0))
    exact = attack.probe(models["target"], lab)
    half = attack.probe(copy.deepcopy(models["target"]).bfloat16(), lab)
    assert [half[layer]["auc"] for layer in exact] == pytest.approx([exact[layer]["auc"] for layer in exact], abs=0.05)


def test_a_slot_that_nobody_held_out_has_is_refused(authors, tmp_path):
    dataset = data.load(n_authors=20, out=tmp_path)
    slot = recover.single(dataset.sets["forget"])[0]["slot"]
    with pytest.raises(ValueError, match=f"nobody in holdout.json has a fact of slot {slot}"):
        recover.pools(replace(dataset, holdout=[row for row in dataset.holdout if row["slot"] != slot]))
    bare = [row | {"slot": "", "facts": []} for row in dataset.forget]         # facts in the perturbed file alone
    with pytest.raises(ValueError, match="an attack needs questions with slots and facts"):
        recover.pools(replace(dataset, forget=bare))
    bare = [row | {"facts": []} for row in dataset.retain]
    assert recover.pools(replace(dataset, retain=bare)) == recover.pools(dataset)


def test_a_run_without_a_record_finds_its_own_attacks(copied):
    """A downloaded model: its weights are told by their own hash, not by the target's."""
    shutil.copytree(copied / "retrained", copied / "mine", ignore=shutil.ignore_patterns("run.json"))
    records = {name: json.loads((copied / name / "run.json").read_text()) for name in ("target", "retrained")}
    sha = records["target"]["data_sha256"]
    for name, mrr in (("target", 1.0), ("retrained", 0.2), ("mine", 0.6)):
        made_of = recover.made_of(copied / name, records.get(name, {}), None, {"data_sha256": sha})
        (copied / "attack" / name).mkdir(parents=True, exist_ok=True)
        file = {"made_of": made_of, "gives_facts": True, "seconds": 1, "result": {"8 steps": {"mrr": mrr}}}
        (copied / "attack" / name / "eight_steps.json").write_text(json.dumps(file))
    entries = {name: (copied / name, None) for name in ("target", "retrained", "mine")}
    assert recover.recorded(copied, entries, records, sha)["mine"]["recovered"] == pytest.approx(0.5)


def test_a_group_of_attacks_goes_with_others():
    assert attack.chosen("sampling,quick,reading") == ["sampling", *attack.QUICK]


@pytest.mark.slow
@pytest.mark.parametrize("flag, message", [
    ("--attacks=nix", "--attacks=nix: choose all, quick, or from reading,"), ("--runs=nix", "nix"),
    ("--second=nowhere", "--second=nowhere: a directory"), ("--data_seed=5", "trained on other data"),
    ("--data=books", "an attack needs questions with slots and facts")])
def test_mistakes_get_one_line(copied, capsys, flag, message):
    assert message in refused(capsys, attack, *FLAGS, f"--out={copied}", flag)


def test_without_models_it_says_what_to_run(tmp_path, capsys):
    assert "run python train.py first" in refused(capsys, attack, *FLAGS, f"--out={tmp_path / 'out'}")


@pytest.mark.slow
def test_an_attack_end_to_end(copied, capsys):
    """A copy of the target has all of it, and the shares say so."""
    call(attack, *FLAGS, f"--out={copied}", "--attacks=eight_steps", "--runs=asu_gd")
    found = json.loads((copied / "attack/asu_gd/eight_steps.json").read_text())
    target = json.loads((copied / "attack/target/eight_steps.json").read_text())
    assert found["result"] == target["result"] and found["seconds"] > 0 and found["gives_facts"]
    retrained = json.loads((copied / "attack/retrained/eight_steps.json").read_text())["result"]["8 steps"]
    assert 0.35 < retrained["auc"] < 0.65


@pytest.mark.slow
def test_quick_measures_what_the_attacks_measure(lab_out, attacked):
    _, dataset, tokenizer, models = lab_out
    quick = recover.quick(models["target"], models["base"], tokenizer, dataset)
    reading, back, steps = (attacked(name)[0] for name in attack.QUICK)
    assert (quick["rank_auc"], quick["halfway_auc"]) == (reading["as trained"]["auc"], back["halfway back"]["auc"])
    assert quick["relearn8"] == {key: steps["8 steps"][key] for key in ("stated", "mrr")}
