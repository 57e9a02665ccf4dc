"""A test that starts processes must have the marker that says so, because `make test-fast` leaves such tests out."""

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
    """Fails the running test if it lacks the marker. In other processes, such as forked workers, it does nothing."""
    if _running and os.getpid() == _PID and _running[-1].get_closest_marker(name) is None:
        pytest.fail(f"{_running[-1].nodeid} needs the marker `{name}`: write @pytest.mark.{name}")


def watch_programs(event: str, args: tuple[Any, ...]) -> None:
    """For sys.addaudithook: Python and what is installed beside it; what a library starts by itself, such as uname, is
    not meant."""
    if event == "subprocess.Popen" and Path(str(args[0])).parent == Path(sys.executable).parent:
        require_marker("subprocess")
