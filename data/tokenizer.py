"""Byte-level BPE: a short trainer, run by tiktoken, stored as the tokenizer.json that HF reads.

Only the trainer is ours. It is what GPT-2 does: split the text with one regular expression, then merge the most
frequent pair of neighbours inside the pieces again and again. `Tokenizer` hides who does the encoding: tiktoken for
ranks we learnt ourselves, the `tokenizers` library for a tokenizer.json that came with a downloaded model. It also
knows how its model is asked: see chat.py.
"""

import collections
import contextlib
import copy
import itertools
import json
import os
import re
from pathlib import Path

import regex
import tiktoken
import tokenizers

from common import UserError
from common.files import check_file, read_json, write_file
from common.hf import as_list
from data import chat

SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"    # GPT-2's pieces
EOS = "<|endoftext|>"


def train_bpe(texts, vocab_size):
    """Learn byte-level BPE -> merges [(left bytes, right bytes)], most frequent first.

    Ids: the 256 bytes, then one a merge. A tie goes to the pair that sorts first, so the result depends on the texts
    alone. Example: train_bpe(["aaab aaab"], 258) -> [(b"a", b"a"), (b"a", b"b")]: "aa" is there 4 times (overlaps
    count), then "ab" twice.
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
CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS, "clean_up_tokenization_spaces": False}


def our_spec(merges):
    """Merges [[left letters, right letters]] -> the tokenizer.json of our trainer, as a dict."""
    letters = [LETTER[b] for b in range(256)] + [a + b for a, b in merges]
    vocab = {token: i for i, token in enumerate(letters)} | {EOS: len(letters)}
    eos = {"id": len(letters), "content": EOS, "single_word": False, "lstrip": False, "rstrip": False,
           "normalized": False, "special": True}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [eos], "normalizer": None,
            "pre_tokenizer": PRE_TOKENIZER, "post_processor": None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                      "ignore_merges": False, "vocab": vocab, "merges": merges}}


def is_ours(spec):
    """Whether a tokenizer.json is, to the last id, what our trainer writes for its merges. Many look like ours."""
    try:
        return spec == our_spec(spec["model"]["merges"])
    except (KeyError, TypeError, ValueError):       # merges in another form
        return False


def at_rest(spec):
    """tokenizer.json without how it was last used: cut to a length, padded, merges left out at random."""
    spec = spec | {"truncation": None, "padding": None}
    return spec | {"model": spec["model"] | {"dropout": None}} if spec["model"].get("dropout") else spec


def without_prefix(spec):
    """The tokenizer.json of a SentencePiece model puts a space before a text -> (the same without it, where).

    "first": at the start of the text; "always": after every special token too; "never": as byte-level models do.
    """
    spec, where = copy.deepcopy(spec), "never"
    for stage in (spec.get("normalizer") or {}, spec.get("pre_tokenizer") or {}):
        for part in stage.get("normalizers", stage.get("pretokenizers", [stage])):
            if part.get("type") == "Prepend":
                part["prepend"], where = "", "always"
            elif part.get("prepend_scheme", "always" if part.get("add_prefix_space") else "never") != "never":
                where = part.get("prepend_scheme", "always")
                part |= {"prepend_scheme": "never"} if part["type"] == "Metaspace" else {}
                part |= {"add_prefix_space": False} if "add_prefix_space" in part else {}
    return spec, where


def content(token):
    """A token in tokenizer_config.json: its text, or a dict around it."""
    return token["content"] if isinstance(token, dict) else token


@contextlib.contextmanager
def silence():
    """Nothing on stderr: the library, where it panics, writes there past Python."""
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def library_engine(spec, special=()):
    """A tokenizer.json as a dict -> the library's Tokenizer, to which special tokens in a text are plain letters.

    special: tokens that are special whatever tokenizer.json says of them. Raises UserError where it is damaged."""
    added = [t | {"special": t["special"] or t["content"] in special} for t in spec.get("added_tokens") or []]
    try:
        with silence():
            engine = tokenizers.Tokenizer.from_str(json.dumps(spec | {"added_tokens": added}))
            engine.encode_special_tokens = True
            engine.decode(engine.encode("Zoë, 日本 🙂").ids)
    except KeyboardInterrupt:
        raise
    except BaseException as e:      # the library raises nothing narrower, and where it panics nothing wider
        raise UserError(f"tokenizer.json is damaged: {e}") from e
    return engine


class Tokenizer:
    """encode, decode, offsets, save: the same for our own ranks (tiktoken) and for a downloaded tokenizer.json.

    vocab_size: above the largest id; `eos_id` ends every answer, `start_id` begins a text: BOS, or EOS where there is
    none. `template`: the name of the format its model is asked in; `prompt` and `answer`: what it puts before and after
    a question, and an answer.
    """

    def __init__(self, spec, config=None, template=None):
        """spec, config: the contents of tokenizer.json and tokenizer_config.json as dicts. template: one of TEMPLATES,
        default what the config says."""
        spec = at_rest(spec)
        self.spec, self.config, self.prefix = spec, config or CONFIG, "never"
        self.ours = is_ours(spec)
        self.engine = None if self.ours else library_engine(spec)
        tokens = {t["content"] for t in spec.get("added_tokens") or [] if t["content"].strip()}
        bos = [] if self.ours else self.bos()
        eos = content(self.config.get("eos_token")) or EOS
        end = self.set_format(template, eos, tokens)
        if self.template == "plain":
            self.prompt = "".join(bos) + self.prompt[0], self.prompt[1]
        self.eos, self.in_use = end or eos, {end or eos, *bos}
        if "asu_template" in self.config:
            self.config["chat_template"] = chat.as_chat_template(self.prompt, self.answer, self.eos)
        self.in_use |= {token for token in tokens if token in "".join(self.prompt)}
        if self.ours:
            vocab = spec["model"]["vocab"]
            ranks = {bytes(BYTE[c] for c in token): i for token, i in vocab.items() if token != EOS}
            self.engine = tiktoken.Encoding("asu", pat_str=SPLIT, mergeable_ranks=ranks,
                                            special_tokens={EOS: len(ranks)})
            self.vocab_size, id_of = self.engine.n_vocab, vocab.get
        else:
            self.engine = library_engine(spec, self.in_use)
            self.vocab_size, id_of = 1 + max(self.engine.get_vocab().values()), self.engine.token_to_id
            inner, self.prefix = without_prefix(spec)
            self.inner = self.engine if self.prefix == "never" else library_engine(inner, self.in_use)
        self.special = {token: id_of(token) for token in tokens | self.in_use}   # the library's ids
        for token, use in ((self.eos, "end an answer"), *((token, "begin a text") for token in bos)):
            if self.special[token] is None:
                raise UserError(f"tokenizer.json has no token {token!r} to {use} with")
        self.eos_id, self.start_id = self.special[self.eos], self.special[[*bos, self.eos][0]]
        self.swallow = {side: {t["content"] for t in spec.get("added_tokens") or [] if t.get(side)}
                        for side in ("lstrip", "rstrip")}   # tokens that take the blanks beside them

    def set_format(self, template, eos, tokens):
        """How the model is asked: as told, as an earlier run was, by its own chat template, or as its EOS hints.

        -> the token that ends an answer, None for EOS. tokens: the special ones."""
        own = self.config.get("chat_template")
        if isinstance(own, list):                           # several by name
            own = {entry["name"]: entry["template"] for entry in own}.get("default")
        if template:
            self.config = self.config | {"asu_template": template}
        template = self.config.get("asu_template") or (not own and chat.by_eos(eos))
        self.chat_template = None if template else own
        if template:
            self.template, (self.prompt, self.answer, end) = template, chat.known(template)
        else:
            named = {key: content(value) for key, value in self.config.items() if key.endswith("_token") and value}
            self.named = {key: value for key, value in named.items() if isinstance(value, str)}
            self.template, (self.prompt, self.answer, end) = chat.OWN, chat.own_format(own, self.named, tokens | {eos})
        return end

    def bos(self):
        """The tokens a text begins with: as tokenizer_config.json orders, else what tokenizer.json puts before it."""
        if (add := self.config.get("add_bos_token")) is not None:
            return [content(self.config["bos_token"])] if add and self.config.get("bos_token") else []
        text = self.engine.encode("a")
        before = itertools.takewhile(lambda pair: pair[1], zip(text.tokens, text.special_tokens_mask))
        return [token for token, _ in before]

    @classmethod
    def train(cls, texts, vocab_size):
        """Learn a tokenizer from texts; the last id is EOS."""
        merges = [["".join(LETTER[b] for b in half) for half in pair] for pair in train_bpe(texts, vocab_size - 1)]
        return cls(our_spec(merges))

    @classmethod
    def load(cls, dir, template=None):
        """Read tokenizer.json of a model directory, and beside it EOS and the chat template.

        Raises UserError for a file that is missing or damaged."""
        dir = Path(dir)
        spec = read_json(dir / "tokenizer.json")
        config, named, model = (read_json(dir / name, {}) for name in
                                ("tokenizer_config.json", "special_tokens_map.json", "config.json"))
        told = config if "added_tokens_decoder" in config else config | named       # who tells EOS, as in transformers
        config = named | {key: told[key] for key in told if told[key] is not None}
        jinja = dir / "chat_template.jinja"
        try:
            check_file(jinja)
            if jinja.exists():
                config["chat_template"] = jinja.read_text(encoding="utf-8")
            if "eos_token" not in config and as_list(model.get("eos_token_id")):
                config["eos_token"] = library_engine(spec).id_to_token(as_list(model["eos_token_id"])[0])
            return cls(spec, config, template)
        except UserError as e:
            raise UserError(f"{dir}: {e}") from e
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as e:
            raise UserError(f"{dir / 'tokenizer.json'} or a file beside it is damaged: {e!r}") from e

    def save(self, dir):
        write_file(Path(dir) / "tokenizer.json", json.dumps(self.spec, ensure_ascii=False, indent=1))
        write_file(Path(dir) / "tokenizer_config.json", json.dumps(self.config, indent=1))

    def encode(self, text, start=True):
        """text -> ids, special tokens not added and not recognised. start=False: it goes on after another text."""
        if self.ours:
            return self.engine.encode_ordinary(text)
        return (self.engine if start else self.inner).encode(text, add_special_tokens=False).ids

    def encode_prompt(self, question):
        """The ids of `prompt` for a question. Special tokens count in the template, never in the question."""
        ids, fresh = [], self.prefix == "always" or self.template == "plain"    # plain: the text starts after BOS
        longest_first = "|".join(sorted(map(re.escape, self.special), key=len, reverse=True))
        (*head, last), (first, *tail) = (re.split(f"({longest_first})", half) for half in self.prompt)
        pieces = ["", *head, last + self.asked(question) + first, *tail, ""]
        for i, (before, piece, after) in enumerate(zip(pieces, pieces[1:], pieces[2:])):
            if i % 2:                                       # special tokens stand between texts
                ids.append(self.special[piece])
                continue
            piece = piece.lstrip() if before in self.swallow["rstrip"] else piece
            piece = piece.rstrip() if after in self.swallow["lstrip"] else piece
            if piece:
                ids += self.encode(piece, start=fresh or not ids)
        return ids

    def encode_answer(self, answer):
        """The ids of `answer` for an answer, EOS last; it follows a prompt."""
        return self.encode(self.answer_text(answer), start=False) + [self.eos_id]

    def prompt_text(self, question):
        """The text that the model is given for a question."""
        return self.asked(question).join(self.prompt)

    def asked(self, question):
        """The question as it stands in the prompt."""
        own = self.chat_template
        return question if own is None else chat.in_chat(own, self.named, self.prompt, question)

    def answer_text(self, answer):
        """The text of an answer, with what the template puts around it, without EOS."""
        return answer.join(self.answer)

    def beyond(self, n):
        """A token with an id from n on that a text or the template can bring, None if there is none."""
        vocab = self.special if self.ours else self.engine.get_vocab()
        for token in sorted(token for token, i in vocab.items() if i >= n):
            if token in self.in_use or token not in self.special or vocab[token] in self.encode(token):
                return token
        return None

    def decode(self, ids):
        """ids -> text; ids of no token give none: a model's embedding may have room for more."""
        if not self.ours:
            return self.engine.decode(ids, skip_special_tokens=False)
        return self.engine.decode([i for i in ids if i < self.vocab_size])

    def offsets(self, text):
        """text -> (ids, [(start, end)]): which characters each token covers. The text goes on after a prompt."""
        if not self.ours:
            encoding = self.inner.encode(text, add_special_tokens=False)
            return encoding.ids, encoding.offsets
        ids = self.encode(text)
        char_of = [i for i, c in enumerate(text) for _ in c.encode()] + [len(text)]
        ends = list(itertools.accumulate(len(self.engine.decode_single_token_bytes(i)) for i in ids))
        return ids, [(char_of[start], char_of[end - 1] + 1) for start, end in zip([0, *ends], ends)]
