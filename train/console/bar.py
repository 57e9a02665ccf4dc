"""The live progress bar at the bottom of a terminal. All other output is printed above it, in complete lines."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from data.secrets.redaction import redacted

_BAR_WIDTH = 20
_BEFORE_BAR = 4
"""Minimum number of text parts that must fit next to the bar. If fewer parts fit, the bar is not shown."""
_SECONDS = 0.1
"""Minimum number of seconds between two updates of the screen."""


def is_terminal() -> bool:
    """Whether a bar can be drawn on stdout."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


class LiveBar:
    """A line that is as wide as the terminal. It is redrawn only when `update` is called, not by a thread."""

    def __init__(self, terminal: TextIO, total: int) -> None:
        self._console = Console(file=terminal, force_terminal=True, force_interactive=True, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._total, self._drawn = total, 0.0
        self._process = os.getpid()

    def update(self, batch: int, parts: list[str], *, now: bool = False) -> None:
        """parts: texts, most important first; parts that do not fit are omitted. now: draw immediately."""
        if now or time.monotonic() - self._drawn >= _SECONDS:
            self._drawn = time.monotonic()
            self._live.update(self._picture(batch, parts), refresh=True)

    def _picture(self, batch: int, parts: list[str]) -> Table:
        room = self._console.width - 1
        has_bar = len("  ".join(parts[:_BEFORE_BAR])) + 2 + _BAR_WIDTH <= room
        room -= 2 + _BAR_WIDTH if has_bar else 0
        # Show as many parts as fit, in order.
        text = next((text for n in range(len(parts), 0, -1) if len(text := "  ".join(parts[:n])) <= room), "")
        row: list[Any] = [Text(text, no_wrap=True, overflow="crop")]
        if has_bar:
            row.insert(0, ProgressBar(total=self._total, completed=batch, width=_BAR_WIDTH))
        picture = Table.grid(padding=(0, 2, 0, 0))
        picture.add_row(*row)
        return picture

    def print(self, text: str) -> None:
        """Print complete lines above the bar."""
        self._console.out(text, highlight=False)

    @property
    def is_mine(self) -> bool:
        """Whether this process created the bar. A forked worker must not print above the bar, because another thread
        may have held the bar's locks at the time of the fork."""
        return os.getpid() == self._process

    @contextmanager
    def shown(self) -> Iterator["LiveBar"]:
        """Draw the bar, and print stdout and stderr above it, until the context ends."""
        streams = sys.stdout, sys.stderr
        above = (_Above(streams[0], self), _Above(streams[1], self) if streams[1].isatty() else None)
        self._live.start()
        # Keep the cursor visible, because a killed process could not show it again.
        self._console.show_cursor(True)
        sys.stdout, sys.stderr = above[0], above[1] or sys.stderr
        try:
            yield self
            # After an error, the streams are not restored here, so that loggers that copy them, such as a log file,
            # also receive the error message.
            sys.stdout, sys.stderr = streams
        finally:
            for stream in filter(None, above):
                stream.end()
            self._live.stop()


class _Above:
    """Replaces stdout or stderr, and prints each complete line above the bar."""

    def __init__(self, stream: TextIO, bar: LiveBar) -> None:
        self._stream, self._bar, self._begun = stream, bar, ""
        self._is_over = False

    def write(self, text: str) -> int:
        if self._is_over or not self._bar.is_mine:
            return self._stream.write(text)
        lines, newline, self._begun = (self._begun + text).rpartition("\n")
        if newline:
            # Progress bars print carriage returns. A terminal shows only the text after the last carriage return.
            self._bar.print(redacted("\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines.split("\n"))))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def end(self) -> None:
        """Print an unfinished line. Later writes go directly to the original stream, because other code may still have
        a reference to this object."""
        if self._begun:
            self.write("\n")
        self._is_over = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
