"""What was found wrong in a source, collected so that all of it is reported together."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.base.errors import DataError, setting
from data.base.paths import is_unicode
from data.base.redaction import redacted

SHOWN = 20
"""Kinds of problems that are written out; the others are counted."""
PLACES = 3
"""Places that are named of each."""

LISTED = 10
"""Names or kinds that are written out in a line; the others are counted."""


@dataclass(frozen=True)
class Problem:
    kind: str
    """What it is counted under, such as `response is empty`."""
    text: str
    """What is wrong and what to do, to stand after the place."""


@dataclass
class Reading:
    """What a part of a source had in it. Parts are merged in their order; can be pickled."""

    form: str | None = None
    """Of the first valid row, or given beforehand; a row of another form is a problem."""
    n_valid: int = 0
    """Rows that are examples of this form."""
    n_dropped: int = 0
    """Rows for which preprocessing_fn returned None."""
    bad_rows: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    """Kind of problem -> how many."""
    first: dict[str, str] = field(default_factory=dict)
    """Kind of problem -> text of the first one."""
    places: dict[str, list[str]] = field(default_factory=dict)
    """Kind of problem -> the first places."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Column that is not used -> rows that have it."""
    place: str = ""
    """Of the example that read_examples gave last."""
    first_place: str = ""
    """Of the first valid row."""

    def add(self, place: str, problems: Sequence[Problem]) -> None:
        """Counts one row with all that is wrong with it."""
        self.bad_rows += 1
        for problem in problems:
            self._count(problem, [place], 1)

    def merge(self, other: "Reading") -> None:
        """Adds what was found after this. Where each found another form, the later rows are the problem."""
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
        self.place = other.place or self.place
        for kind, count in other.kinds.items():
            self._count(Problem(kind, other.first[kind]), other.places[kind], count)
        self.ignored.update(other.ignored)

    def _count(self, problem: Problem, places: Sequence[str], count: int) -> None:
        """places: the first of `count` rows."""
        self.kinds[problem.kind] += count
        self.first.setdefault(problem.kind, problem.text)
        named = self.places.setdefault(problem.kind, [])
        named += places[: PLACES - len(named)]

    def lines(self) -> list[str]:
        """A line for each kind of problem: the first one with its place, how many more, and the next places."""
        kinds = list(self.kinds)
        lines = [f"{self.places[kind][0]}: {self.first[kind]}{self._more(kind)}" for kind in kinds[:SHOWN]]
        if len(kinds) > SHOWN:
            rest = sum(self.kinds[kind] for kind in kinds[SHOWN:])
            lines.append(f"... and {_count(rest, 'problem')} of {_count(len(kinds) - SHOWN, 'more kind')}")
        return lines

    def _more(self, kind: str) -> str:
        more, places = self.kinds[kind] - 1, self.places[kind][1:]
        such_as = f", such as {' and '.join(places)}" if len(places) < more else f": {' and '.join(places)}"
        return f" (and {_count(more, 'more row')}{such_as if places else ''})" if more else ""

    def raise_if_any(self) -> None:
        """DataError with a line for each kind of problem."""
        if self.bad_rows:
            raise DataError("\n  ".join([f"{_count(self.bad_rows, 'row')} cannot be used:", *self.lines()]))


def other_form(form: str, reading: Reading) -> Problem:
    since = f" (since {reading.first_place})" if reading.first_place else ""
    text = (
        f"has {form}, but the rows before it have {reading.form}{since}, and all rows of a source have one form: "
        f"make it a stream of its own, or bring both into one form with a {setting('preprocessing_fn')}"
    )
    return Problem("another form than the rows before", text)


def describe(value: Any) -> str:
    """The value's beginning, and its type where that does not show: `12 (int)`, `'Once upon a ti...'`."""
    value = redacted(value) if isinstance(value, str) else value
    text = repr(value[:50]) if isinstance(value, str | bytes | list | np.ndarray) else redacted(repr(value))
    short = text if len(text) <= 40 else text[:40] + "..."
    return short if isinstance(value, str) or value is None else f"{short} ({type(value).__name__})"


def check_text(value: Any, name: str, fix: str = "fill it in, or remove the row") -> Problem | None:
    """What is wrong with a value that must be text with something in it. `name` is what it is called."""
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
        text = f"{name} is {describe(value)}, but it has half of a \\ud800-style pair, which is no character: remove it"
        return Problem(f"{kind} has a lone surrogate", text)
    return None


def listed(items: Iterable[str], most: int = LISTED) -> str:
    """`a, b, c`; of more than `most` those, and how many there are besides."""
    every = list(items)
    more = f" and {len(every) - most:,} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more


def listed_clauses(clauses: Sequence[str], most: int = LISTED) -> str:
    """`a is x; b is y (and 3 more)`: as `listed`, of what may have commas in it."""
    more = f" (and {len(clauses) - most:,} more)" if len(clauses) > most else ""
    return "; ".join(clauses[:most]) + more


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"
