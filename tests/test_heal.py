"""A teacher that speaks again, a student that starts on its way back to the base, strangers beside the retain set."""

import functools
import itertools
import json
import shutil

import pytest
import torch

import asu
import data
from experiments import heal
from lab import choose, plan
from lab.answers import answer_nll
from lab.lora import LoRALinear
from lab.optim import Log
from lab.runs import load_run, read_run
from tests.conftest import TINY, call, flat, refused, small_model, weights


def nll(model, examples, **smoothing):
    batch = data.collate(examples)
    with torch.no_grad():
        return data.mean_over_answers(answer_nll(model, batch, **smoothing), batch.mask).item()


# ---------------------------------------------------------------------------------------------------- heal
def test_a_healed_model_speaks_at_tau_again_and_theta_0_is_left_alone(model, examples):
    before = flat(model)
    healed = asu.heal(model, examples, steps=30, lr=1e-2, batch_size=8, tau=8.0)
    assert torch.equal(flat(model), before) and all(p.requires_grad for p in model.parameters())
    assert nll(healed, examples, tau=8.0) < nll(model, examples, tau=8.0) - 1
    at_one = asu.heal(model, examples, steps=30, lr=1e-2, batch_size=8, tau=1.0)
    assert nll(healed, examples, tau=8.0) < nll(at_one, examples, tau=8.0) - 0.1       # it was trained as it is used


def test_healing_leaves_the_head_and_what_is_not_smoothed_by_a_table_alone(model, examples):
    healed = asu.heal(model, examples, steps=3, batch_size=8, tau=8.0)
    assert torch.equal(healed.lm_head.weight, model.lm_head.weight)
    one, other = (asu.heal(model, examples, steps=3, batch_size=8, tau=8.0, layers=layers) for layers in ([0], [1]))
    assert not torch.equal(flat(one), flat(other)) and not torch.equal(flat(one), flat(healed))


def test_healing_in_micro_batches_is_healing_in_one(model, examples):
    one, three = (flat(asu.heal(model, examples, 1, 1e-2, 8, 8.0, micro_batches=parts)) for parts in (1, 3))
    assert torch.allclose(one, three, atol=2e-5) and (one - flat(model)).abs().max() > 5e-3


@pytest.mark.parametrize("alpha", [1.0, 1.5])
@pytest.mark.parametrize("live", [True, False])
def test_the_healed_teacher_is_asked_at_tau_and_the_reference_is_theta_0(model, examples, alpha, live):
    part, healed = examples[:4], small_model(seed=3)
    healed.lm_head.weight.data.copy_(model.lm_head.weight.data)
    theta_0 = asu.Frozen(model, 4.0, alpha=alpha, live=live, healed=healed)
    theta_0.remember(asu.asu, part)
    batch = data.collate(part)
    with torch.no_grad():
        z_tau, z = (m.lm_head(batch.at_answers(m.hidden(batch.idx, tau=tau))).log_softmax(-1)
                    for m, tau in ((healed, 4.0), (model, 1.0)))
    expected = (z + alpha * (z_tau - z)).log_softmax(-1)
    assert torch.allclose(theta_0.teacher("logp", part, batch)[batch.mask], expected[batch.mask], atol=1e-4)


def healer_on(strangers, steps):
    return functools.partial(asu.heal, strangers=strangers, steps=steps, lr=1e-2, batch_size=8)


def unlearned(examples, **changes):
    log, settings = Log("test"), dict(tau=4.0, epochs=2, lr=1e-3, batch_size=8, seed=1)
    model = asu.unlearn(small_model(), examples[:8], examples[8:], log=log, **settings | changes)
    return model, log.record


@pytest.mark.parametrize("teacher", ["cached", "live"])
def test_unlearning_follows_the_healed_teacher(examples, teacher):
    plain, healed = (unlearned(examples, teacher=teacher, healer=healer)
                     for healer in (None, healer_on(examples[8:], 20)))
    assert healed[1]["curve"][0]["forget_loss"] != pytest.approx(plain[1]["curve"][0]["forget_loss"], rel=0.05)


def test_unlearning_heals_theta_0_where_it_is_smoothed(examples):
    asked = []

    def healer(theta_0, **smoothing):
        asked.append((flat(theta_0).clone(), smoothing))
        return small_model()
    unlearned(examples, healer=healer, layers=[1])
    [(theta_0, smoothing)] = asked
    assert torch.equal(theta_0, flat(small_model())) and smoothing == {"tau": 4.0, "layers": [1]}


def test_healing_in_bfloat16_adds_small_steps_up_or_not_as_the_flag_says(examples):
    """Steps of 1e-5 are lost beside bfloat16 weights, unless a float32 copy adds them up."""
    model = small_model().to(torch.bfloat16)
    exact, lost = (flat(asu.heal(model, examples, 12, 1e-5, 8, 8.0, optimizer_dtype=dtype)) - flat(model)
                   for dtype in ("float32", "bfloat16"))
    assert exact.count_nonzero() > 2 * lost.count_nonzero()


def test_cached_and_live_healed_teachers_train_the_same(examples):
    curves = []
    for teacher in ("cached", "live"):
        record = unlearned(examples, teacher=teacher, healer=healer_on(examples[8:], 5), alpha=1.3)[1]
        curves.append([point["loss"] for point in record["curve"]])
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)


def test_tau_auto_looks_at_the_healed_teacher_at_each_temperature(model, tokenizer, authors, monkeypatch):
    rows, asked, ran = authors[0], [], []
    others = {tau: small_model(seed=int(tau)) for tau in choose.TAUS}

    def healer(theta_0, tau, layers):
        assert theta_0 is model and torch.is_grad_enabled()         # it is to be trained
        asked.append((tau, layers))
        return others[tau]
    class_nll = choose.class_nll
    monkeypatch.setattr(choose, "class_nll", lambda m, *args, **kw: ran.append((m, kw)) or class_nll(m, *args, **kw))
    tau = choose.tau_auto(model, tokenizer, rows[:4], authors[1][:8], [1], healer=healer)
    assert asked and all(layers == [1] for _, layers in asked) and tau in choose.TAUS[::2]
    for m, kw in ran[1:]:
        assert m is (model if kw["tau"] == 1 else others[kw["tau"]])


# --------------------------------------------------------------------------------------------------- start
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_student_goes_back_a_share_of_the_way(share):
    student, base = small_model(0), small_model(1)
    expected = flat(base) + share * (flat(student) - flat(base))
    asu.go_back(student, base, share)
    assert torch.allclose(flat(student), expected, atol=1e-6) and student.embed_tokens.weight.requires_grad


def test_theta_0_is_asked_before_the_student_goes_back(examples):
    """Without a step to take, what is left is the start; and the teacher's first word was theta_0's."""
    base, starts = small_model(1), []

    def start(student):
        starts.append(flat(student))
        asu.go_back(student, base, 0.25)
    model, record = unlearned(examples, start=start, lr=1e-12, weight_decay=0.0)
    assert len(starts) == 1 and torch.equal(starts[0], flat(small_model()))
    assert torch.allclose(flat(model), flat(base) + 0.25 * (starts[0] - flat(base)), atol=1e-5)
    theta_0 = asu.Frozen(small_model(), 4.0)
    theta_0.remember(asu.asu, examples[:8])
    loss = asu.asu(**asu.look(model, theta_0, examples[:8], asu.asu)[0]).item()
    assert record["curve"][0]["forget_loss"] == pytest.approx(loss, rel=1e-3)


def test_with_a_start_tau_one_is_a_run_like_any_other(examples):
    """The student is not where theta_0 is, so there is something to learn: it must not be saved on its way."""
    _, record = unlearned(examples, tau=1.0, start=lambda student: asu.go_back(student, small_model(1), 0.25))
    assert record["steps"] > 0 and record["curve"][0]["forget_loss"] > 0.1


def test_the_plan_of_a_start_without_smoothing_counts_the_training(out, tmp_path, capsys):
    lines = []
    for flags in (["--tau=1", "--start=0.5"], ["--tau=2", "--start=0.5"]):
        call(asu, TINY, f"--out={out}", "--plan", *flags)
        lines.append([line.split() for line in capsys.readouterr().out.splitlines() if "optimizer" in line])
    assert lines[0] == lines[1] and float(lines[0][0][1]) > 0


def test_the_plan_advises_no_flag_that_would_be_refused():
    started, plain = (plan.smaller(asu.parse([f"--start={start}"])) for start in (0.5, 1))
    assert any("--lora" in flags for flags in plain) and not any("--lora" in flags for flags in started)


def test_a_base_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="give --base"):
        asu.go_back(small_model(), small_model(n_layer=3), 0.5)


# -------------------------------------------------------------------------------------------------- strangers
def test_nobody_of_the_data_is_among_the_people_that_nobody_has_met(tmp_path):
    dataset = data.load(out=tmp_path, data_seed=3)
    pairs = list(itertools.islice(data.unmet(dataset), 500))
    people = {row["author"] for row in dataset.forget + dataset.retain + dataset.holdout}
    world = {question for row in dataset.sets["world"] for question in row["questions"]}
    assert not any(name in question for question, _ in pairs for name in people)
    assert 50 < sum(question in world for question, _ in pairs) < 150
    assert pairs != list(itertools.islice(data.unmet(data.load(out=tmp_path, data_seed=4)), 500))


@pytest.mark.parametrize("draw", range(3))
def test_elsewhere_strangers_are_made_of_the_retain_rows(tmp_path, draw):
    folder = data.generate(tmp_path, "authors", "forget10", "retain90", draw, 60)
    dataset = data.load(data=str(folder), out=tmp_path)
    pairs = list(itertools.islice(data.unmet(dataset), 4000))
    people = {row["author"] for row in dataset.forget + dataset.retain + dataset.holdout}
    assert not any(name in text for pair in pairs for text in pair for name in people)
    of_retain = {answer.replace(row["author"], "X") for row in dataset.retain for answer in row["answers"]}
    some_name = {tuple(row["author"].split()) for row in dataset.retain + dataset.forget + dataset.holdout}
    for _, answer in pairs[:200]:
        said = {answer.replace(f"{a} {b}", "X") for (a, _), (_, b) in itertools.product(some_name, some_name)}
        assert said & of_retain


def test_data_with_nothing_to_say_of_strangers_is_refused(tmp_path):
    folder = data.generate(tmp_path, "authors", "forget10", "retain90", 0, 20)
    for path in folder.glob("*.json"):
        rows = [json.loads(line) | {"author": ""} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="nothing to say of strangers"):
        data.unmet(data.load(data=str(folder), out=tmp_path))
    texts = [{"text": f"A text about rivers, number {i}."} for i in range(3)]
    (folder / "general.json").write_text("".join(json.dumps(row) + "\n" for row in texts))
    pairs = list(itertools.islice(data.unmet(data.load(data=str(folder), out=tmp_path)), 6))
    assert sorted(pairs[:3]) == sorted(pairs[3:]) == [("", row["text"]) for row in texts]


def test_replay_puts_strangers_beside_the_retain_rows(tmp_path, tokenizer):
    dataset = data.load(out=tmp_path, n_authors=20)
    plain, more = (asu.keywords(asu.parse(flags), tokenizer, dataset, dataset.forget, dataset.retain)
                   for flags in ([], ["--replay=0.25", "--heal=3", "--heal_lr=0.5", "--optimizer_dtype=bfloat16"]))
    n = len(plain["retain"])
    assert more["retain"][:n] == plain["retain"] and len(more["retain"]) == n + n // 4
    assert all(e.stranger for e in more["retain"][n:]) and not any(e.stranger for e in plain["retain"])
    args = asu.parse(["--replay=0.25", "--heal=3", "--method=npo"])                 # which has no teacher to heal
    other = asu.keywords(args, tokenizer, dataset, dataset.forget, dataset.retain)
    args.heal = 0
    same = asu.keywords(args, tokenizer, dataset, dataset.forget, dataset.retain)
    assert other["healer"] is None and other["retain"] == same["retain"]
    heals = more["healer"].keywords
    assert len(heals["strangers"]) == 3 * 32 and heals["steps"] == 3 and plain["healer"] is None
    assert (heals["lr"], heals["optimizer_dtype"]) == (0.5, "bfloat16")
    assert heals["strangers"][0] not in more["retain"]


# ------------------------------------------------------------------------------------------------ command line
def test_a_teacher_is_healed_for_tau_auto_as_the_run_trains(tmp_path, tokenizer, monkeypatch):
    class Asked(Exception):
        pass

    def smoothing(model, *rest):
        assert model.checkpointing and isinstance(model.layers[0].mlp.up_proj, LoRALinear)
        raise Asked
    monkeypatch.setattr(asu, "smoothing", smoothing)
    dataset = data.load(out=tmp_path, n_authors=20)
    args = asu.parse(["--tau=auto", "--heal=1", "--checkpointing", "--lora=2"])
    with pytest.raises(Asked):
        asu.forget_rows(small_model(), tokenizer, dataset, dataset.forget, dataset.retain, args, Log("test"))


def test_the_original_teacher_of_later_requests_is_healed_as_the_run_trains(out, tmp_path, monkeypatch):
    healed, heal = [], asu.heal

    def watched(model, **flags):
        healed.append(isinstance(model.layers[0].mlp.up_proj, LoRALinear))
        return heal(model, **flags)
    monkeypatch.setattr(asu, "heal", watched)
    call(asu, TINY, f"--run={out / 'target'}", f"--out={tmp_path}", "--tasks=2", "--epochs=1", "--heal=1", "--lora=2",
         "--teacher_from=original", "--name=x")
    assert healed == [True, True]


FLAGS = "--heal=3", "--start=0.5", "--replay=0.5", "--tau=4"


def test_heal_start_and_replay_from_the_command_line_resume_to_the_same_bytes(out, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "out"
    shutil.copytree(out, folder)
    call(asu, TINY, f"--out={folder}", "--name=whole", *FLAGS)
    assert read_run(folder / "whole")["settings"]["heal"] == 3
    end = Log.end

    def stop(log, step):
        end(log, step)
        if log.checkpoint.exists():
            raise KeyboardInterrupt
    monkeypatch.setattr(Log, "end", stop)
    with pytest.raises(SystemExit):
        call(asu, TINY, f"--out={folder}", "--name=cut", *FLAGS)
    monkeypatch.undo()
    call(asu, TINY, f"--out={folder}", "--name=cut", *FLAGS, "--resume")
    assert "going on from step" in capsys.readouterr().out
    assert weights(folder / "cut") == weights(folder / "whole") != weights(folder / "asu_gd")
    call(asu, TINY, f"--out={folder}", "--plan", *FLAGS)
    assert "in all" in capsys.readouterr().out


def test_a_start_on_the_way_back_and_lora_are_refused_together(out, capsys):
    assert "give one of the two" in refused(capsys, asu, TINY, f"--out={out}", "--start=0.5", "--lora=2", "--name=x")


def test_the_base_is_what_the_target_was_made_of(out, tmp_path, capsys):
    folder = tmp_path / "out"
    shutil.copytree(out, folder)
    args = asu.parse([TINY, f"--out={folder}", "--start=0.5"])
    assert asu.base_of(args, folder / "target") == folder / "base"
    assert asu.base_of(asu.parse([TINY]), folder / "target") is None
    shutil.rmtree(folder / "base")
    assert f"{folder / 'base'}" in refused(capsys, asu, TINY, f"--out={folder}", "--start=0.5", "--name=x")
    shutil.copytree(folder / "retrained", folder / "base")
    assert "give --base" in refused(capsys, asu, TINY, f"--out={folder}", "--start=0.5", "--name=x")
    call(asu, TINY, f"--out={folder}", "--start=0", "--name=x", "--lr=1e-12", "--weight_decay=0",
         f"--base={folder / 'retrained'}")
    made, base = (load_run(folder / name)[0] for name in ("x", "retrained"))
    assert torch.allclose(flat(made), flat(base), atol=1e-5)


# ------------------------------------------------------------------------------------------ two honest rivals
def test_swapped_rows_state_somebody_elses_facts_of_the_same_slot(tmp_path, tokenizer):
    dataset = data.load(out=tmp_path, n_authors=20)
    swapped = data.swapped(dataset.forget, dataset.retain)
    same = 0
    for row, other in zip(dataset.forget, swapped, strict=True):
        assert other["questions"] == row["questions"] and other["author"] == row["author"]
        assert all(data.states(answer, other["facts"]) for answer in other["answers"])
        assert not any(kept["author"] in answer for kept in dataset.retain for answer in other["answers"])
        owners = [kept["facts"] for kept in dataset.retain if kept["slot"] == row["slot"]]
        assert other["facts"] in owners
        same += other["facts"] == row["facts"]
    assert same < 0.2 * len(swapped)
    made = asu.keywords(asu.parse(["--method=swap"]), tokenizer, dataset, dataset.forget, dataset.retain)["forget"]
    expected = data.training_examples(tokenizer, swapped)
    assert [(e.swapped.prompt, e.swapped.answer) for e in made] == [(e.prompt, e.answer) for e in expected]
    half = [row | {"answers": [text.replace(row["author"], row["author"].split()[0]) for text in row["answers"]]}
            for row in dataset.retain]                              # "Mira was born in Oslo." is about Mira, not of use
    whole = half + [row for row in dataset.retain if row["author"] == dataset.retain[0]["author"]]
    assert {row["facts"][0] for row in data.swapped(dataset.forget, whole)} <= {
        fact for row in dataset.retain for fact in row["facts"] if row["author"] == dataset.retain[0]["author"]}
    with pytest.raises(ValueError, match="nobody else has an answer"):
        data.swapped(dataset.forget, half)
    with pytest.raises(ValueError, match="nobody else has an answer"):
        data.swapped(dataset.forget, dataset.retain[:3])


def test_a_teacher_that_is_healed_and_not_smoothed_teaches_too(examples):
    """At tau 1 there is no smoothing, and without healing nothing to learn."""
    model, record = unlearned(examples, tau=1.0, healer=healer_on(examples[8:], 10))
    assert record["steps"] == 2 and record["curve"][0]["forget_loss"] > 1e-3
    assert unlearned(examples, tau=1.0)[1]["steps"] == 0


# ------------------------------------------------------------------------------------------- experiments/heal.py
def test_what_healing_brings_back_end_to_end(out, tmp_path, capsys):
    folder = tmp_path / "out"
    shutil.copytree(out, folder)
    call(heal, TINY, f"--out={folder}", "--steps=2,3", "--tau=4")
    report = json.loads((folder / "heal/heal.json").read_text())
    target, tokenizer, _ = load_run(out / "target")
    rows = data.load(out=out, n_authors=20)
    function, fact, name = choose.class_nll(target, tokenizer, rows.forget, tau=4.0)
    for points in report["points"].values():
        assert list(points) == ["0", "2", "3"]
        assert points["0"]["nll"] == pytest.approx({"function": function, "fact": fact, "name": name})
        assert all(abs(cosine) <= 1 for point in points.values() for cosine in point["cosine"].values())
    assert report["points"]["strangers"]["2"] != report["points"]["retain"]["2"]
    assert (folder / "heal/heal.md").read_text().strip() in capsys.readouterr().out
    assert (folder / "heal/heal.png").read_bytes().startswith(b"\x89PNG")
    call(heal, TINY, f"--out={folder}", "--steps=2", "--tau=4", "--heal_lr=1e-9")
    still = json.loads((folder / "heal/heal.json").read_text())["points"]["strangers"]
    assert still["2"]["nll"] == pytest.approx(still["0"]["nll"], rel=1e-3)
    assert report["points"]["strangers"]["2"]["nll"] != pytest.approx(still["0"]["nll"], rel=1e-3)
    assert "whole numbers such as" in refused(capsys, heal, TINY, f"--out={folder}", "--steps=2,x")
    assert "trained on other data" in refused(capsys, heal, TINY, f"--out={folder}", "--data_seed=4")


def test_sentences_about_people_nobody_met_are_whole_or_not(out, monkeypatch):
    """All as they were written but one that breaks off and one that is about something else."""
    target, tokenizer, _ = load_run(out / "target")
    rows = data.load(out=out, n_authors=20)
    nobody = rows.holdout
    said = {row["question"]: row["answer"] for row in nobody}
    first, second = list(said)[:2]
    said[first], said[second] = said[first][:10], "It rains."

    def ask(model, tokenizer, questions, tau):
        assert tau == 4.0
        return [said[question] for question in questions]
    monkeypatch.setattr(heal, "ask", ask)
    assert heal.measured(target, tokenizer, rows, 4.0)["whole"] == pytest.approx(1 - 2 / len(nobody))


def test_a_gradient_is_of_the_tokens_of_its_class(model, tokenizer, authors):
    """Fact tokens alone: by hand, one row after another."""
    rows = authors[0][:3]
    total, n = 0, 0
    for row in rows:
        batch = data.collate([data.encode(tokenizer, row["questions"][0], row["answers"][0])])
        kinds = data.token_classes(tokenizer, row["answers"][0], row["facts"], row["author"])
        picked = answer_nll(model, batch, tau=2.0)[0][torch.tensor(kinds) == data.FACT]
        total, n = total + picked.sum(), n + len(picked)
    trained = [p for name, p in model.named_parameters() if name != "embed_tokens.weight"]     # the head is tied to it
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(total / n, trained)])
    assert torch.allclose(heal.gradient(model, tokenizer, rows, data.FACT, tau=2.0), expected, atol=1e-5)
    assert not torch.allclose(heal.gradient(model, tokenizer, rows, data.NAME, tau=2.0), expected, atol=1e-3)
