"""Read metrics.jsonl into one series per metric. If steps were repeated after a resume, only their newer values are
kept."""

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.base.errors import os_errors_named

_NOT_FINITE = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


@dataclass(frozen=True, kw_only=True)
class Series:
    """The values of one metric: the last logged value of each step."""

    steps: np.ndarray
    """int64 [N], ascending."""
    values: np.ndarray
    """float64 [N]; NaN and infinities as they were logged."""

    @property
    def last(self) -> float:
        return float(self.values[-1])


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """All metrics of a run."""

    steps: np.ndarray
    """int64 [N]: steps with at least one metric, ascending."""
    tokens: np.ndarray
    """int64 [N]: tokens processed in training up to the end of the step, including padding."""
    times: np.ndarray
    """float64 [N]: the Unix time, in seconds, of each step."""
    series: dict[str, Series]
    pauses: list[tuple[float, float]]
    """The Unix times, in seconds, of the last line before each resume and of the first line after it."""
    unreadable: int
    """Number of unreadable lines. An incomplete last line, which is still being written, is not counted."""

    def last(self, name: str) -> float | None:
        """Return the newest value, or None for a metric that was never logged."""
        return self.series[name].last if name in self.series else None

    def matching(self, prefix: str, suffix: str = "") -> dict[str, Series]:
        """Return the series whose names have this prefix and suffix, by the part of the name between prefix and
        suffix."""
        length, end = len(prefix), -len(suffix) or None
        return {
            name[length:end]: series
            for name, series in self.series.items()
            if name.startswith(prefix) and name.endswith(suffix) and len(name) > length + len(suffix)
        }


@dataclass
class _Column:
    steps: array = field(default_factory=lambda: array("q"))
    values: array = field(default_factory=lambda: array("d"))

    def put(self, step: int, value: float) -> None:
        if self.steps and self.steps[-1] == step:
            self.values[-1] = value
        else:
            self.steps.append(step)
            self.values.append(value)

    def cut(self, step: int) -> None:
        """Remove the values of all later steps."""
        while self.steps and self.steps[-1] > step:
            self.steps.pop()
            self.values.pop()


def read_metrics(path: Path) -> Metrics:
    """Read the file. Unreadable lines are counted. Raises ConfigError if the file cannot be read."""
    tokens, times, columns, pauses = _Column(), _Column(), dict[str, _Column](), list[tuple[float, float]]()
    newest, unreadable = float("nan"), 0
    with os_errors_named(path), path.open("rb") as file:
        for line in json_lines(file):
            if line is None or not _is_step(line):
                unreadable += 1
                continue
            step, time = line["batch"], float(line["time"])
            if times.steps and step < times.steps[-1]:
                pauses.append((newest, time))
                for column in (tokens, times, *columns.values()):
                    column.cut(step)
            newest = time
            if not times.steps or times.steps[-1] != step:
                times.put(step, time)
            # If a run ended within this step, the resumed run logs the step again, with the complete number of tokens.
            tokens.put(step, line["tok"])
            for name, value in line["metrics"].items():
                number = _NOT_FINITE.get(value) if isinstance(value, str) else value
                if isinstance(number, int | float):
                    columns.setdefault(name, _Column()).put(step, number)
    return Metrics(
        steps=np.asarray(times.steps, dtype=np.int64),
        tokens=np.asarray(tokens.values).astype(np.int64),
        times=np.asarray(times.values, dtype=np.float64),
        series={name: _series(column) for name, column in columns.items() if column.steps},
        pauses=pauses,
        unreadable=unreadable,
    )


def json_lines(file: Any) -> Iterator[dict[str, Any] | None]:
    """Yield the object of each line, or None for an unreadable line. An incomplete last line, which is still being
    written, is skipped."""
    for line in file:
        if not line.endswith(b"\n"):
            try:
                value = json.loads(line)
            except ValueError:
                return
        else:
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
        yield value if isinstance(value, dict) else None


def _is_step(line: dict[str, Any]) -> bool:
    return (
        isinstance(line.get("batch"), int)
        and isinstance(line.get("time"), int | float)
        and isinstance(line.get("tok"), int)
        and isinstance(line.get("metrics"), dict)
    )


def _series(column: _Column) -> Series:
    return Series(steps=np.asarray(column.steps, dtype=np.int64), values=np.asarray(column.values, dtype=np.float64))
