"""A recipe defines how chunks of a source are converted to samples of an MDS folder. A worker receives a Task, and
returns a Part with statistics."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from data.examples.examples import Reading
from data.mds.writer import Sample
from data.sources.source import Source


@dataclass
class Tally:
    """Statistics of examples and tokens. A Tally can be pickled; the result of merging tallies does not depend on their
    order."""

    examples_kept: int = 0
    examples_truncated: int = 0
    """Number of examples that were truncated at the end instead of dropped."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Reason -> number of valid examples that were dropped because they do not fit into a row."""
    tokens_in: int = 0
    tokens_kept: int = 0
    tokens_truncated: int = 0
    tokens_dropped: int = 0
    trained_tokens: int = 0
    """Number of trained tokens. The first token of a document, or of a piece of a split document, is never a label, so
    this token does not count."""
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
    """A chunk, and the information about the source that was available when the chunk was submitted."""

    chunk: Any
    form: str | None
    first_place: str
    """Location of the source's first valid row, which defined the form."""
    check_only: bool = False
    """True if earlier chunks contained invalid rows. This chunk is then only checked for more invalid rows."""


@dataclass(kw_only=True)
class Part:
    """The result of a chunk."""

    size: int
    """Size of the chunk in units of the source."""
    reading: Reading
    tally: Tally
    content: Any = None
    """The chunk's content for a window; None if the chunk has no content. The parent process calls `received()` on the
    content; the result has a `weight`."""


class Recipe(Protocol):
    """Defines how chunks are converted to samples. `read` is called in workers. `samples` is called once per window, in
    the parent process."""

    @property
    def source(self) -> Source: ...

    def columns(self, form: str) -> dict[str, str]: ...

    def read(self, task: Task) -> Part: ...

    def samples(self, window: list[Any], tally: Tally) -> Iterator[Sample]: ...
