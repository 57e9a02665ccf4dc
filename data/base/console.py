"""What the program says: one logger, `dropless`, and the handler that shows its lines on one rank's console.

Programs call `show_on_console`; whoever uses the packages as a library can give the logger another handler.
"""

import logging
import os
from collections.abc import Callable
from functools import cache

logger = logging.getLogger("dropless")
"""Of what concerns the whole run: global rank 0 shows it."""
node_logger = logging.getLogger("dropless.node")
"""Of what concerns a node's files and processes: its local rank 0 shows it."""


def is_first() -> bool:
    """Is this the node's local rank 0, whose output alone launchers show?"""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


class _Console(logging.Handler):
    """Prints to stdout as it is at that moment: capturing replaces it, and Composer's log file replaces its `write`.

    What stdout raises is raised here too, such as the full disk of a log file.
    """

    def emit(self, record: logging.LogRecord) -> None:
        of_node = record.name == node_logger.name
        if is_first() if of_node else int(os.environ.get("RANK", "0")) == 0:
            warning = "warning: " if record.levelno >= logging.WARNING else ""
            print(f"{warning}{record.getMessage()}", flush=True)  # noqa: T201


def show_on_console() -> None:
    """Shows what the logger is told from now on. Needs no process group: ranks are the launcher's RANK, LOCAL_RANK."""
    if not _is_shown():
        logger.addHandler(_Console())
    logger.setLevel(logging.INFO)
    logger.propagate = False


def shown_in_workers() -> Callable[[int], None] | None:
    """What a worker process begins with, so that it shows what this process does, however it is started."""
    return _show_in_worker if _is_shown() else None


def _is_shown() -> bool:
    return any(isinstance(handler, _Console) for handler in logger.handlers)


def _show_in_worker(number: int) -> None:
    show_on_console()


@cache
def notice(text: str, level: int = logging.INFO) -> None:
    """Says it of the node, once a process."""
    node_logger.log(level, text)
