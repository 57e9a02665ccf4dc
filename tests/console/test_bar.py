"""The live bar, on a pseudo-terminal."""

import os
import re
import select
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl
from termios import TIOCSWINSZ
from typing import TextIO

import pytest

from train.console.bar import LiveBar, is_terminal
from train.loggers.log_file import LogFile

PARTS = ["12/100", "loss 2.3100", "4m05s left", "12.3k tok/s", "lr 1.0e-06", "grad 0.91", "lbl 0.0113", "71.40 GiB"]


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch, columns: int = 100) -> Iterator[tuple[TextIO, int]]:
    """Yield stdout and stderr on a terminal of this width, and the file descriptor to read them from."""
    reader, writer = os.openpty()
    ioctl(writer, TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    with os.fdopen(writer, "w", buffering=1) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLUMNS", str(columns))
        yield stream, reader
        monkeypatch.undo()
    os.close(reader)


def written(reader: int) -> str:
    """Return everything written so far."""
    found = b""
    while select.select([reader], [], [], 0.05)[0]:
        found += os.read(reader, 1 << 16)
    return found.decode()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.mark.parametrize("columns", [50, 80, 100])
def test_loss_and_time_left_fit_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    with terminal(monkeypatch, columns) as (stream, reader):
        with LiveBar(stream, 100).shown() as bar:
            bar.update(12, PARTS, now=True)
        (line,) = {line for line in re.split(r"[\r\n]+", plain(written(reader))) if "loss" in line}
    assert "loss 2.3100  4m05s left" in line
    assert len(line.rstrip()) < columns


def test_prints_are_complete_and_the_log_file_gets_plain_text(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    long = "x" * 150
    with terminal(monkeypatch) as (stream, reader):
        with LiveBar(stream, 100).shown() as bar:
            log = LogFile(f"{tmp_path}/log.txt")
            bar.update(12, PARTS, now=True)
            print(long)
            print("beg", end="")
            print("\rbegun and ended\r", file=sys.stdout)
            print("hf_" + "Ab12" * 8, file=sys.stderr)
            bar.update(13, PARTS, now=True)
        print("after")
        shown = plain(written(reader))
        copied = "".join(log._queue.queue)
    lines = re.split(r"[\r\n]+", shown)
    assert {long, "begun and ended", "after"} <= set(lines)
    assert "Ab12" not in shown
    assert long in copied
    assert "\x1b" not in copied


def test_no_color_is_respected_and_the_cursor_stays_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as (stream, reader):
        monkeypatch.setenv("NO_COLOR", "1")
        with LiveBar(stream, 100).shown() as bar:
            bar.update(12, PARTS, now=True)
            text = written(reader)
    assert not re.search(r"\x1b\[[0-9;]*m", text)
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")


def test_a_dumb_terminal_and_a_pipe_have_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch):
        assert is_terminal()
        monkeypatch.setenv("TERM", "dumb")
        assert not is_terminal()
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream, os.fdopen(reader):
        monkeypatch.setattr(sys, "stdout", stream)
        assert not is_terminal()


def test_a_forked_worker_does_not_print_through_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as (stream, reader), LiveBar(stream, 100).shown() as bar:
        bar.update(12, PARTS, now=True)
        monkeypatch.setattr(bar, "_process", 0)
        written(reader)
        print("of a worker", flush=True)
        assert written(reader) == "of a worker\r\n"
