"""SIGINT (Ctrl-C) and SIGTERM (a scheduler's stop) end a run with one line and exit code 128 + n, whatever it is doing.

The handlers raise SystemExit in the main thread. What the signal interrupted may turn that into another exception
(torch wraps everything that is raised while a checkpoint is written or loaded), so whether a signal came is recorded.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from data.base.console import is_first

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Which signal has come, and what the next one does. For the main thread of one process."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        """The first one."""
        self._pid = os.getpid()
        self._reported = False

    def install(self) -> None:
        """Again after an import that replaces handlers, as composer.core.engine does."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, self._handle)

    def caused(self, error: BaseException) -> bool:
        """Whether a signal ended the run with this error. Composer's own handlers, from its import to the next
        `install`, raise SystemExit and leave no other trace."""
        if self.received is None and isinstance(error, SystemExit) and error.code in [128 + n for n in _SIGNALS]:
            self.received = signal.Signals(int(error.code) - 128)
        return self.received is not None

    def report(self) -> int:
        """Prints the line, on one rank of a node; returns the exit code."""
        assert self.received is not None
        first, self._reported = not self._reported, True
        if first and is_first():
            # One write: the launcher prints at the same time.
            sys.stderr.write(
                f"stopped: {self.received.name} received; with autoresume=true the next start resumes from the newest "
                "checkpoint\n"
            )
            sys.stderr.flush()
        return 128 + self.received

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            self._handle_in_worker(number)
            return
        if self.received is None:
            self.received = signal.Signals(number)
            raise SystemExit(128 + number)
        # The run is ending. The launcher sends SIGTERM after Ctrl-C, which must not interrupt that; a second Ctrl-C is
        # from a user who does not want to wait for it.
        if number == signal.SIGINT:
            os._exit(self.report())

    @staticmethod
    def _handle_in_worker(number: int) -> None:
        """A forked process inherits the handlers. Ctrl-C reaches the parent too, which ends its workers; a SIGTERM to a
        worker alone has to end it as if there were no handler, so that the parent reports a killed worker."""
        if number != signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Installs the handlers; puts the earlier ones back afterwards unless a signal has come, which ends the process."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    signals = StopSignals()
    signals.install()
    try:
        yield signals
    finally:
        if signals.received is None and threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
