"""Problems found in a source, collected so that all of them are reported together."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.base.errors import DataError, setting
from data.base.paths import is_unicode
from data.secrets.redaction import redacted

SHOWN = 20
"""Maximum number of kinds of problems that are listed. Further kinds are only counted."""
PLACES = 3
"""Maximum number of locations that are listed for each kind."""

LISTED = 10
"""Maximum number of names that are listed in a line. Further names are only counted."""


@dataclass(frozen=True)
class Problem:
    kind: str
    """The name under which the problem is counted, such as `response is empty`."""
    text: str
    """The problem and a fix. In messages, this text is appended to the location of the row."""


class Place(NamedTuple):
    """The location of a record in a source. `str(place)` is the location as it is shown in messages."""

    file: int
    """Index of the file in the source's `inputs`."""
    position: int
    """For lines and text files: offset of the record's first byte in the decompressed file. For other formats: number
    of the record, from 0."""
    text: str
    """The complete location, such as `a.parquet row 3`; for a line, only the name of the file."""
    line: int | None = None
    """Number of the line, where the line at `start` has number 1. None if `text` is the complete location."""
    start: int = 0
    """Offset in bytes of the first line that the task reads."""
    path: str = ""
    """The local file in which the lines before `start` are counted; empty for a remote file."""

    def __str__(self) -> str:
        if self.line is None:
            return self.text
        if self.start and not self.path:
            return f"{self.text} (line at byte {self.position})"
        return f"{self.text}:{self.line + (_lines_before(self.path, self.start) if self.start else 0)}"


@cache
def _lines_before(path: str, stop: int) -> int:
    """Number of line ends in the first `stop` bytes of the file. Tasks do not count these lines, because the number is
    only needed for messages."""
    count = 0
    with Path(path).open("rb") as file:
        while stop > 0 and (block := file.read(min(stop, 1 << 20))):
            count += block.count(b"\n")
            stop -= len(block)
    return count


@dataclass
class Reading:
    """The result of reading a part of a source. Readings are merged in the order of the parts in the source. Can be
    pickled."""

    form: str | None = None
    """The form (see data/examples/forms.py) of the first valid row, or the form that the caller has set. A row of
    another form counts as a problem."""
    n_valid: int = 0
    """Number of rows that are valid examples of this form."""
    n_dropped: int = 0
    """Number of rows for which preprocessing_fn returned None."""
    bad_rows: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    """Kind of problem -> number of rows."""
    first: dict[str, str] = field(default_factory=dict)
    """Kind of problem -> text of its first problem."""
    places: dict[str, list[object]] = field(default_factory=dict)
    """Kind of problem -> the locations of the first rows with this problem."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Unused column -> number of rows that have it."""
    first_place: str = ""
    """Location of the first valid row."""

    def add(self, place: object, problems: Sequence[Problem]) -> None:
        """Count one invalid row, and all problems of this row."""
        self.bad_rows += 1
        for problem in problems:
            self._count(problem, [place], 1)

    def merge(self, other: "Reading") -> None:
        """Merge the reading of the next part of the source into this reading. If the forms of the two parts differ, all
        rows of the next part count as problems."""
        valid = other.n_valid
        if self.form is None:
            self.form, self.first_place = other.form, other.first_place
        elif other.form not in (None, self.form) and valid:
            self.bad_rows += valid
            self._count(other_form(str(other.form), self), [other.first_place], valid)
            valid = 0
        self.n_valid += valid
        self.bad_rows += other.bad_rows
        self.n_dropped += other.n_dropped
        self.first_place = self.first_place or other.first_place
        for kind, count in other.kinds.items():
            self._count(Problem(kind, other.first[kind]), other.places[kind], count)
        self.ignored.update(other.ignored)

    def _count(self, problem: Problem, places: Sequence[object], count: int) -> None:
        """Count `count` rows that have the problem. places: the locations of the first of these rows."""
        self.kinds[problem.kind] += count
        self.first.setdefault(problem.kind, problem.text)
        named = self.places.setdefault(problem.kind, [])
        named += places[: PLACES - len(named)]

    def lines(self) -> list[str]:
        """One line for each kind of problem: the first problem with its location, and the number and locations of the
        other problems."""
        kinds = list(self.kinds)
        lines = [f"{self.places[kind][0]}: {self.first[kind]}{self._more(kind)}" for kind in kinds[:SHOWN]]
        if len(kinds) > SHOWN:
            rest = sum(self.kinds[kind] for kind in kinds[SHOWN:])
            lines.append(f"... and {_count(rest, 'problem')} of {_count(len(kinds) - SHOWN, 'more kind')}")
        return lines

    def _more(self, kind: str) -> str:
        more, places = self.kinds[kind] - 1, [str(place) for place in self.places[kind][1:]]
        such_as = f", such as {' and '.join(places)}" if len(places) < more else f": {' and '.join(places)}"
        return f" (and {_count(more, 'more row')}{such_as if places else ''})" if more else ""

    def raise_if_any(self) -> None:
        """Raises DataError with one line for each kind of problem."""
        if self.bad_rows:
            raise DataError("\n  ".join([f"{_count(self.bad_rows, 'row')} cannot be used:", *self.lines()]))


def other_form(form: str, reading: Reading) -> Problem:
    since = f" (first: {reading.first_place})" if reading.first_place else ""
    text = (
        f"has {form}, but earlier rows have {reading.form}{since}, and all rows of a source must have the same "
        f"form: move the row to a separate stream, or convert the rows to one form with a {setting('preprocessing_fn')}"
    )
    return Problem("a form that differs from that of earlier rows", text)


def describe(value: Any) -> str:
    """The beginning of the value, and its type unless it is a string: `12 (int)`, `'Once upon a ti...'`."""
    value = redacted(value) if isinstance(value, str) else value
    text = repr(value[:50]) if isinstance(value, str | bytes | list | np.ndarray) else redacted(repr(value))
    short = text if len(text) <= 40 else text[:40] + "..."
    return short if isinstance(value, str) or value is None else f"{short} ({type(value).__name__})"


def check_text(value: Any, name: str, fix: str = "fill it in, or remove the row") -> Problem | None:
    """The problem with a value that must be a non-empty string, or None if the value is valid. `name` is shown as the
    value's name."""
    kind = name.rpartition(".")[2]
    if value is None:
        return Problem(f"{kind} is null", f"{name} is null, but it must be text: {fix}")
    if not isinstance(value, str):
        text = f"{name} is {describe(value)}, but it must be text in quotes"
        return Problem(f"{kind} is not text ({type(value).__name__})", text)
    if not value or value.isspace():
        defect = "is only whitespace" if value else "is empty"
        seen = f" ({describe(value)})" if value else ""
        return Problem(f"{kind} {defect}", f"{name} {defect}{seen}: {fix}")
    if not value.isascii() and not is_unicode(value):
        text = (
            f"{name} is {describe(value)}, but it contains a lone surrogate (such as \\ud800), which is not a valid "
            "character: remove it"
        )
        return Problem(f"{kind} has a lone surrogate", text)
    return None


def listed(items: Iterable[str], most: int = LISTED) -> str:
    """Join the items as `a, b, c`. If there are more than `most` items, only the first items and the number of the
    remaining items are shown."""
    every = list(items)
    more = f" and {len(every) - most:,} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more


def listed_clauses(clauses: Sequence[str], most: int = LISTED) -> str:
    """Join clauses as `a is x; b is y (and 3 more)`. Like `listed`, but for items that may contain commas."""
    more = f" (and {len(clauses) - most:,} more)" if len(clauses) > most else ""
    return "; ".join(clauses[:most]) + more


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"
