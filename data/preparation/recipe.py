"""A recipe defines how chunks of a source become samples. Workers receive tasks, and return parts with their
statistics."""

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
    """Number of examples that were kept, but truncated at the end."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Reason -> number of valid examples that were dropped because they do not fit into a row."""
    tokens_in: int = 0
    tokens_kept: int = 0
    tokens_truncated: int = 0
    tokens_dropped: int = 0
    trained_tokens: int = 0
    """Number of trained tokens. The first token of a document, or of a piece of it, is never a label, so it does not
    count."""
    rows: int = 0
    padding: int = 0
    document_lengths: Counter[str] = field(default_factory=Counter)
    """A power of two n -> number of documents that had n to 2n - 1 tokens before they were split."""

    def merge(self, other: "Tally") -> None:
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(value, Counter):
                mine.update(value)
            else:
                setattr(self, name, mine + value)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A chunk, with what was known about the source when the chunk was submitted."""

    chunk: Any
    form: str | None
    first_place: str
    """Place of the source's first valid row, which defined the form."""
    check_only: bool = False
    """True if bad rows were found before, so that this chunk is only checked for more bad rows."""


@dataclass(kw_only=True)
class Part:
    """The result of a chunk."""

    size: int
    """Size of the chunk in units of the source."""
    reading: Reading
    tally: Tally
    content: Any = None
    """The chunk's content for a window; None if it has no content. The parent calls `received()`, whose result has a
    `weight`."""


class Recipe(Protocol):
    """How chunks become samples. `read` is called in workers, and `samples` in the parent, once per window."""

    @property
    def source(self) -> Source: ...

    def columns(self, form: str) -> dict[str, str]: ...

    def read(self, task: Task) -> Part: ...

    def samples(self, window: list[Any], tally: Tally) -> Iterator[Sample]: ...
