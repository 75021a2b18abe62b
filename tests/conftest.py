"""A model and a tokenizer small enough for any test, and fixed random numbers."""

import pytest
import torch

import data
from model import ModelConfig, Transformer


def small_model(seed=0, **changes):
    """Two layers of four heads, weights large enough that attention is far from uniform."""
    torch.manual_seed(seed)
    config = dict(vocab_size=600, block_size=64, n_layer=2, n_head=4, n_kv_head=4, n_embd=32, n_hidden=64, eos_id=599,
                  init_std=0.3)
    return Transformer(ModelConfig(**config | changes)).eval()


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
