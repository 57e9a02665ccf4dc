"""Parse `split`, which selects splits, and slices of splits, in the syntax of the `datasets` library:
`train[:90%]+test[10:20]`."""

import re
from dataclasses import dataclass

from data.base.errors import ConfigError

_BOUND = r"-?\d+(?:_\d+)*%?"
_PART = re.compile(rf"(?P<name>[^\[\]+:]+?)\s*(?:\[(?P<start>{_BOUND})?:(?P<end>{_BOUND})?\])?")


@dataclass(frozen=True, kw_only=True)
class SplitPart:
    """A split, or a slice of its rows."""

    name: str
    start: int | None = None
    end: int | None = None
    """Bounds in rows, as in a Python slice: negative bounds count from the end, and None means no bound."""
    percent: bool = False
    """Whether the bounds are percentages of the split's rows."""

    @property
    def is_slice(self) -> bool:
        return self.start is not None or self.end is not None

    def bounds(self, n_rows: int) -> tuple[int, int]:
        """The range of rows for a split of `n_rows` rows: the index of the first row, and the index after the last row.

        Percentages are rounded to the nearest row, as in `datasets`.
        """
        start, end = (self._row(bound, n_rows) for bound in (self.start, self.end))
        start, end = 0 if start is None else start, n_rows if end is None else end
        return min(start, end), end

    def _row(self, bound: int | None, n_rows: int) -> int | None:
        if bound is None:
            return None
        row = round(bound * n_rows / 100.0) if self.percent else bound
        return min(max(n_rows + row, 0) if row < 0 else row, n_rows)


def parse_split(split: str) -> list[SplitPart]:
    """The parts of the split, in order. Raises ConfigError for an invalid split."""
    return [_parse(text.strip(), split) for text in split.split("+")]


def _parse(text: str, split: str) -> SplitPart:
    found = _PART.fullmatch(text)
    if found is None or not text.isprintable():
        raise ConfigError(
            f"is {split!r}, but {text!r} is not a split or a slice of a split: use a form such as train, train[:90%], "
            "train[1000:2000], train[-5%:] or train+validation (percentages must be integers)",
            key="split",
        )
    given = [found[key] for key in ("start", "end") if found[key]]
    percent = [bound.endswith("%") for bound in given]
    if len(set(percent)) > 1:
        raise ConfigError(
            f"is {split!r}, but one bound of {text!r} is in percent and the other is in rows: use the same unit "
            "for both",
            key="split",
        )
    start, end = (int(found[key].rstrip("%")) if found[key] else None for key in ("start", "end"))
    if any(percent) and max(abs(start or 0), abs(end or 0)) > 100:
        raise ConfigError(f"is {split!r}, but a bound of {text!r} is above 100%", key="split")
    if end == 0 or (start is not None and end is not None and (start < 0) == (end < 0) and start >= end):
        raise ConfigError(f"is {split!r}, but {text!r} contains no rows: its end must be after its start", key="split")
    return SplitPart(name=found["name"], start=start, end=end, percent=any(percent))
