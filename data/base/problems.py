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
"""Problems that are written out; the others are counted."""

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
    shown: list[str] = field(default_factory=list)
    """The first problems, each with its place."""
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
            self.kinds[problem.kind] += 1
            if len(self.shown) < SHOWN:
                self.shown.append(f"{place}: {problem.text}")

    def merge(self, other: "Reading") -> None:
        """Adds what was found after this. Where each found another form, the later rows are the problem."""
        valid = other.n_valid
        if self.form is None:
            self.form, self.first_place = other.form, other.first_place
        elif other.form not in (None, self.form) and valid:
            problem = other_form(str(other.form), self)
            rest = f" (and so for {_count(valid - 1, 'more row')})" if valid > 1 else ""
            self.bad_rows += valid
            self.kinds[problem.kind] += valid
            self.shown.append(f"{other.first_place}: {problem.text}{rest}")
            valid = 0
        self.n_valid += valid
        self.bad_rows += other.bad_rows
        self.n_dropped += other.n_dropped
        self.first_place = self.first_place or other.first_place
        self.place = other.place or self.place
        self.kinds.update(other.kinds)
        self.ignored.update(other.ignored)
        self.shown = (self.shown + other.shown)[:SHOWN]

    def raise_if_any(self) -> None:
        """DataError with the first problems, each with its place, and a count by kind."""
        if not self.bad_rows:
            return
        total = self.kinds.total()
        lines = [f"{_count(self.bad_rows, 'row')} cannot be used:", *self.shown]
        if total > len(self.shown):
            lines.append(f"... and {total - len(self.shown)} more")
        if total > 1:
            lines.append("by kind: " + listed(f"{kind} ({count})" for kind, count in self.kinds.most_common()))
        raise DataError("\n  ".join(lines))


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
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
