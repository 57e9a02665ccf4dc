"""Records the files that this process opens, with an audit hook, so that no read is missed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_watching: list[list[str]] = []
_hooked: list[bool] = []


def _note(event: str, args: tuple[Any, ...]) -> None:
    if event == "open":
        for opened in _watching:
            opened.append(str(args[0]))


@contextmanager
def opened_files() -> Iterator[list[str]]:
    """Yield the list of paths, which grows as files are opened."""
    if not _hooked:
        sys.addaudithook(_note)  # audit hooks cannot be removed
        _hooked.append(True)
    opened: list[str] = []
    _watching.append(opened)
    try:
        yield opened
    finally:
        _watching.remove(opened)
