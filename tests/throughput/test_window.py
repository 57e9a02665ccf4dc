"""Throughput over a window, without warm-up, and the remaining time."""

import pytest

from train.throughput.window import Interruptions, Progress, Window


def progress(batches: int) -> Progress:
    return Progress(batches=batches, tokens=100 * batches, real_tokens=80 * batches, trained_tokens=10 * batches)


def test_the_warm_up_is_excluded_and_old_steps_leave_the_window() -> None:
    window, seconds, speeds = Window(3), 0.0, []
    for batch, took in enumerate((50.0, 20.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0), 1):
        seconds += took
        window.add(seconds, progress(batch))
        speeds.append(window.per_second())
    assert speeds[:2] == [{}, {}]
    assert speeds[2] == {"batches": 0.5, "tokens": 50, "real_tokens": 40, "trained_tokens": 5}
    assert [speed["batches"] for speed in speeds[3:]] == pytest.approx([0.5, 0.5, 3 / 5, 3 / 4, 1])


def test_interruptions_are_spread_over_the_batches_between_them() -> None:
    found = Interruptions()
    # 9 s before the first step; 20 s after every 10th batch.
    for batch in range(1, 36):
        found.add(batch, 9.0 + 20 * ((batch - 1) // 10))
        assert found.per_batch == pytest.approx(0 if batch <= 10 else 2)
