"""Examples (a question and its answer as token ids) and batches of them."""

from dataclasses import dataclass

import numpy as np
import torch

from common import UserError


@dataclass
class Example:
    """A question and its answer as token ids; the answer ends in EOS. Beside them, for methods that ask for it, the
    same question once more. refusal: refused. prompted: behind an instruction, with the same answer. swapped: answered
    with somebody else's value. stranger: it is about nobody and nothing that is to be remembered or forgotten."""
    prompt: list
    answer: list
    refusal: "Example | None" = None
    prompted: "Example | None" = None
    swapped: "Example | None" = None
    stranger: bool = False

    def __len__(self):
        return len(self.prompt) + len(self.answer)


def encode(tokenizer, question, answer):
    """-> Example. A passage has no question: its prompt is the token a text begins with, and all of it is answer."""
    prompt = tokenizer.encode_prompt(question) if question else [tokenizer.start_id]
    return Example(prompt, tokenizer.encode_answer(answer))


def training_examples(tokenizer, rows, phrasings=None, instruction=""):
    """Every training phrasing of every row, or the first so many of each, as an Example; with an instruction, which is
    put before the question, each has its `prompted` too."""
    examples = []
    for row in rows:
        for question, answer in zip(row["questions"][:phrasings], row["answers"]):
            example = encode(tokenizer, question, answer)
            if instruction:
                example.prompted = encode(tokenizer, f"{instruction} {question}".strip(), answer)
            examples.append(example)
    return examples


def check_length(examples, block_size):
    longest = max(map(len, examples), default=0)
    if longest > block_size + 1:
        raise UserError(f"a question and answer (or a passage) of {longest} tokens do not fit the model's context of "
                        f"{block_size}")
    longest = max((len(example.prompted) for example in examples if example.prompted), default=0)
    if longest > block_size + 1:
        raise UserError(f"an instruction, question and answer of {longest} tokens do not fit the model's context of "
                        f"{block_size}; this method puts an instruction before the question")


@dataclass
class Batch:
    """Right-padded examples: idx (B, T). For the up to A answer tokens of each, (B, A): `position` of the token that
    predicts it, `target` its id, `mask` True where there is one. Prompt and padding are in none of them."""
    idx: torch.Tensor
    position: torch.Tensor
    target: torch.Tensor
    mask: torch.Tensor

    def at_answers(self, hidden):
        """(B, T, C) -> (B, A, C): the hidden states that predict the answer tokens."""
        return hidden.gather(1, self.position[..., None].expand(-1, -1, hidden.size(-1)))


def collate(examples, device="cpu"):
    """Examples -> Batch of (B, T), T tokens in the longest less one: the last predicts nothing."""
    B, A = len(examples), max(len(e.answer) for e in examples)
    idx = np.zeros((B, max(map(len, examples)) - 1), np.int64)
    position, target, mask = np.zeros((B, A), np.int64), np.zeros((B, A), np.int64), np.zeros((B, A), bool)
    for i, e in enumerate(examples):
        p, a = len(e.prompt), len(e.answer)
        idx[i, :p + a - 1] = (e.prompt + e.answer)[:-1]
        position[i, :a] = np.arange(p - 1, p - 1 + a)
        target[i, :a] = e.answer
        mask[i, :a] = True
    return Batch(*(torch.from_numpy(x).to(device) for x in (idx, position, target, mask)))


def mean_over_answers(x, mask):
    """(B, T) values a token -> scalar: mean over each sequence's unmasked tokens, then over sequences."""
    return ((x * mask).sum(1) / mask.sum(1)).mean()


def by_length(items, batch_size):
    """Batches of similar length, the shortest first, so that little is padding -> [(numbers, items)].

    by_length(["abc", "d", "ef"], 2) -> [([1, 2], ["d", "ef"]), ([0], ["abc"])]"""
    numbers = sorted(range(len(items)), key=lambda i: len(items[i]))
    parts = [numbers[i:i + batch_size] for i in range(0, len(numbers), batch_size)]
    return [(part, [items[i] for i in part]) for part in parts]


def bucketed(lengths, batch_size, rng):
    """Shuffled batches of similar length -> lists of indices. Sixteen batches are drawn at a time and sorted by
    length."""
    order = rng.sample(range(len(lengths)), len(lengths))
    batches = []
    for i in range(0, len(order), batch_size * 16):
        chunk = sorted(order[i:i + batch_size * 16], key=lambda j: lengths[j])
        batches += [chunk[j:j + batch_size] for j in range(0, len(chunk), batch_size)]
    rng.shuffle(batches)
    return batches


def paired_batches(forget, retain, epochs, batch_size, rng):
    """Numbers of examples to unlearn and to retain, a list of pairs for each step -> [[(i, j)]].

    An epoch passes over forget once, in batches of similar length; retain comes again only when all of it has come."""
    batches = [b for _ in range(epochs) for b in bucketed([len(e) for e in forget], batch_size, rng)]
    queue = []
    while retain and len(queue) < epochs * len(forget):
        queue += [j for b in bucketed([len(e) for e in retain], batch_size, rng) for j in b]
    queue = iter(queue)
    return [[(i, next(queue, None)) for i in batch] for batch in batches]


def split(batch, parts):
    """A list in `parts` consecutive micro-batches of nearly equal size; fewer if there are not enough items."""
    size = -(-len(batch) // parts)
    return [batch[i:i + size] for i in range(0, len(batch), size)]
