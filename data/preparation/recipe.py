"""A recipe defines how chunks of a source become samples. Workers get tasks and return parts with tallies."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from data.examples.examples import Reading
from data.mds.writer import Sample
from data.sources.source import Source


@dataclass
class Tally:
    """Statistics of examples and tokens. Can be pickled; tallies can be merged in any order."""

    examples_kept: int = 0
    examples_truncated: int = 0
    """Kept examples whose end was cut off."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Reason -> valid examples that were dropped because they do not fit."""
    tokens_in: int = 0
    tokens_kept: int = 0
    tokens_truncated: int = 0
    tokens_dropped: int = 0
    trained_tokens: int = 0
    """Trained tokens. The first token of a document, or of its piece, is never a label, so it does not count."""
    rows: int = 0
    padding: int = 0
    document_lengths: Counter[str] = field(default_factory=Counter)
    """n, a power of two -> number of documents with n to 2n - 1 tokens, before splitting."""

    def merge(self, other: "Tally") -> None:
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(value, Counter):
                mine.update(value)
            else:
                setattr(self, name, mine + value)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A chunk with the information available when it is submitted."""

    chunk: Any
    form: str | None
    first_place: str
    """Place of the source's first valid row, which defined the form."""
    check_only: bool = False
    """Bad rows were found, so the chunk is only checked for more."""


@dataclass(kw_only=True)
class Part:
    """The result of a chunk."""

    size: int
    """Size of the chunk in units of the source."""
    reading: Reading
    tally: Tally
    content: Any = None
    """Content for a window: an object with `received()` and, after that, `weight`; None: no content."""


class Recipe(Protocol):
    """How chunks become samples: read in workers, and written window by window in the parent."""

    @property
    def source(self) -> Source: ...

    def columns(self, form: str) -> dict[str, str]: ...

    def read(self, task: Task) -> Part: ...

    def samples(self, window: list[Any], tally: Tally) -> Iterator[Sample]: ...
