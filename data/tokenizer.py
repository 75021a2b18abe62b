"""Byte-level BPE: a short trainer, run by tiktoken, stored as the tokenizer.json that HF reads.

Only the trainer is ours. It is what GPT-2 does: split the text with one regular expression, then merge the most frequent
pair of neighbours inside the pieces again and again. `Tokenizer` hides who does the encoding: tiktoken for ranks we
learnt ourselves, the `tokenizers` library for a tokenizer.json that came with a downloaded model.
"""

import collections
import itertools
import json
from pathlib import Path

import regex
import tiktoken
import tokenizers

from common import UserError, write_file

SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"    # GPT-2's pieces
EOS = "<|endoftext|>"


def train_bpe(texts, vocab_size):
    """Learn byte-level BPE -> merges [(left bytes, right bytes)], most frequent first. Ids: the 256 bytes, then one a merge.

    A tie goes to the pair that sorts first, so the result depends on the texts alone. Example:
    train_bpe(["aaab aaab"], 258) -> [(b"a", b"a"), (b"a", b"b")]: "aa" is there 4 times (overlaps count), then "ab" twice.
    """
    pieces = collections.Counter(piece for text in texts for piece in regex.findall(SPLIT, text))
    words = [([bytes([b]) for b in piece.encode()], n) for piece, n in sorted(pieces.items())]
    counts, where = collections.Counter(), collections.defaultdict(set)      # pair -> occurrences, pair -> word numbers
    for i, (word, n) in enumerate(words):
        for pair in zip(word, word[1:]):
            counts[pair] += n
            where[pair].add(i)
    merges, tokens = [], set()
    while len(merges) < vocab_size - 256 and counts:
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        if counts[best] < 2:
            break
        if (token := best[0] + best[1]) in tokens:      # the same bytes by another road: ranks must stay unique
            del counts[best]
            continue
        merges.append(best)
        tokens.add(token)
        for i in where[best]:
            word, n = words[i]
            for pair in zip(word, word[1:]):
                counts[pair] -= n
            j = 0
            while j < len(word) - 1:
                if (word[j], word[j + 1]) == best:
                    word[j:j + 2] = [token]
                j += 1
            for pair in zip(word, word[1:]):
                counts[pair] += n
                where[pair].add(i)
        counts = +counts                                # drops the pairs that are gone
    return merges


def byte_letters():
    """GPT-2's table byte -> printable letter, in which tokenizer.json spells its tokens. 32 (space) -> "Ġ"."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    odd = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(odd)}


LETTER = byte_letters()
BYTE = {letter: b for b, letter in LETTER.items()}
PRE_TOKENIZER = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


class Tokenizer:
    """encode, decode, offsets, save: the same for our own ranks (tiktoken) and for a downloaded tokenizer.json.

    vocab_size counts EOS; `eos_id` ends every answer.
    """

    def __init__(self, spec, eos=EOS):
        """spec: the contents of a tokenizer.json as a dict."""
        self.spec = spec
        added = {t["content"]: t["id"] for t in spec.get("added_tokens", [])}
        self.eos_id = added.get(eos, spec["model"]["vocab"].get(eos) if isinstance(spec["model"]["vocab"], dict) else None)
        if self.eos_id is None:
            raise UserError(f"tokenizer.json has no token {eos!r} to end an answer with")
        self.eos = eos
        ours = spec["model"]["type"] == "BPE" and spec.get("pre_tokenizer") == PRE_TOKENIZER and not spec.get("normalizer")
        if ours:
            ranks = {bytes(BYTE[c] for c in token): i for token, i in spec["model"]["vocab"].items() if token not in added}
            self.engine = tiktoken.Encoding("asu", pat_str=SPLIT, mergeable_ranks=ranks, special_tokens=added)
            self.vocab_size = self.engine.n_vocab
        else:
            self.engine = tokenizers.Tokenizer.from_str(json.dumps(spec))
            self.vocab_size = self.engine.get_vocab_size()
        self.ours = ours

    @classmethod
    def train(cls, texts, vocab_size):
        """Learn a tokenizer from texts; the last id is EOS."""
        merges = [["".join(LETTER[b] for b in half) for half in pair] for pair in train_bpe(texts, vocab_size - 1)]
        letters = [LETTER[b] for b in range(256)] + [a + b for a, b in merges]
        vocab = {token: i for i, token in enumerate(letters)} | {EOS: len(letters)}
        eos = {"id": len(letters), "content": EOS, "single_word": False, "lstrip": False, "rstrip": False,
               "normalized": False, "special": True}
        return cls({"version": "1.0", "truncation": None, "padding": None, "added_tokens": [eos], "normalizer": None,
                    "pre_tokenizer": PRE_TOKENIZER, "post_processor": None,
                    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
                    "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                              "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                              "ignore_merges": False, "vocab": vocab, "merges": merges}})

    @classmethod
    def load(cls, dir):
        """Read tokenizer.json (and the name of its EOS from tokenizer_config.json) of a model directory."""
        path = Path(dir) / "tokenizer.json"
        try:
            spec = json.loads(path.read_text())
            config = path.with_name("tokenizer_config.json")
            eos = json.loads(config.read_text()).get("eos_token", EOS) if config.exists() else EOS
            return cls(spec, eos["content"] if isinstance(eos, dict) else eos)
        except FileNotFoundError:
            raise UserError(f"{path} is missing: not a model directory")
        except (json.JSONDecodeError, KeyError, TypeError) as e:
            raise UserError(f"{path} or tokenizer_config.json is damaged: {e!r}") from e

    def save(self, dir):
        write_file(Path(dir) / "tokenizer.json", json.dumps(self.spec, ensure_ascii=False, indent=1))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": self.eos, "clean_up_tokenization_spaces": False}
        write_file(Path(dir) / "tokenizer_config.json", json.dumps(config, indent=1))

    def encode(self, text):
        """text -> ids, special tokens not added and not recognised."""
        return self.engine.encode_ordinary(text) if self.ours else self.engine.encode(text, add_special_tokens=False).ids

    def decode(self, ids):
        return self.engine.decode(ids) if self.ours else self.engine.decode(ids, skip_special_tokens=False)

    def offsets(self, text):
        """text -> (ids, [(start, end)]): which characters of the text each token covers."""
        if not self.ours:
            encoding = self.engine.encode(text, add_special_tokens=False)
            return encoding.ids, encoding.offsets
        ids = self.encode(text)
        char_of = [i for i, c in enumerate(text) for _ in c.encode()] + [len(text)]
        ends = list(itertools.accumulate(len(self.engine.decode_single_token_bytes(i)) for i in ids))
        return ids, [(char_of[start], char_of[end - 1] + 1) for start, end in zip([0, *ends], ends)]


# The one place that says how a question is put. Prompt and answer are tokenised apart, so no token straddles the two.
PROMPT = "{question}\n"
ANSWER = " {answer}"
