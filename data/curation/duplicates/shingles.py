"""The words of a text, and the set of its word n-grams, called shingles (Broder 1997).

A word is a run of letters, digits, marks and underscores, after NFKC normalization and case folding. Each character of
a script that is written without spaces between words, such as Chinese, Japanese or Thai, is a word of its own. The
definition is the same for all languages and needs no model. Unlike in decontamination, `don't` is two words, because
words are found with one regular expression, which is faster than removing punctuation.
"""

import re
import unicodedata

import numpy as np
import xxhash

from data.base.hashing import hash_ngrams
from data.curation.base.scripts import WITHOUT_SPACES

_MARKS = "\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0670\u0900-\u0dff"
"""Combining accents, vowel signs of Hebrew and Arabic, and the scripts of India and Sri Lanka. \\w does not match
marks."""
_LETTERS = rf"[^\W{WITHOUT_SPACES}]"
_WORD = re.compile(rf"{_LETTERS}+(?:[{_MARKS}]+{_LETTERS}*)*|[{WITHOUT_SPACES}]")
_ASCII_WORD = re.compile(r"\w+", re.ASCII)
_CACHED = 1 << 20
"""Number of words whose hashes are kept in memory."""


class _WordHashes(dict[str, int]):
    def __missing__(self, word: str) -> int:
        if len(self) >= _CACHED:
            self.clear()
        value = self[word] = xxhash.xxh3_64_intdigest(word)
        return value


_hash_of = _WordHashes().__getitem__


def words(text: str) -> list[str]:
    """The words of a text in their order."""
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def shingles(text: str, n: int) -> np.ndarray:
    """The set of hashes of the text's n-grams of words: uint64, sorted and distinct.

    A text with fewer than n words has a single shingle, which consists of all its words. A text without words has no
    shingles.
    """
    found = words(text)
    if not found:
        return np.empty(0, dtype=np.uint64)
    hashes = np.fromiter(map(_hash_of, found), dtype=np.uint64, count=len(found))
    return np.unique(hash_ngrams(hashes, n))
