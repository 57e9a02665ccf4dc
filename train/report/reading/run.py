"""A run in the form that reports use: the files of the run, and the values that are derived from these files."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from train.report.reading.find import RunFiles, find_run
from train.report.reading.metrics import Metrics, Series, read_metrics
from train.report.reading.record import Record, read_record

LOSS = "loss/train/total"
EVALUATIONS = "metrics/eval/"
EVAL_LOSS = f"{EVALUATIONS}LanguageCrossEntropy"
_SILENT = 600.0
"""A run is no longer reported as running if there is no new line for this number of seconds and for 20 times the usual
interval between lines."""


@dataclass(frozen=True, kw_only=True)
class Run:
    files: RunFiles
    name: str
    metrics: Metrics
    record: Record
    state: str
    """running, finished, stopped, failed, or silent. `silent` means that there has been no new line for a long time,
    and that the record has no end line."""
    age: float
    """Seconds since the last line was written."""

    @property
    def last_step(self) -> int:
        return int(self.metrics.steps[-1]) if self.metrics.steps.size else 0

    @property
    def max_steps(self) -> int | None:
        steps = self.record.start.get("max_batches")
        return steps if isinstance(steps, int) else None

    @property
    def planned_gib(self) -> float | None:
        """The planned peak memory of a GPU. None on a CPU, where the measured peak includes the whole process."""
        planned = self.record.start.get("planned_memory_bytes")
        if not isinstance(planned, int | float) or self.record.start.get("device") == "CPU":
            return None
        return planned / 2**30

    @property
    def stages(self) -> list[tuple[str, int]]:
        """Name and first step (counted from 0) of each stage."""
        stages = self.record.start.get("stages")
        planned = [each for each in stages if isinstance(each, dict)] if isinstance(stages, list) else []
        found = [(str(each.get("name", "")), each["first"]) for each in planned if isinstance(each.get("first"), int)]
        begun = [(str(each.values.get("name", "")), each.batch) for each in self.record.events("stage")]
        return found or list(dict.fromkeys(begun))

    def hours(self, times: np.ndarray) -> np.ndarray:
        """Convert Unix seconds to hours since the start of the run, excluding the time between a stop and a resume."""
        if not self.metrics.times.size:
            return np.zeros_like(times)
        passed = times - self._began
        for last, again in self._pauses:
            passed = passed - np.clip(times - last, 0, max(0.0, again - last))
        return np.maximum(passed, 0) / 3600

    @property
    def _began(self) -> float:
        starts = [each.time for each in self.record.starts if each.time is not None]
        return min([float(self.metrics.times[0]), *starts[:1]])

    @property
    def _pauses(self) -> list[tuple[float, float]]:
        """For each restart, the interval from the last log line before the restart to the restart itself."""
        starts = [each.time for each in self.record.starts[1:] if each.time is not None]
        if not starts:
            return self.metrics.pauses
        seen = np.sort(np.concatenate([self.metrics.times, np.array([last for last, _ in self.metrics.pauses])]))
        before = [(seen[seen <= start], start) for start in starts]
        return [(float(lines[-1]), start) for lines, start in before if lines.size]


def read_run(path: Path, now: float | None = None) -> Run:
    """Read a run. now: the current time in Unix seconds, which decides whether the run is reported as running. Raises
    ConfigError if the path contains no readable run."""
    files = find_run(path)
    metrics, record = read_metrics(files.metrics), read_record(files.record)
    metrics.series.update(_evaluations(metrics, record))
    age = max(0.0, (time.time() if now is None else now) - _newest(files, metrics, record))
    return Run(
        files=files,
        name=_name(files, record),
        metrics=metrics,
        record=record,
        state=_state(metrics, record, age),
        age=age,
    )


def read_config(run: Run) -> dict[str, Any]:
    """Return the resolved config of the newest start, or config.yaml of the save folder if the record contains no
    config."""
    config = run.record.start.get("config")
    if isinstance(config, dict):
        return config
    if run.files.config is None:
        return {}
    try:
        found = yaml.safe_load(run.files.config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _evaluations(metrics: Metrics, record: Record) -> dict[str, Series]:
    """Return the evaluations in record.jsonl, if the metrics contain none, because earlier versions of this code did
    not log evaluations as metrics."""
    if metrics.matching(EVALUATIONS):
        return {}
    columns: dict[str, dict[int, float]] = {}
    for each in record.evaluations:
        if not each.superseded:
            for name, value in each.values["eval"].items():
                if isinstance(value, int | float):
                    columns.setdefault(f"{EVALUATIONS}{name}", {})[each.batch] = value
    return {
        name: Series(steps=np.array(sorted(values)), values=np.array([values[step] for step in sorted(values)]))
        for name, values in columns.items()
    }


def _newest(files: RunFiles, metrics: Metrics, record: Record) -> float:
    """Return the time of the last line in Unix seconds, or the modification time of the file if the file has no
    lines."""
    times = [each.time for each in record.entries[-1:] if each.time is not None]
    return max([*metrics.times[-1:].tolist(), *times], default=files.metrics.stat().st_mtime)


def _state(metrics: Metrics, record: Record, age: float) -> str:
    if record.end is not None:
        return str(record.end.values.get("outcome", "finished"))
    usual = float(np.median(np.diff(metrics.times[-200:]))) if metrics.times.size > 2 else 0.0
    return "running" if age < max(_SILENT, 20 * usual) else "silent"


def _name(files: RunFiles, record: Record) -> str:
    name = record.start.get("run_name")
    if isinstance(name, str) and name:
        return name
    folder = files.folder.absolute()
    return folder.parent.name if folder.name == "checkpoints" else folder.name
