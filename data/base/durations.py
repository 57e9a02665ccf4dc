"""Durations as Composer writes them (`10ba`, `500tok`, `2ep`, `0.1dur`), turned into batches before the Trainer starts.

Everything the Trainer is told is in batches: one epoch of its clock is the whole run, because the order of rows is
planned over the whole run (see data/mixing/mixture.py) and not epoch by epoch.
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
    """`"2ep"` -> (2.0, "ep"). Raises ValueError for what is not a number and a unit."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"is {text!r}, but a duration is a number and a unit ({', '.join(_UNITS)}), such as 10ba")
    value, unit = float(match[1]), match[2]
    if not math.isfinite(value):
        raise ValueError(f"is {shown(text)}, which is too long")
    if unit in ("ba", "tok") and value != int(value):
        raise ValueError(f"is {text!r}, but {unit} counts whole ones")
    return value, unit


def in_unit_of(total: str, text: str) -> float | None:
    """The duration in the unit of `total`, of which `dur` is a part; None where it has another unit."""
    (length, unit), (whole, unit_of_total) = parse_duration(text), parse_duration(total)
    if unit == "dur":
        return length * whole
    return length if unit == unit_of_total else None


def parse_wall_time(text: str) -> int:
    """`"3h50m"` -> 13800 seconds. Raises ValueError for what is no time, or none at all."""
    match = re.fullmatch(WALL_TIME_PATTERN, text.strip())
    if match is None:
        raise ValueError(f"is {shown(text)}, but a time is days, hours, minutes and seconds, such as 3h50m or 1d12h")
    seconds = sum(
        int(part[:-1]) * size for part, size in zip(match.groups(), (86400, 3600, 60, 1), strict=True) if part
    )
    if not seconds:
        raise ValueError(f"is {text!r}, but it must be longer than 0")
    return seconds


def format_seconds(seconds: float) -> str:
    """`8.1s`, `42s`, `4m05s`, `3h12m`, `2d03h`."""
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
    """What a duration is measured against."""

    tokens_per_batch: int
    """Positions of a global batch: rows x max_seq_len, padding included, as the Trainer's clock counts."""
    rows_per_batch: int
    rows_per_epoch: int
    max_batches: int | None = None
    """The run's length, once it is known: what `dur` is a part of."""
    counts_passes: bool = False
    """Whether that length was given in passes, and so says how often rows are repeated."""

    def until(self, max_duration: str, *, batch: int = 0, rows: int = 0) -> "Clock":
        """This clock for a run that lasts so long in all, and has given so many rows by that batch.

        Those rows count as what they are, also where the batches before had other sizes.
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
        return replace(self, max_batches=length, counts_passes=unit == "ep")

    def batches(self, text: str) -> int:
        """Batches in the duration, rounded up: at least as long as what was asked for.

        `ep` counts passes over the rows; a pass that ends inside a batch ends with that batch.
        """
        value, unit = parse_duration(text)
        if unit == "ba":
            return int(value)
        if unit == "tok":
            return math.ceil(int(value) / self.tokens_per_batch)
        if unit == "ep":
            return math.ceil(round(value * self.rows_per_epoch, 6) / self.rows_per_batch)
        if self.max_batches is None:
            raise ValueError(f"is {text!r}, but dur is a part of max_duration, so max_duration itself cannot be in dur")
        return math.ceil(round(value * self.max_batches, 6))
