"""Statistics that show unusual documents: base64, tables of numbers, repeated lines, or texts with a wrong encoding.

They are similar to the quality and repetition rules of Gopher (Rae et al. 2021, arXiv 2112.11446, table A1), but use
tokens instead of words. They therefore also apply to languages without spaces, and to code.
"""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from data.base.hashing import hash_ngrams
from data.inspection.documents import Document
from data.inspection.survey import hash_ids
from data.tokenization.tokenizer import Tokenizer

STATISTICS = ("characters per token", "share of non-letters", "repeated 5-grams", "share of the most common token")
NGRAM = 5
LEAST_TOKENS = 10
"""Number of tokens below which a document has no score, because its statistics would be extreme by chance."""
_LEAST_SCALE = (0.15, 0.03, 0.03, 0.03)
"""Lower limits of the spread of each statistic. The first is in octaves, and the others are differences of shares."""
_LETTER, _SPACE, _LAST = 1, 2, 0x20000


def special_ids(tokenizer: Tokenizer) -> Mapping[int, str]:
    """The names of the special tokens by their ids. A special token without a name is shown as its id in < >."""
    named = {token_id: name for name, token_id in tokenizer.special_tokens.items()}
    others = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, *tokenizer.stop_token_ids)
    return {token_id: f"<{token_id}>" for token_id in others} | named


def statistics(ids: np.ndarray, text: str) -> tuple[float, ...]:
    """The value of each of STATISTICS for the ids of a document without special tokens, and its text."""
    codes = np.frombuffer(text.encode("utf-32-le", "replace"), dtype=np.uint32)
    kinds = _kinds()[np.minimum(codes, _LAST)]
    n_visible = np.count_nonzero(kinds != _SPACE)
    _, counts = np.unique(ids, return_counts=True)
    return (
        len(text) / len(ids),
        1 - np.count_nonzero(kinds == _LETTER) / n_visible if n_visible else 0.0,
        repeated(ids),
        counts.max() / len(ids),
    )


def repeated(ids: np.ndarray) -> float:
    """The share of the n-grams that are equal to an earlier n-gram: 1 - distinct / total."""
    if len(ids) < NGRAM:
        return 0.0
    grams = hash_ngrams(ids.astype(np.uint64), NGRAM)
    return 1 - len(np.unique(grams)) / len(grams)


@cache
def _kinds() -> np.ndarray:
    """For each Unicode character below _LAST: a letter (or a mark that belongs to letters), a space, or another
    character (0). The last entry is for all characters above, which are Chinese characters except for a few tags."""
    kinds = np.zeros(_LAST + 1, dtype=np.uint8)
    for code in range(_LAST):
        category = unicodedata.category(chr(code))
        if category[0] in "LM":
            kinds[code] = _LETTER
        elif category[0] == "Z" or chr(code).isspace():
            kinds[code] = _SPACE
    kinds[_LAST] = _LETTER
    return kinds


@dataclass(frozen=True, eq=False, kw_only=True)
class Texts:
    """Statistics of the texts of a source. The arrays have one entry per document."""

    places: np.ndarray
    """int64, [n, 2]: the row in which the document begins, and its number in the row."""
    tokens: np.ndarray
    """int64, [n]: number of tokens, including special tokens."""
    hashes: np.ndarray
    characters: int
    """Number of characters of all documents, without special tokens."""
    plain_tokens: int
    """Number of tokens of all documents, without special tokens."""
    values: np.ndarray
    """float64, [n, len(STATISTICS)]; NaN for a document with fewer than LEAST_TOKENS tokens."""

    def longest(self, count: int) -> np.ndarray:
        """The indices of the longest documents, without exact copies of an earlier document."""
        return _first_distinct(np.argsort(-self.tokens, kind="stable"), self.hashes, count)

    def oddest(self, count: int) -> np.ndarray:
        """The indices of the documents with the highest scores, without exact copies of an earlier document."""
        if not np.isfinite(self.values).any():
            return np.empty(0, dtype=np.int64)
        highest = np.nan_to_num(self.deviations().max(axis=1), nan=-1.0)
        order = np.argsort(-highest, kind="stable")
        return _first_distinct(order[highest[order] > 0], self.hashes, count)

    def medians(self) -> np.ndarray:
        """float64, [len(STATISTICS)]: the median of each statistic."""
        return np.nanmedian(self.values, axis=0)

    def deviations(self) -> np.ndarray:
        """[n, len(STATISTICS)]: the distance of each value from the median, divided by the spread of the statistic,
        which is 1.4826 times the median distance (the standard deviation of normally distributed values).

        Characters per token are compared by their logarithm and in both directions. The other statistics only count if
        they are above the median.
        """
        values = self.values.copy()
        values[:, 0] = np.log2(np.maximum(values[:, 0], 0.01))
        distances = values - np.nanmedian(values, axis=0)
        scale = np.maximum(1.4826 * np.nanmedian(np.abs(distances), axis=0), _LEAST_SCALE)
        distances[:, 0] = np.abs(distances[:, 0])
        return distances / scale


def _first_distinct(order: np.ndarray, hashes: np.ndarray, count: int) -> np.ndarray:
    """The first `count` indices in this order whose documents are not copies of an earlier one in this order."""
    chosen: dict[int, int] = {}
    for index in order.tolist():
        if len(chosen) == count:
            break
        chosen.setdefault(int(hashes[index]), index)
    return np.array([*chosen.values()], dtype=np.int64)


@dataclass(eq=False)
class TextCollector:
    """Collects the statistics of documents. Its method `add` can be passed to survey_rows."""

    tokenizer: Tokenizer
    _places: list[tuple[int, int]] = field(default_factory=list)
    _tokens: list[int] = field(default_factory=list)
    _hashes: list[int] = field(default_factory=list)
    _values: list[tuple[float, ...]] = field(default_factory=list)
    _characters: int = 0
    _plain_tokens: int = 0

    def __post_init__(self) -> None:
        special = special_ids(self.tokenizer)
        self._is_plain = np.ones(max(self.tokenizer.vocab_size, *(token_id + 1 for token_id in special)), dtype=bool)
        self._is_plain[[*special]] = False

    def add(self, document: Document) -> None:
        ids = document.ids[self._is_plain[document.ids]]
        text = self.tokenizer.decode(ids)
        self._characters += len(text)
        self._plain_tokens += len(ids)
        self._places.append(document.place)
        self._tokens.append(len(document.ids))
        self._hashes.append(hash_ids(document.ids))
        is_long = len(ids) >= LEAST_TOKENS
        self._values.append(statistics(ids, text) if is_long else (float("nan"),) * len(STATISTICS))

    def texts(self) -> Texts:
        return Texts(
            places=np.array(self._places, dtype=np.int64).reshape(-1, 2),
            tokens=np.array(self._tokens, dtype=np.int64),
            hashes=np.array(self._hashes, dtype=np.uint64),
            characters=self._characters,
            plain_tokens=self._plain_tokens,
            values=np.array(self._values, dtype=np.float64).reshape(-1, len(STATISTICS)),
        )
