"""Messages to the user: the logger `dropless`, and the handler that prints its messages on the console of one rank.

Secrets are hidden in these messages, and in everything that is written to stderr.

Programs call `show_on_console`. Code that uses the packages as a library can add its own handler to the logger.
"""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from functools import cache
from types import TracebackType
from typing import Any, TextIO

from data.secrets.redaction import redacted

logger = logging.getLogger("dropless")
"""For messages about the whole run. Global rank 0 prints these messages."""
node_logger = logging.getLogger("dropless.node")
"""For messages about the files and processes of a node. The node's local rank 0 prints these messages."""
rank_logger = logging.getLogger("dropless.rank")
"""For messages about work that one process does for all ranks. The process that does the work prints these messages."""
_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_CONTROLS |= {127: 0x2421} | dict.fromkeys(range(128, 160), 0xFFFD)
"""Control characters -> printable symbols."""


def printable(text: str) -> str:
    """The text with printable symbols instead of control characters, so that data cannot control the terminal, and
    HTML contains only valid characters."""
    return text.translate(_CONTROLS)


def is_first() -> bool:
    """Whether this process is local rank 0 of its node, or the only rank on the node. Launchers show the output of
    local rank 0."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0 or int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == 1


class _Console(logging.Handler):
    """Prints to the current sys.stdout, which may have been replaced to capture output or patched by Composer's log
    file.

    Errors that occur when writing to stdout, such as a full disk when stdout is a log file, are raised.
    """

    def emit(self, record: logging.LogRecord) -> None:
        shown = {node_logger.name: is_first(), rank_logger.name: True}
        if shown.get(record.name, int(os.environ.get("RANK", "0")) == 0):
            warning = "warning: " if record.levelno >= logging.WARNING else ""
            print(f"{warning}{redacted(record.getMessage())}", flush=True)  # noqa: T201


class _RedactedStream:
    """A wrapper around a stream that hides the secrets in each string before writing it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redacted(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _print_traceback(kind: type[BaseException], error: BaseException, place: TracebackType | None) -> None:
    """Write the traceback as one string, so that secrets are also hidden from loggers that copy stderr."""
    sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, place))))


def show_on_console() -> None:
    """Show the messages of the loggers on the console. No torch process group is needed, because ranks are read from
    the launcher's environment variables."""
    if not isinstance(sys.stderr, _RedactedStream):
        sys.stderr = _RedactedStream(sys.stderr)
    sys.excepthook = _print_traceback
    if not _is_shown():
        logger.addHandler(_Console())
    logger.setLevel(logging.INFO)
    logger.propagate = False


def show_error(error: Exception, *, what: str = "error", debug: bool = False) -> None:
    """Write one line to stderr, `error: ...`. If `debug` is true, the traceback is written before this line."""
    trace = "".join(traceback.format_exception(error)) if debug else ""
    sys.stderr.write(redacted(f"{trace}{what}: {error}\n"))
    sys.stderr.flush()


def shown_in_workers() -> Callable[[int], None] | None:
    """Return an initializer that makes worker processes print messages, or None if this process does not print messages
    itself."""
    return _show_in_worker if _is_shown() else None


def _is_shown() -> bool:
    return any(isinstance(handler, _Console) for handler in logger.handlers)


def _show_in_worker(number: int) -> None:
    show_on_console()


@cache
def notice(text: str, level: int = logging.INFO) -> None:
    """Logs a message about the node. In each process, the same message is logged only once."""
    node_logger.log(level, text)
