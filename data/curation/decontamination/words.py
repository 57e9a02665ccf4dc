"""The words of a text without case and punctuation, and hashes of n-grams of words.

Case, punctuation and whitespace are ignored as in appendix C of the GPT-3 paper (Brown et al., 2020). The step
near_duplicates has another definition of a word, because it does not follow that paper.
"""

import re
import unicodedata
from functools import cache
from typing import NamedTuple

import numpy as np

from data.curation.base.scripts import WITHOUT_SPACES

_PUNCTUATION = re.compile(r"[^\w\s]|_")
_UNSPACED = re.compile(f"([{WITHOUT_SPACES}])")
_BLOCK = 1 << 16
"""Words that are hashed at a time, so that memory does not grow with the length of the document."""
_BASE = 0x9E3779B97F4A7C15
"""An odd number, which therefore has an inverse modulo 2**64."""
_SPACE = ord(" ")


def normalized(text: str) -> bytes:
    """The words of the text in UTF-8, separated by single spaces.

    The text is converted to NFKC and case-folded. All characters except letters, digits and whitespace are removed, so
    that `don't` and `dont` are the same word. Letters of scripts without spaces count as words.
    """
    if text.isascii():
        return b" ".join(text.encode().translate(*_ascii_tables()).split())
    text = _PUNCTUATION.sub("", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(_UNSPACED.sub(r" \1 ", text).split()).encode()


@cache
def _ascii_tables() -> tuple[bytes, bytes]:
    """The arguments of bytes.translate with which an ASCII text is normalized."""
    space = {byte for byte in range(128) if chr(byte).isspace()}
    table = bytes(_SPACE if byte in space else ord(chr(byte).lower()) for byte in range(128)) + bytes(range(128, 256))
    return table, bytes(byte for byte in range(128) if not chr(byte).isalnum() and byte not in space)


class NGrams(NamedTuple):
    """The n-grams of a normalized text, in their order. Arrays have one item per n-gram."""

    hashes: np.ndarray
    """uint64. Different n-grams can have the same hash."""
    starts: np.ndarray
    """Offsets in the normalized text, in bytes."""
    ends: np.ndarray


def bounds_of_words(words: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The offsets in bytes at which words of a normalized text start and end."""
    if not words:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    spaces = np.flatnonzero(np.frombuffer(words, np.uint8) == _SPACE)
    return np.concatenate([[0], spaces + 1]), np.concatenate([spaces, [len(words)]])


def n_grams(words: bytes, n: int) -> NGrams:
    """The n-grams of a normalized text.

    The hash of the bytes c_0 ... c_k is the sum of (c_i + 1) * BASE**i modulo 2**64. The hashes of all n-grams are
    differences of cumulative sums.
    """
    starts, ends = bounds_of_words(words)
    starts, ends = starts[: max(len(starts) - n + 1, 0)], ends[n - 1 :]
    content = np.frombuffer(words, np.uint8)
    blocks = [
        _hashes(content, starts[first : first + _BLOCK], ends[first : first + _BLOCK])
        for first in range(0, len(starts), _BLOCK)
    ]
    return NGrams(np.concatenate(blocks) if blocks else np.empty(0, np.uint64), starts, ends)


def _hashes(content: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    first, last = int(starts[0]), int(ends[-1])
    powers, inverses = _powers(1 << (last - first).bit_length())
    sums = np.zeros(last - first + 1, np.uint64)
    np.cumsum((content[first:last] + np.uint64(1)) * powers[: last - first], out=sums[1:])
    return (sums[ends - first] - sums[starts - first]) * inverses[starts - first]


_kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}


def _powers(length: int) -> tuple[np.ndarray, np.ndarray]:
    """The powers of BASE and of its inverse modulo 2**64, with exponents from 0 to at least `length - 1`."""
    if max(_kept, default=0) < length:
        _kept.clear()
        exponents = [np.full(length, value, np.uint64) for value in (_BASE, pow(_BASE, -1, 1 << 64))]
        for array in exponents:
            array[0] = 1
        _kept[length] = (np.cumprod(exponents[0]), np.cumprod(exponents[1]))
    return next(iter(_kept.values()))
