"""Reduce long series to as many points as a screen can show, keeping the minimum and maximum of each bucket."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from train.report.reading.metrics import Series

POINTS = 500
"""Maximum number of points of a line."""
MEASUREMENTS = 60
"""Maximum number of measurements in the heat maps of experts."""


def thin(series: Series, points: int = POINTS) -> dict[str, list[Any]]:
    """Reduce a series to buckets. `b`: the last step of each bucket. `v`: the mean of the finite values in each bucket,
    or null if no value is finite. `lo`, `hi`: minimum and maximum, present only if a bucket contains several values."""
    count = len(series.steps)
    edges = np.unique(np.linspace(0, count, min(points, count) + 1).astype(np.int64))
    finite = np.isfinite(series.values)
    starts, sizes = edges[:-1], np.add.reduceat(finite, edges[:-1], dtype=np.int64)
    sums = np.add.reduceat(np.where(finite, series.values, 0.0), starts)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums / sizes
    thinned = {"b": series.steps[edges[1:] - 1].tolist(), "v": rounded(means)}
    if count > len(starts):
        thinned["lo"] = rounded(np.minimum.reduceat(np.where(finite, series.values, np.inf), starts))
        thinned["hi"] = rounded(np.maximum.reduceat(np.where(finite, series.values, -np.inf), starts))
    return thinned


def rounded(values: np.ndarray, digits: int = 5) -> list[float | None]:
    """Round to significant digits. Non-finite values become null, because JSON does not support them."""
    return [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in values.tolist()]


def chosen(steps: Sequence[int], most: int = MEASUREMENTS) -> list[int]:
    """Return the indices of at most `most` evenly spaced steps, including the first and the last."""
    return sorted({int(index) for index in np.linspace(0, len(steps) - 1, min(most, len(steps)))})
