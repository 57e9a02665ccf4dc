"""An index of the questions of evaluation sets, with which the questions in a document are found.

The index consists of NumPy arrays. It is built on the driver, and executors map its files into memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.curation.decontamination.questions import EvalSet, Question
from data.curation.decontamination.words import NGrams, bounds_of_words, n_grams, normalized

_ENDS = (ord(" "), ord("\n"))


class Found(NamedTuple):
    """A question that occurs in a document."""

    question: int
    """Number of the question in the index."""
    overlap: int
    """Number of different n-grams of the question that occur in the document; 0 if only the short question occurs."""
    share: float
    """The overlap divided by the number of different n-grams of the question; 1 for a short question."""
    words: str
    """Words of the document that occur in the question: the first n-gram, or the short question."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """Questions are numbered in the order of the evaluation sets. Entries are sorted by their hashes."""

    texts: np.ndarray
    """uint8: the normalized texts of all questions, each followed by a line end."""
    hashes: np.ndarray
    """uint64: the hash of each n-gram of each question."""
    questions: np.ndarray
    """int32: the question of each n-gram."""
    starts: np.ndarray
    """int64: the offset of each n-gram in `texts`."""
    counts: np.ndarray
    """int32: number of different n-grams of each question."""
    short_hashes: np.ndarray
    """uint64: the hash of the first words of each short question."""
    short_questions: np.ndarray
    """int32: the number of each short question."""
    short_bounds: np.ndarray
    """int64, [n, 2]: the start and end of each short question in `texts`."""
    sizes: np.ndarray
    """int32, [2]: the number of words in an n-gram, and the smallest number of words of a short question."""

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for field in fields(self):
            np.save(folder / f"{field.name}.npy", getattr(self, field.name))

    @staticmethod
    def load(folder: Path) -> "Index":
        """The saved index. Its arrays are mapped into memory, so that the processes of a machine share them."""
        return Index(**{field.name: _mapped(folder / f"{field.name}.npy") for field in fields(Index)})

    def findable(self) -> np.ndarray:
        """bool, [questions]: whether the question has an n-gram or is a short question. Other questions have too few
        words, and cannot be found."""
        found = np.asarray(self.counts) > 0
        found[self.short_questions] = True
        return found

    def find(self, text: str, min_overlap: float = 0.0) -> list[Found]:
        """The questions that occur in the text, in their order.

        A question is found if its short text occurs as a whole, or if at least one of its n-grams, and at least the
        share `min_overlap` of its different n-grams, occur in the text.
        """
        words = normalized(text)
        n, n_short = map(int, self.sizes)
        grams: dict[int, dict[int, bytes]] = {}
        for entry, start, end in _matches(self.hashes, n_grams(words, n)):
            question, gram = int(self.questions[entry]), words[start:end]
            if entry not in grams.get(question, ()) and self._is_at(gram, int(self.starts[entry])):
                grams.setdefault(question, {})[entry] = gram
        found: dict[int, Found] = {}
        for question, entries in grams.items():
            share = len(entries) / int(self.counts[question])
            if share >= min_overlap:
                found[question] = Found(question, len(entries), share, next(iter(entries.values())).decode())
        if len(self.short_hashes):
            for question, gram in self._short(words, n_grams(words, n_short)):
                found.setdefault(question, Found(question, 0, 1.0, gram.decode()))
        return [found[question] for question in sorted(found)]

    def _short(self, words: bytes, first_words: NGrams) -> Iterator[tuple[int, bytes]]:
        for entry, start, _ in _matches(self.short_hashes, first_words):
            first, last = map(int, self.short_bounds[entry])
            gram = words[start : start + last - first]
            ends_here = start + len(gram) == len(words) or words[start + len(gram)] in _ENDS
            if len(gram) == last - first and ends_here and self._is_at(gram, first):
                yield int(self.short_questions[entry]), gram

    def _is_at(self, gram: bytes, offset: int) -> bool:
        """Whether these words are at this offset of `texts`. Different words can have the same hash."""
        end = offset + len(gram)
        return self.texts[offset:end].tobytes() == gram and int(self.texts[end]) in _ENDS


def _mapped(file: Path) -> np.ndarray:
    try:
        return np.asarray(np.load(file, mmap_mode="r"))  # np.memmap is a slower subclass
    except ValueError:  # an empty array cannot be mapped
        return np.load(file)


def _matches(hashes: np.ndarray, grams: NGrams) -> Iterator[tuple[int, int, int]]:
    """The entries whose hash is that of one of the n-grams: the index of the entry in `hashes`, which is sorted, and
    the start and end of the n-gram."""
    if not len(hashes):
        return
    first = np.searchsorted(hashes, grams.hashes)
    for hit in np.flatnonzero(hashes[np.minimum(first, len(hashes) - 1)] == grams.hashes):
        entry = int(first[hit])
        while entry < len(hashes) and hashes[entry] == grams.hashes[hit]:
            yield entry, int(grams.starts[hit]), int(grams.ends[hit])
            entry += 1


class _Builder:
    """Collects the entries of the index."""

    def __init__(self, n: int, n_short: int | None) -> None:
        """Questions from n_short to n - 1 words are short questions; None: there are no short questions."""
        self.n, self.n_short, self.size = n, n_short, 0
        self.texts: list[bytes] = []
        self.grams: list[tuple[np.ndarray, np.ndarray]] = []
        self.shorts: list[tuple[int, int, int, int]] = []
        """Hash, question, start, end."""

    def add(self, question: Question, common: set[bytes]) -> None:
        number = len(self.grams)
        hashes, starts, seen = [], [], set[bytes]()
        for text in dict.fromkeys(map(normalized, question.texts)):
            found = n_grams(text, self.n)
            for hash, start, end in zip(*found, strict=True):
                gram = text[start:end]
                if gram not in seen and gram not in common:
                    seen.add(gram)
                    hashes.append(hash)
                    starts.append(self.size + start)
            self._append(text)
        self.grams.append((np.array(hashes, np.uint64), np.array(starts, np.int64)))
        exact = normalized(question.exact)
        if self.n_short is not None and self.n_short <= len(bounds_of_words(exact)[0]) < self.n:
            self.shorts.append((int(n_grams(exact, self.n_short).hashes[0]), number, self.size, self.size + len(exact)))
            self._append(exact)

    def _append(self, text: bytes) -> None:
        self.texts.append(text + b"\n")
        self.size += len(text) + 1

    def build(self) -> Index:
        counts = np.array([len(hashes) for hashes, _ in self.grams], np.int32)
        hashes = np.concatenate([np.empty(0, np.uint64), *(hashes for hashes, _ in self.grams)])
        starts = np.concatenate([np.empty(0, np.int64), *(starts for _, starts in self.grams)])
        order = np.argsort(hashes, kind="stable")
        shorts = sorted(self.shorts)
        return Index(
            texts=np.frombuffer(b"".join(self.texts), np.uint8),
            hashes=hashes[order],
            questions=np.repeat(np.arange(len(counts), dtype=np.int32), counts)[order],
            starts=starts[order],
            counts=counts,
            short_hashes=np.array([short[0] for short in shorts], np.uint64),
            short_questions=np.array([short[1] for short in shorts], np.int32),
            short_bounds=np.array([short[2:] for short in shorts], np.int64).reshape(-1, 2),
            sizes=np.array([self.n, self.n_short or 1], np.int32),
        )


def build_index(sets: Sequence[EvalSet], n: int, n_short: int | None) -> Index:
    """The index of the n-grams of all questions, and of the short questions with n_short to n - 1 words. With None,
    there are no short questions."""
    builder = _Builder(n, n_short)
    for one in sets:
        common = {gram for text in one.common for gram in _grams_of(normalized(text), n)}
        for question in one.questions:
            builder.add(question, common)
    return builder.build()


def _grams_of(words: bytes, n: int) -> Iterator[bytes]:
    found = n_grams(words, n)
    for start, end in zip(found.starts, found.ends, strict=True):
        yield words[start:end]
