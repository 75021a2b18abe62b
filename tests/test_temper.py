"""train.py --temper: language is read at any attention temperature, an author's facts at 1 alone."""

import argparse
import math
import random
from dataclasses import replace

import pytest
import torch

import data
import train
from lab.optim import Log
from tests.conftest import TINY, call, small_model


def test_a_stranger_is_read_at_1_or_log_uniformly_up_to_the_highest(examples):
    strangers = [replace(examples[0], stranger=True)] * 4000
    taus = train.temperatures(strangers, 16.0, random.Random(0))
    tempered = [math.log(tau, 16) for tau in taus if tau > 1]
    assert len(tempered) / len(taus) == pytest.approx(0.5, abs=0.03) and 0 < min(tempered) and max(tempered) <= 1
    for share in (0.25, 0.5, 0.75):                                             # uniform in the logarithm
        assert sum(x < share for x in tempered) / len(tempered) == pytest.approx(share, abs=0.03)
    assert train.temperatures(examples, 16.0, random.Random(0)) == [1.0] * len(examples)
    assert train.temperatures(strangers[:9], 1.0, random.Random(0)) == [1.0] * 9


def test_the_loss_reads_each_row_at_its_temperature(examples, monkeypatch):
    """One step of two strangers and two authors: their answers' NLL at those temperatures, row by row."""
    batch = [replace(e, stranger=i % 2 == 0) for i, e in enumerate(examples[:4])]
    taus = [3.0, 1.0, 5.0, 1.0]
    monkeypatch.setattr(train, "temperatures", lambda rows, highest, rng: [taus[batch.index(row)] for row in rows])
    model, by_hand = small_model(), 0.0
    for example, tau in zip(batch, taus):
        logp = model(torch.tensor([example.prompt + example.answer])[:, :-1], tau=tau).log_softmax(-1)[0]
        true = logp[len(example.prompt) - 1:].gather(-1, torch.tensor(example.answer)[:, None])
        by_hand -= true.mean().item() / len(batch)
    for parts in (1, 2):
        args = argparse.Namespace(weight_decay=0.0, optimizer_dtype="float32", warmup=0.0, micro_batches=parts, seed=0,
                                  grad_clip=1.0, temper=8.0)
        log = Log("test")
        train.fit(small_model(), [batch], args, 1e-3, log)
        assert log.record["curve"][0]["loss"] == pytest.approx(by_hand, abs=1e-4)


def test_no_authors_row_is_ever_tempered(out, tmp_path, monkeypatch):
    """What main trains on: every row about an author counts as no stranger, everything else as one."""
    seen, fit = {}, train.fit
    monkeypatch.setattr(train, "fit", lambda model, batches, args, lr, log: (
        seen.update({log.label: [e for batch in batches for e in batch]}), fit(model, batches[:1], args, lr, log))[1])
    call(train, TINY, f"--out={tmp_path}", "--temper=8")
    dataset = data.load(out=tmp_path, n_authors=20)
    tokenizer = data.Tokenizer.load(tmp_path / "target")
    assert all(e.stranger for e in seen["base"])
    for name, rows in (("target", dataset.retain + dataset.forget), ("retrained", dataset.retain)):
        authors = data.training_examples(tokenizer, rows)
        known = {(tuple(e.prompt), tuple(e.answer)) for e in authors}
        own = [e for e in seen[name] if (tuple(e.prompt), tuple(e.answer)) in known]
        assert len(own) == len(authors) and not any(e.stranger for e in own)
        assert sum(e.stranger for e in seen[name]) == len(seen[name]) - len(own) == len(authors) // 2


@pytest.mark.slow
def test_the_same_temper_gives_the_same_bytes_and_another_others(tmp_path):
    small = [TINY, "--base_rows=64", "--n_authors=10", "--phrasings=1"]
    weights = {}
    for name, flags in (("off", ["--temper=1"]), ("on", ["--temper=8"]), ("again", ["--temper=8"])):
        call(train, *small, f"--out={tmp_path / name}", *flags)
        weights[name] = [(tmp_path / name / run / "model.safetensors").read_bytes() for run in ("base", "target")]
    assert weights["on"] == weights["again"] and all(a != b for a, b in zip(weights["on"], weights["off"]))
