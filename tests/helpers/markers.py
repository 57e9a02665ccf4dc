"""Checks that tests that start processes have a marker, because `make test-fast` excludes them by the marker."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_PID = os.getpid()
_running: list[pytest.Item] = []


@contextmanager
def running(item: pytest.Item) -> Iterator[None]:
    _running.append(item)
    try:
        yield
    finally:
        _running.remove(item)


def require_marker(name: str) -> None:
    """Fail the running test if it does not have the marker. Does nothing in other processes, such as forked workers."""
    if _running and os.getpid() == _PID and _running[-1].get_closest_marker(name) is None:
        pytest.fail(f"{_running[-1].nodeid} needs the marker `{name}`: write @pytest.mark.{name}")


def watch_programs(event: str, args: tuple[Any, ...]) -> None:
    """An audit hook that requires the marker if Python or a program of its environment is started. Programs that a
    library starts itself, such as uname, are allowed."""
    if event == "subprocess.Popen" and Path(str(args[0])).parent == Path(sys.executable).parent:
        require_marker("subprocess")
