"""Strata of documents: by source, by file, or by ranges of a score."""

import math
import re
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pyspark.sql import Column

OTHER = "*"
"""The key for the strata that are not named."""
_RANGE = re.compile(r"(?P<min>[^.]\S*?)?\.\.(?P<max>\S+)?")


class ScoreRange(NamedTuple):
    """The values from `min` to below `max`."""

    text: str
    """As in the config, such as `0.5..0.8`, `..0.5` or `0.8..`."""
    min: float
    max: float


def parse_range(text: str) -> ScoreRange | None:
    """The range; None if the text is not a range."""
    found = _RANGE.fullmatch(text)
    if found is None:
        return None
    try:
        low, high = float(found["min"] or -math.inf), float(found["max"] or math.inf)
    except ValueError:
        return None
    return ScoreRange(text, low, high) if low < high else None


def overlapping(ranges: Iterable[ScoreRange]) -> tuple[ScoreRange, ScoreRange] | None:
    """Two ranges that overlap; None if there are none."""
    ordered = sorted(ranges, key=lambda one: (one.min, one.max))
    return next(((a, b) for a, b in pairwise(ordered) if b.min < a.max), None)


def stratum_of(by: str, ranges: Iterable[ScoreRange]) -> "Column":
    """The name of each document's stratum: its source, its file, or the range of its score. Documents without the
    score, or outside all ranges, are in the stratum OTHER."""
    from pyspark.sql import functions as F

    if by in ("source", "file"):
        return F.col(by)
    score = F.col("scores")[by]
    name = F.lit(OTHER)
    for one in ranges:
        # In Spark, NaN is greater than all numbers.
        inside = (score >= one.min) & (score < one.max) & ~F.isnan(score)
        name = F.when(inside, one.text).otherwise(name)
    return name
