"""A model and a tokenizer small enough for any test, fixed random numbers, and the main job on the tiny preset."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")           # before torch is imported: the tests share two cores

import contextlib
import io
import sys
from pathlib import Path

import pytest
import torch

import asu
import data
import eval
import train
from common import cli
from lab.answers import answer_nll
from model import ModelConfig, Transformer

HOME = Path(__file__).resolve().parent.parent
TINY = "@config/tiny.args"


def command(script, *flags):
    return [sys.executable, str(HOME / script), TINY, *flags]


def call(script, *flags):
    """script.main() with these flags in this process; exit codes and messages as on the command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [Path(script.__file__).name, *map(str, flags)])
        cli.run(script.main)


def refused(capsys, script, *flags):
    """-> the one line that answers a user's mistake."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        call(script, *flags)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "Traceback" not in error, error
    return error


def weights(path):
    """The bytes of a run's weights."""
    return (Path(path) / "model.safetensors").read_bytes()


def flat(model):
    """All weights in one vector, a copy."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def small_model(seed=0, **changes):
    """Two layers of four heads, weights large enough that attention is far from uniform."""
    torch.manual_seed(seed)
    config = dict(vocab_size=600, block_size=64, n_layer=2, n_head=4, n_kv_head=4, n_embd=32, n_hidden=64, eos_id=599,
                  init_std=0.3)
    return Transformer(ModelConfig(**config | changes)).eval()


def memorise(model, examples, steps, lr, parts):
    """AdamW on the answers of every so many-th example by turns."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for step in range(steps):
        batch = data.collate(examples[step % parts::parts])
        data.mean_over_answers(answer_nll(model, batch), batch.mask).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.fixture
def model():
    return small_model()


@pytest.fixture(scope="session")
def authors():
    rows, holdout = data.authors.people(data_seed=0, n_authors=10, n_holdout=2)
    return rows, holdout


@pytest.fixture(scope="session")
def tokenizer(authors):
    texts = [text for row in authors[0] + data.world() for text in (row["question"], " " + row["answer"])]
    return data.Tokenizer.train(texts, 600)


@pytest.fixture(scope="session")
def examples(tokenizer, authors):
    return data.training_examples(tokenizer, authors[0][::9])


@pytest.fixture(scope="session")
def out(tmp_path_factory):
    """train, asu, eval on the tiny preset, from a directory that is not the repository; beside it what each printed."""
    out = tmp_path_factory.mktemp("runs") / "out"
    for script in (train, asu, eval):
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
            patch.chdir(out.parent)
            call(script, TINY, f"--out={out}")
        (out.parent / f"{script.__name__}.py.txt").write_text(printed.getvalue())
    return out
