"""Durations in Composer's format (`10ba`, `500tok`, `2ep`, `0.1dur`), converted to batches before the Trainer starts.

The Trainer only receives durations in batches. For the Trainer, the whole run is one epoch, because the order of rows
is planned over the whole run (see data/mixing/mixture.py) instead of for each epoch.
"""

import math
import re
from dataclasses import dataclass, replace

from data.base.paths import shown

_UNITS = ("ba", "tok", "ep", "dur")
DURATION_PATTERN = rf"(\d+(?:\.\d+)?)({'|'.join(_UNITS)})"
_DURATION = re.compile(DURATION_PATTERN)
WALL_TIME_PATTERN = r"(?=\d)(\d+d)?(\d+h)?(\d+m)?(\d+s)?"


def parse_duration(text: str) -> tuple[float, str]:
    """Parse a duration: `"2ep"` -> (2.0, "ep"). Raises ValueError unless the text is a number followed by a unit."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"is {text!r}, but a duration must be a number and a unit ({', '.join(_UNITS)}), such as 10ba")
    value, unit = float(match[1]), match[2]
    if not math.isfinite(value):
        raise ValueError(f"is {shown(text)}, which is too long")
    if unit in ("ba", "tok") and value != int(value):
        raise ValueError(f"is {text!r}, but a duration in {unit} must be an integer")
    return value, unit


def in_unit_of(total: str, text: str) -> float | None:
    """The duration as a number in the unit of `total`; None if the units differ. A duration in `dur` is a fraction of
    `total`."""
    (length, unit), (whole, unit_of_total) = parse_duration(text), parse_duration(total)
    if unit == "dur":
        return length * whole
    return length if unit == unit_of_total else None


def parse_wall_time(text: str) -> int:
    """Parse a time: `"3h50m"` -> 13800 seconds. Raises ValueError for an invalid or empty time."""
    match = re.fullmatch(WALL_TIME_PATTERN, text.strip())
    if match is None:
        raise ValueError(
            f"is {shown(text)}, but a time must be given in days, hours, minutes or seconds, or a combination of "
            "these, such as 3h50m or 1d12h"
        )
    seconds = sum(
        int(part[:-1]) * size for part, size in zip(match.groups(), (86400, 3600, 60, 1), strict=True) if part
    )
    if not seconds:
        raise ValueError(f"is {text!r}, but it must be longer than 0")
    return seconds


def format_seconds(seconds: float) -> str:
    """Format a number of seconds: `8.1s`, `42s`, `4m05s`, `3h12m`, `2d03h`."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f}s"
    whole = round(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days}d{hours % 24:02}h"
    if hours:
        return f"{hours}h{minutes % 60:02}m"
    return f"{minutes}m{whole % 60:02}s" if minutes else f"{whole}s"


@dataclass(frozen=True, kw_only=True)
class Clock:
    """The sizes that are needed to convert durations to batches."""

    tokens_per_batch: int
    """Token positions in a global batch: rows x max_seq_len, including padding. The Trainer counts tokens in the same
    way."""
    rows_per_batch: int
    rows_per_epoch: int
    max_batches: int | None = None
    """The run's length in batches, needed for durations in `dur`; None if the length is not known yet."""
    counts_epochs: bool = False
    """Whether the run's length is specified in epochs. The length then also determines how often rows are repeated."""

    def until(self, max_duration: str, *, batch: int = 0, rows: int = 0) -> "Clock":
        """A copy of this clock for a run of length max_duration that has drawn `rows` rows before batch `batch`.

        The rows drawn so far are counted exactly, even if earlier batches had different sizes.
        """
        value, unit = parse_duration(max_duration)
        if unit == "tok":
            left = int(value) - rows * (self.tokens_per_batch // self.rows_per_batch)
            length = batch + max(math.ceil(left / self.tokens_per_batch), 0)
        elif unit == "ep":
            left = round(value * self.rows_per_epoch, 6) - rows
            length = batch + max(math.ceil(left / self.rows_per_batch), 0)
        else:
            length = self.batches(max_duration)
        return replace(self, max_batches=length, counts_epochs=unit == "ep")

    def batches(self, text: str) -> int:
        """Number of batches in the duration, rounded up.

        `ep` counts epochs over the rows. If an epoch ends inside a batch, the duration includes that batch.
        """
        value, unit = parse_duration(text)
        if unit == "ba":
            return int(value)
        if unit == "tok":
            return math.ceil(int(value) / self.tokens_per_batch)
        if unit == "ep":
            return math.ceil(round(value * self.rows_per_epoch, 6) / self.rows_per_batch)
        if self.max_batches is None:
            raise ValueError(f"is {text!r}, but dur is a fraction of max_duration itself: use ba, tok or ep")
        return math.ceil(round(value * self.max_batches, 6))
