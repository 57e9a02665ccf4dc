"""A recipe: how a source's chunks become samples. Its tasks go to workers, their parts and tallies come back."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from data.examples.examples import Reading
from data.mds.writer import Sample
from data.sources.source import Source


@dataclass
class Tally:
    """What became of examples and tokens. Can be pickled; tallies add up in any order."""

    examples_kept: int = 0
    examples_truncated: int = 0
    """Of the kept ones: they lost their end."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Reason -> examples that were read, but do not fit."""
    tokens_in: int = 0
    tokens_kept: int = 0
    tokens_truncated: int = 0
    tokens_dropped: int = 0
    trained_tokens: int = 0
    """Tokens of rows that some position predicts: the first of a document, or of its piece, is nobody's label."""
    rows: int = 0
    padding: int = 0
    document_lengths: Counter[str] = field(default_factory=Counter)
    """n, a power of two -> documents of n to 2n - 1 tokens, before any is cut."""

    def merge(self, other: "Tally") -> None:
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(value, Counter):
                mine.update(value)
            else:
                setattr(self, name, mine + value)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A chunk with what is known when it is given out."""

    chunk: Any
    form: str | None
    first_place: str
    """Of the source's first valid row, whose form it is."""
    check_only: bool = False
    """Bad rows were found: only look for more."""


@dataclass(kw_only=True)
class Part:
    """What a chunk gave."""

    size: int
    """The chunk's, in the source's unit."""
    reading: Reading
    tally: Tally
    content: Any = None
    """What a window is made of once it is `received()`, with its `weight`; None: nothing."""


class Recipe(Protocol):
    """How chunks become samples: read in workers, written window by window."""

    @property
    def source(self) -> Source: ...

    def columns(self, form: str) -> dict[str, str]: ...

    def read(self, task: Task) -> Part: ...

    def samples(self, window: list[Any], tally: Tally) -> Iterator[Sample]: ...
