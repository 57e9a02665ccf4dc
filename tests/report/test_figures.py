"""Key figures, warnings, and differences between configs."""

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.report_runs import START, Shape, write_run
from train.report.configs import differences, flat
from train.report.figures import alarms, key_figures, short
from train.report.reading.metrics import Metrics, Series
from train.report.reading.run import EVAL_LOSS, LOSS, Run, read_run


@pytest.fixture
def calm(tmp_path: Path) -> Run:
    """Return a run without warnings."""
    run = read_run(write_run(tmp_path, Shape(steps=60, outcome="finished", resumed=False)))
    series = {**run.metrics.series, "experts/dead": Series(steps=np.array([60]), values=np.array([0.0]))}
    (tmp_path / "record.jsonl").unlink()
    quiet = Run(**{**vars(run), "record": read_run(tmp_path).record})
    return with_series(quiet, series)


def with_series(run: Run, series: dict[str, Series]) -> Run:
    return Run(**{**vars(run), "metrics": Metrics(**{**vars(run.metrics), "series": series})})


def test_a_normal_run_has_no_warnings(calm: Run) -> None:
    assert alarms(calm) == []


def test_a_rising_evaluation_loss_is_a_warning(calm: Run) -> None:
    rising = Series(steps=np.array([10, 20, 30]), values=np.array([3.0, 2.0, 2.5]))
    changed = with_series(calm, {**calm.metrics.series, EVAL_LOSS: rising})
    assert alarms(changed) == ["The evaluation loss has risen from 2 at step 20 to 2.5."]


def test_a_last_loss_that_is_not_finite_is_a_warning(calm: Run) -> None:
    lost = Series(steps=np.array([1, 2]), values=np.array([3.0, np.nan]))
    assert alarms(with_series(calm, {**calm.metrics.series, LOSS: lost})) == ["The last loss is not finite."]


@pytest.mark.parametrize(
    ("outcome", "begin"), [("failed", "The run has failed: "), (None, "The last line of the logs is 41d16h")]
)
def test_a_failed_end_is_a_warning(outcome: str | None, begin: str, tmp_path: Path) -> None:
    write_run(tmp_path, Shape(steps=60, outcome=outcome, resumed=False))
    assert alarms(read_run(tmp_path, START + 90 + 3_600_000))[0].startswith(begin)


def test_figures_of_a_run_on_a_cpu_have_no_planned_memory(tmp_path: Path) -> None:
    write_run(tmp_path, Shape(steps=60, resumed=False))
    assert ("peak memory", "63.3 GiB", "planned 63.3 GiB") in list(key_figures(read_run(tmp_path)))
    record = (tmp_path / "record.jsonl").read_text().replace("NVIDIA H200", "CPU")
    (tmp_path / "record.jsonl").write_text(record)
    assert ("peak memory", "63.3 GiB", "") in list(key_figures(read_run(tmp_path)))


@pytest.mark.parametrize(
    ("number", "expected"),
    [(0, "0"), (999, "999"), (9_999, "9,999"), (12_345, "12.35k"), (131_596_523_520, "131.6B"), (2.5, "2.5")],
)
def test_short_numbers(number: float, expected: str) -> None:
    assert short(number) == expected


def test_configs_differ_in_the_keys_that_one_has_or_that_have_other_values() -> None:
    first = {"model": {"d": 1, "betas": [0.9, 0.95]}, "stages": [{"name": "a"}, {"name": "b"}], "same": None}
    second = {"model": {"d": 2, "betas": [0.9, 0.99]}, "stages": [{"name": "a"}], "same": None}
    assert flat(first)["stages[1].name"] == "b"
    assert differences([first, second]) == [
        ["model.d", "1", "2"],
        ["model.betas", "[0.9, 0.95]", "[0.9, 0.99]"],
        ["stages[1].name", "b", "(absent)"],
    ]
