"""Reading log folders during a run, after a crash, and with missing files."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from data.base.errors import ConfigError
from tests.helpers.report_runs import START, Shape, write_run
from train.report.reading.find import find_run
from train.report.reading.metrics import Metrics, read_metrics
from train.report.reading.record import read_record
from train.report.reading.run import EVAL_LOSS, LOSS, read_config, read_run


def read(folder: Path, *lines: object) -> Metrics:
    texts = [line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines]
    (folder / "metrics.jsonl").write_text("".join(texts))
    return read_metrics(folder / "metrics.jsonl")


def step(batch: int, loss: object, time: float = 0.0) -> dict:
    return {"batch": batch, "time": START + time, "tok": batch * 10, "metrics": {"loss": loss}}


def test_steps_before_a_resume_are_dropped(tmp_path: Path) -> None:
    metrics = read(tmp_path, step(1, 5.0), step(2, 4.0), step(3, 3.0), step(2, 4.5, 60), step(3, 3.5, 61))
    assert metrics.series["loss"].steps.tolist() == [1, 2, 3]
    assert metrics.series["loss"].values.tolist() == [5.0, 4.5, 3.5]
    assert metrics.tokens.tolist() == [10, 20, 30]
    assert metrics.pauses == [(START, START + 60)]


def test_an_evaluation_belongs_to_its_step(tmp_path: Path) -> None:
    evaluation = {**step(2, 0.0), "metrics": {"metrics/eval/x": 7.0}}
    metrics = read(tmp_path, step(1, 5.0), step(2, 4.0), evaluation, step(3, 3.0))
    assert metrics.steps.tolist() == [1, 2, 3]
    assert metrics.series["metrics/eval/x"].steps.tolist() == [2]
    assert metrics.series["loss"].values.tolist() == [5.0, 4.0, 3.0]


def test_an_interrupted_step_is_taken_from_the_resumed_run(tmp_path: Path) -> None:
    metrics = read(tmp_path, step(1, 5.0), {**step(2, "nan"), "tok": 10}, step(2, 4.0))
    assert metrics.tokens.tolist() == [10, 20]
    assert metrics.series["loss"].values.tolist() == [5.0, 4.0]


@pytest.mark.parametrize(("text", "value"), [("nan", math.nan), ("inf", math.inf), ("-inf", -math.inf)])
def test_non_finite_numbers_are_read_from_text(text: str, value: float, tmp_path: Path) -> None:
    assert read(tmp_path, step(1, text)).series["loss"].last == pytest.approx(value, nan_ok=True)


def test_a_line_that_is_being_written_is_left_out_and_a_damaged_one_counted(tmp_path: Path) -> None:
    metrics = read(tmp_path, step(1, 5.0), "{no json\n", "[]\n", '{"batch": "2"}\n', step(2, 4.0), '{"batch": 3, "ti')
    assert metrics.steps.tolist() == [1, 2]
    assert metrics.unreadable == 3


def test_events_before_a_resume_are_superseded(tmp_path: Path) -> None:
    write_run(tmp_path, Shape(steps=400, saved_every=100))
    record = read_record(tmp_path / "record.jsonl")
    superseded = [entry for entry in record.entries if entry.superseded]
    assert {entry.batch for entry in superseded} == {310}
    assert [entry.batch for entry in record.starts] == [0, 300]


def test_secrets_are_hidden(tmp_path: Path) -> None:
    key = "hf_" + "a1B2c3D4e5" * 4
    (tmp_path / "record.jsonl").write_text(json.dumps({"batch": 1, "event": "start", "command": f"x hub_token={key}"}))
    assert read_record(tmp_path / "record.jsonl").start["command"] == "x hub_token=***"


def test_hours_without_a_process_do_not_count(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, Shape(seconds=9.0)))
    hours = run.hours(run.metrics.times)
    # 310 steps, a pause of an hour, and then the steps from 301 on again.
    assert hours[-1] == pytest.approx((310 + 100) * 9 / 3600)
    assert np.all(np.diff(hours) > 0)


@pytest.mark.parametrize(
    ("outcome", "later", "state"),
    [("finished", 1e6, "finished"), ("failed", 1e6, "failed"), (None, 5, "running"), (None, 1e6, "silent")],
)
def test_state_of_a_run(outcome: str | None, later: float, state: str, tmp_path: Path) -> None:
    write_run(tmp_path, Shape(steps=60, outcome=outcome, resumed=False))
    assert read_run(tmp_path, START + 60 * 1.5 + later).state == state


def test_a_run_without_a_record(tmp_path: Path) -> None:
    write_run(tmp_path / "mine" / "checkpoints", Shape(steps=60))
    (tmp_path / "mine" / "checkpoints" / "record.jsonl").unlink()
    (tmp_path / "mine" / "checkpoints" / "config.yaml").write_text("optimizer: {lr: 0.5}\n")
    run = read_run(tmp_path / "mine")
    assert (run.name, run.last_step, run.stages, run.max_steps) == ("mine", 60, [], None)
    assert read_config(run) == {"optimizer": {"lr": 0.5}}
    assert LOSS in run.metrics.series


def test_evaluations_are_taken_from_the_record_of_earlier_versions(tmp_path: Path) -> None:
    read(tmp_path, step(1, 5.0), step(2, 4.0))
    lines = [{"batch": batch, "eval": {"LanguageCrossEntropy": 3.0 - batch}} for batch in (1, 2)]
    (tmp_path / "record.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert read_run(tmp_path).metrics.series[EVAL_LOSS].values.tolist() == [2.0, 1.0]


def test_a_folder_of_several_runs_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name, Shape(steps=10, resumed=False))
    with pytest.raises(ConfigError, match=r"/a and .*/b: specify one of them"):
        find_run(tmp_path)


@pytest.mark.parametrize("name", ["", "checkpoints", "checkpoints/metrics.jsonl", "checkpoints/record.jsonl"])
def test_a_run_is_found(name: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "checkpoints", Shape(steps=10, resumed=False))
    assert find_run(tmp_path / name).folder == folder


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nothing", "does not exist"),
        ("a", "it contains the runs"),
        ("empty", "has no metrics.jsonl"),
        ("file", "is not the log"),
    ],
)
def test_a_path_without_a_run_is_refused(name: str, expected: str, tmp_path: Path) -> None:
    write_run(tmp_path / "a" / "b" / "c", Shape(steps=10, resumed=False))
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=f"{name}.*{expected}"):
        find_run(tmp_path / name)
