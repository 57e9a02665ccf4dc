"""Long series are reduced to short ones that keep their extremes."""

import numpy as np
import pytest

from train.report.reading.metrics import Series
from train.report.reading.thinning import chosen, thin


def series(values: np.ndarray) -> Series:
    return Series(steps=np.arange(1, len(values) + 1) * 3, values=values)


@pytest.mark.parametrize("count", [501, 1000, 60_001])
def test_a_thinned_line_keeps_minima_and_maxima(count: int) -> None:
    values = np.random.normal(size=count)
    values[count // 3] = 1000.0
    thinned = thin(series(values), 500)
    assert len(thinned["b"]) == len(thinned["lo"]) == len(thinned["hi"]) == 500
    ends = [0, *(step // 3 for step in thinned["b"])]
    assert ends[-1] == count
    for start, end, mean, low, high in zip(
        ends[:-1], ends[1:], *(thinned[key] for key in ("v", "lo", "hi")), strict=True
    ):
        bucket = values[start:end]
        assert (mean, low, high) == pytest.approx([bucket.mean(), bucket.min(), bucket.max()], rel=1e-4, abs=1e-4)


def test_a_short_line_stays_as_it_is() -> None:
    assert thin(series(np.array([1.0, 2.5, np.nan]))) == {"b": [3, 6, 9], "v": [1.0, 2.5, None]}


def test_values_that_are_not_finite_do_not_hide_the_others() -> None:
    values = np.ones(1000)
    values[::2] = np.inf
    values[:10] = np.nan
    thinned = thin(series(values), 100)
    assert thinned["v"] == [None, *[1.0] * 99]
    assert thinned["hi"] == [None, *[1.0] * 99]


def test_chosen_measurements_have_the_first_and_the_last() -> None:
    picked = chosen(range(1000), 60)
    assert (len(picked), picked[0], picked[-1]) == (60, 0, 999)
    assert chosen(range(3), 60) == [0, 1, 2]
