"""The planned shares of the streams over a run, as curves to draw."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data.mixing.row_plan import RowPlan

_POINTS = 400
"""Approximate number of points in a curve."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Curves:
    """The planned shares and lr_scale over the run, as points to connect by lines. At a boundary between two stages,
    there are two points: the end of the first stage and the start of the second."""

    batches: np.ndarray
    """float64 [P], ascending. The value n is the start of batch n."""
    shares_PS: np.ndarray
    """Each stream's planned share of the tokens."""
    lr_scale: np.ndarray
    """[P]"""


def curves(plan: RowPlan, total: int) -> Curves:
    """The curves of a run of `total` batches."""
    stages = enumerate(plan.stages())
    points = [point for n, (_, first, end) in stages for point in _stage_points(plan, n, first, end, total)]
    batches, shares, scales = zip(*points, strict=True)
    return Curves(batches=np.array(batches), shares_PS=np.stack(shares), lr_scale=np.array(scales))


def _stage_points(
    plan: RowPlan, number: int, first: int, end: int | None, total: int
) -> Iterator[tuple[float, np.ndarray, float]]:
    """Yield batch, shares and lr_scale at the start of the stage, in the middle of some of its batches, and at its
    end."""
    stop = total if end is None else min(end, total)
    if first >= stop:
        return
    start, last = plan.start_of(number), plan.end_of(number)
    yield first, start.tokens, start.lr_scale
    count = max(_POINTS * (stop - first) // total, 2)
    for batch in np.unique(np.linspace(first, stop - 1, count).astype(int)).tolist():
        after = last.lr_scale if batch + 1 == end else plan.lr_scale(batch + 1)
        # The proportions of a batch are those that are planned for the middle of the batch.
        yield batch + 0.5, plan.token_shares(batch), (plan.lr_scale(batch) + after) / 2
    if stop == end:
        yield stop, last.tokens, last.lr_scale
    else:
        yield stop, plan.token_shares(stop - 1), plan.lr_scale(stop)
