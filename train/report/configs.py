"""Configs, key by key, and how they differ: from the defaults, between the starts of a run, between runs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from data.config.sections import join
from train.report.reading.run import Run, read_config

ABSENT = "(absent)"


def flat(config: Any, key: str = "") -> dict[str, Any]:
    """Dotted keys, as command lines write them -> values. Lists of plain values stay as they are."""
    if isinstance(config, Mapping) and config:
        return {name: value for part, each in config.items() for name, value in flat(each, join(key, part)).items()}
    if isinstance(config, list) and any(isinstance(each, dict | list) for each in config):
        return {name: value for n, each in enumerate(config) for name, value in flat(each, f"{key}[{n}]").items()}
    return {key: config}


def differences(configs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Rows of a key and its value in each config, of the keys that differ."""
    flats = [flat(config) for config in configs]
    keys = dict.fromkeys(key for each in flats for key in each if key)
    rows = [[key, *(shown(each[key]) if key in each else ABSENT for each in flats)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def between_starts(run: Run) -> Iterator[list[str]]:
    """The batch at which a start has changed a key; the key; its value before and after."""
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
    """As YAML writes it on one line."""
    if isinstance(value, float):
        return f"{value:.10g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
