"""What the course's tests stand on: numbers drawn from a seed, and checks that say what is likely wrong.

The tests that a student runs use seed 0. The grader runs the same tests with a seed made of its secret.
"""

import copy
import random

import torch

import data
from data import mean_over_answers
from lab.answers import answer_nll
from model import ModelConfig, Transformer


class Draw:
    """Sizes, tensors and examples of one test. The same seed gives the same ones."""

    def __init__(self, seed, test):
        self.rng = random.Random(f"{seed} {test}")
        self.number = self.rng.randrange(2**31)
        self.world = random.Random(f"{seed} world").randrange(10**6)        # one for all tests of a file
        self.generator = torch.Generator().manual_seed(self.number)

    def sizes(self, n, low=3, high=14):
        """n sizes, no two equal: a test in which two dimensions are equal does not see them swapped."""
        return self.rng.sample(range(low, high), n)

    def normal(self, *shape):
        return torch.randn(shape, generator=self.generator)

    def logp(self, *shape):
        """Log-probabilities over the last dimension."""
        return (2 * self.normal(*shape)).log_softmax(-1)

    def mask(self, B, T):
        """(B, T) bool: answers of 2 to T tokens, of several lengths, then padding."""
        lengths = [2, T, *(self.rng.randint(2, T) for _ in range(B - 2))]
        self.rng.shuffle(lengths)
        return torch.arange(T) < torch.tensor(lengths)[:, None]

    def model(self, **changes):
        """A small random model, its weights large enough that attention is far from uniform."""
        torch.manual_seed(self.number)
        config = dict(vocab_size=self.rng.randint(50, 70), block_size=48, n_layer=3, n_head=4, n_kv_head=2, n_embd=24,
                      n_hidden=40, init_std=0.4)
        return Transformer(ModelConfig(**config | changes)).eval()

    def examples(self, n, vocab_size, longest=9):
        """n examples of random tokens, no two answers in a row of equal length."""
        def tokens(length):
            return [self.rng.randrange(vocab_size) for _ in range(length)]
        return [data.Example(tokens(self.rng.randint(2, 7)), tokens(2 + (i + self.number) % (longest - 1)))
                for i in range(n)]


class Speaker:
    """In place of a model, for losses: it speaks, at any tau, and holds no code of any problem."""
    device = torch.device("cpu")

    def __init__(self, draw, like=None):
        self.vocab_size, C = (like.vocab_size, like.weight.size(1)) if like else draw.sizes(2, 11, 20)
        self.weight = draw.normal(self.vocab_size, C)       # another one: a student that has moved

    def hidden(self, idx, tau=1.0, n_layers=None):
        """(B, T) -> (B, T, C); more even at a higher tau."""
        return self.weight[idx].cumsum(1).tanh() / tau

    def lm_head(self, x):
        return x @ self.weight.T


class Live:
    """In place of asu.Frozen: theta_0 is asked anew each time."""

    def __init__(self, model, tau):
        self.model, self.tau, self.n_layers = model, {"teacher": tau, "reference": 1.0}, {"logp": None, "hidden": 1}

    def says(self, who, what, examples, batch):
        x = batch.at_answers(self.model.hidden(batch.idx, tau=self.tau[who]))
        return x if what == "hidden" else self.model.lm_head(x).log_softmax(-1)

    def teacher(self, what, examples, batch):
        return self.says("teacher", what, examples, batch)


def check(right, hint):
    """The hint, not two numbers that differ, is what a student reads."""
    if not right:
        raise AssertionError(hint)


def close(a, b, tolerance=1e-5):
    """Whether two numbers or tensors of equal shape are the same up to a tolerance, absolute and relative."""
    a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    return a.shape == b.shape and bool(((a - b).abs() <= tolerance * (1 + b.abs())).all())


def gradient(loss, *inputs):
    """Of loss(*inputs) in its first input."""
    first = inputs[0].detach().clone().requires_grad_()
    value = loss(first, *inputs[1:])
    check(torch.is_tensor(value) and value.requires_grad,
          "no gradient arrives at the student: return a tensor made of its log-probabilities, without detach or item")
    value.backward()
    return torch.zeros_like(first) if first.grad is None else first.grad


# ------------------------------------------------------------------------------------------- a world in seconds
def small_world(seed, n_authors=5, n_forgotten=1, slots=10):
    """A tokenizer, rows of a few authors, and rows of people whom no model meets
    -> (tokenizer, forget rows, retain rows, strangers)"""
    rows, strangers = data.authors.people(seed, n_authors, 2)
    rows, strangers = ([row for i, row in enumerate(people) if i % 20 < slots] for people in (rows, strangers))
    texts = []
    for row in rows + strangers:
        texts += [row["questions"][0], data.ANSWER.format(answer=row["answers"][0])]
    first = (n_authors - n_forgotten) * slots
    return data.Tokenizer.train(texts, 600), rows[first:], rows[:first], strangers


def memorised(tokenizer, rows, seed, steps=130, lr=8e-3, width=48):
    """A two-layer model that has learnt these rows by heart, in their first phrasing. Seconds."""
    torch.manual_seed(seed)
    model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, block_size=96, n_layer=2, n_head=4, n_kv_head=4,
                                    n_embd=width, n_hidden=2 * width, eos_id=tokenizer.eos_id))
    examples, rng = data.training_examples(tokenizer, rows, 1), random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 15) * (1 - step / steps)
        batch = data.collate(rng.sample(examples, min(24, len(examples))))
        mean_over_answers(answer_nll(model, batch), batch.mask).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def weights(model):
    """A copy of all weights, to see whether somebody changed them."""
    return copy.deepcopy(model.state_dict())


def unchanged(model, before):
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)
