"""A recipe defines how chunks of a source are converted to samples of an MDS folder."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from data.base.problems import Place
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
    """A chunk, with the form of the source's first valid row."""

    chunk: Any
    form: str | None
    first_place: str
    """Location of the source's first valid row, which defined the form."""
    check_only: bool = False
    """True if invalid rows were found in earlier chunks. This chunk is then only checked for more invalid rows."""


class Content(Protocol):
    """The converted records of a chunk, as a worker sends them to the process that writes rows."""

    def received(self) -> Any:
        """The content in the process that writes rows. The result has a `weight` and `places_D2`."""
        ...


@dataclass(kw_only=True)
class Converted:
    """A converted chunk."""

    size: int
    """Size of the chunk in units of the source."""
    reading: Reading
    tally: Tally
    content: Content | None = None
    """None if the chunk has no content."""


class Recipe(Protocol):
    """Defines how chunks are converted to samples. `read` is called in workers. `samples` is called once per window, in
    the process that writes rows."""

    @property
    def source(self) -> Source: ...

    @property
    def preprocess(self) -> Callable[[Any], Any] | None: ...

    def columns(self, form: str) -> dict[str, str]: ...

    def read(self, task: Task) -> Converted: ...

    def samples(self, window: list[Any], tally: Tally) -> Iterator[tuple[Sample, np.ndarray]]:
        """Yield each sample with the numbers of its documents, counted from 0 in this window."""
        ...


def places_of(places: list[Place]) -> np.ndarray:
    """The index of the file and the position of each place, int64 of shape (D, 2)."""
    return np.array([(place.file, place.position) for place in places], dtype=np.int64).reshape(-1, 2)
