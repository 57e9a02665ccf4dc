"""The time of a process before its run is measured."""

import itertools
from typing import Any

import pytest

from train.config.callbacks import CallbacksConfig
from train.supervision.hangs.deadlines import Section
from train.throughput import monitor


def test_the_start_of_a_process_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"process": 30.0, "setup": 10.0}
    monkeypatch.setattr(monitor, "process_seconds", lambda: now["process"])
    monkeypatch.setattr(monitor, "_runs", itertools.count())
    sizes: dict[str, Any] = {"window_size": 1, "rows_per_batch": 1, "flops_per_token": 1, "device_flops": None}
    first, later = (
        monitor.Throughput(CallbacksConfig(), **sizes, seconds=lambda: {Section.SETUP: now["setup"]}) for _ in range(2)
    )
    assert [each.state_dict()["seconds"]["startup"] for each in (first, later)] == [30, 10]
    now["setup"] += 5
    assert first.state_dict()["seconds"]["startup"] == 35
