"""Words of any script: how texts are compared.

Two texts are compared in Unicode's form NFKC, in which a letter and its accent are one character, however they were
written, and full-width letters are the plain ones. Chinese, Japanese, Korean, Thai, Lao, Khmer, Burmese and Tibetan
write no blanks between words, or none before particles: there each character is a word.
"""

import functools
import unicodedata

import regex

UNSPACED = "".join(rf"\p{{{script}}}" for script in ("Han", "Hiragana", "Katakana", "Hangul", "Thai", "Lao", "Khmer",
                                                     "Myanmar", "Tibetan"))
UNSPACED_LETTER = regex.compile(f"[{UNSPACED}]")
WORD = regex.compile(rf"[{UNSPACED}]\p{{M}}*|[[\p{{L}}\p{{N}}\p{{M}}]--[{UNSPACED}]]+", regex.V1)
BEYOND_ASCII = regex.compile(r"[[\p{L}\p{N}\p{M}]--[\x00-\x7f]]", regex.V1)


def normal(text):
    """A text as it is compared."""
    return text if text.isascii() else unicodedata.normalize("NFKC", text)


def words(text):
    """words("Writers in Москва, 北京") -> ["writers", "in", "москва", "北", "京"]"""
    return WORD.findall(normal(text).casefold())


class Words:
    """A tokenizer for rouge_score, which by itself knows the letters a to z alone. English words are stemmed as there.

    Words(PorterStemmer().stem).tokenize("Writers in Москва, 北京") -> ["writer", "in", "москва", "北", "京"]"""

    def __init__(self, stem):
        self.stem = stem

    def tokenize(self, text):
        return [self.stem(word) if word.isascii() and len(word) > 3 else word for word in words(text)]


def states(text, facts):
    """True if the text contains every fact as whole words: states("Born in Lima.", ["Lima"]) -> True."""
    return all(fact_pattern(normal(fact)).search(normal(text)) for fact in facts)


@functools.lru_cache(2**16)
def fact_pattern(fact):
    """Finds a fact as whole words in a text, in whichever of Unicode's forms the text is: "Lima" in "in Lima.", not in
    "Limassol"; "北京" in "王伟在北京出生。"."""
    forms = dict.fromkeys([fact, *(unicodedata.normalize(form, fact) for form in ("NFC", "NFD", "NFKC", "NFKD"))])
    return regex.compile(whole_words(f"(?:{'|'.join(map(regex.escape, forms))})", fact), regex.V1)


def whole_words(pattern, fact):
    """The pattern of a fact, bounded so that no word goes on before or behind it; where its script has no blanks, any
    character may follow. Needs regex.V1."""
    letter = rf"[\w--[{UNSPACED}]]"                         # what a word goes on with
    before, after = f"(?<!{letter})", f"(?!{letter})"
    if UNSPACED_LETTER.match(fact[:1]):
        before = ""
    if UNSPACED_LETTER.match(fact[-1:]):
        after = r"(?!\p{M})"                                # a vowel sign belongs to the letter before it
    return before + pattern + after
