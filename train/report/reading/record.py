"""Read record.jsonl: the starts, events, checkpoints, evaluations and samples of a run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.base.errors import os_errors_named
from data.secrets.redaction import redacted
from train.report.reading.metrics import json_lines


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of record.jsonl."""

    batch: int
    time: float | None
    """Unix time in seconds; None in records of earlier versions."""
    values: Mapping[str, Any]
    """All values of the line, without secrets."""
    superseded: bool
    """Whether a later start resumed from a checkpoint before this batch."""

    @property
    def event(self) -> str | None:
        event = self.values.get("event")
        return event if isinstance(event, str) else None

    @property
    def message(self) -> str:
        """The message, joined into one line."""
        return "; ".join(line.strip() for line in str(self.values.get("message", "")).splitlines())


@dataclass(frozen=True, kw_only=True)
class Record:
    """All lines of a run, in the order in which they were written."""

    entries: list[Entry]
    unreadable: int = 0

    def events(self, *kinds: str) -> list[Entry]:
        """Return the events of these kinds, or all events if `kinds` is empty."""
        return [each for each in self.entries if each.event is not None and (not kinds or each.event in kinds)]

    @property
    def starts(self) -> list[Entry]:
        return self.events("start")

    @property
    def start(self) -> Mapping[str, Any]:
        """The newest start line; empty if there is none."""
        return self.starts[-1].values if self.starts else {}

    @property
    def end(self) -> Entry | None:
        """The end line of the newest start; None if there is no such line."""
        for each in reversed(self.entries):
            if each.event == "end":
                return each
            if each.event == "start":
                return None
        return None

    @property
    def samples(self) -> list[Entry]:
        return [each for each in self.entries if isinstance(each.values.get("samples"), list)]

    @property
    def evaluations(self) -> list[Entry]:
        return [each for each in self.entries if isinstance(each.values.get("eval"), dict)]


def read_record(path: Path | None) -> Record:
    """Read the file. The record is empty if path is None. Raises ConfigError if the file cannot be read."""
    if path is None:
        return Record(entries=[])
    with os_errors_named(path), path.open("rb") as file:
        lines = list(json_lines(file))
    good = [line for line in lines if line is not None and isinstance(line.get("batch"), int)]
    return Record(entries=[*_entries(good)], unreadable=len(lines) - len(good))


def _entries(lines: list[dict[str, Any]]) -> Iterator[Entry]:
    """Yield the entries. The lines are read from last to first, because `superseded` depends on later starts."""
    entries, resumed_at = list[Entry](), float("inf")
    for line in reversed(lines):
        time = line.get("time")
        superseded = line["batch"] > resumed_at
        entries.append(
            Entry(
                batch=line["batch"],
                time=float(time) if isinstance(time, int | float) else None,
                values=_without_secrets(line),
                superseded=superseded,
            )
        )
        if line.get("event") == "start":
            resumed_at = min(resumed_at, line["batch"])
    yield from reversed(entries)


def _without_secrets(value: Any) -> Any:
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {redacted(str(key)): _without_secrets(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_secrets(each) for each in value]
    return value
