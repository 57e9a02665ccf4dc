"""Configs as flat mappings from keys to values, and differences between them: from the defaults, between the starts of
a run, and between runs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from data.config.sections import join
from train.report.reading.run import Run, read_config

ABSENT = "(absent)"


def flat(config: Any, key: str = "") -> dict[str, Any]:
    """Return the values by dotted key, as on the command line. A list that contains only plain values is one value."""
    if isinstance(config, Mapping) and config:
        return {name: value for part, each in config.items() for name, value in flat(each, join(key, part)).items()}
    if isinstance(config, list) and any(isinstance(each, dict | list) for each in config):
        return {name: value for n, each in enumerate(config) for name, value in flat(each, f"{key}[{n}]").items()}
    return {key: config}


def differences(configs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return a row for each key that differs, with its value in each config."""
    flats = [flat(config) for config in configs]
    keys = dict.fromkeys(key for each in flats for key in each if key)
    rows = [[key, *(shown(each[key]) if key in each else ABSENT for each in flats)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def between_starts(run: Run) -> Iterator[list[str]]:
    """Yield a row for each key that a later start of the run has changed: batch, key, value before, value after."""
    starts = [each for each in run.record.starts if isinstance(each.values.get("config"), dict)]
    for before, after in pairwise(starts):
        for key, was, now in differences([before.values["config"], after.values["config"]]):
            yield [f"{after.batch:,}", key, was, now]


def from_defaults(run: Run) -> list[list[str]]:
    differ = run.record.start.get("defaults_differ")
    return [[str(key), shown(value)] for key, value in differ.items()] if isinstance(differ, dict) else []


def whole(run: Run) -> list[list[str]]:
    return [[key, shown(value)] for key, value in flat(read_config(run)).items() if key]


def shown(value: Any) -> str:
    """Format a value on one line, as in YAML."""
    if isinstance(value, float):
        return f"{value:.10g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
