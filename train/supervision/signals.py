"""SIGTERM and SIGUSR1 (a scheduler's), and SIGINT (Ctrl-C).

Before training the first of them ends the process with one line and exit code 128 + n, whatever it is doing: the
handlers raise SystemExit in the main thread. What the signal interrupted may turn that into another exception, so
whether it was raised is recorded. While the run trains (`deferred`), the signal is only noted: train/supervision/
preemption.py saves and ends the run. In both cases later ones are ignored for a while, because schedulers and launchers
send duplicates; after that the next one ends the process at once.

Python calls handlers in the main thread alone, between two instructions: never while it waits in a collective. So a
thread reads the numbers of the signals from the wakeup descriptor, to which they are written as they come.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from data.base.console import is_first
from data.base.errors import WaitInterrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
IGNORED_SECONDS = 10.0
"""After the first signal, in which others are taken as its duplicates."""
_RESUME = "with autoresume=true the next start resumes from the newest checkpoint"


class StopSignals:
    """Which signal has come, and what the next one does. For the main thread of one process."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        """The first one."""
        self.raised = False
        """Whether it ended what the main thread was doing."""
        self._pid = os.getpid()
        self._first_at: float | None = None
        self._deferred = self._leaving = self._reported = self._waits = False
        self._wakeup: int | None = None

    def install(self) -> None:
        """Again after an import that replaces handlers, as composer.core.engine does."""
        if threading.current_thread() is not threading.main_thread():
            return
        if self._wakeup is None:
            reader, self._wakeup = os.pipe()
            os.set_blocking(self._wakeup, False)
            signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(reader,), name="stop-signals", daemon=True).start()
        for number in _SIGNALS:
            signal.signal(number, self._handle)

    def uninstall(self) -> None:
        """Ends the thread."""
        if self._wakeup is not None:
            signal.set_wakeup_fd(-1)
            os.close(self._wakeup)
            self._wakeup = None

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, signals do not interrupt: whoever trains looks at `received`."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within `deferred`, around waiting for what will not be needed if the run ends: raises WaitInterrupted."""
        self._waits = True
        try:
            if self._deferred and self.received is not None:
                raise WaitInterrupted
            yield
        finally:
            self._waits = False

    def leave(self) -> None:
        """From now on all are ignored, to the end of the interpreter: the run is saved, and ends."""
        self._leaving = True
        if self._wakeup is not None:
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)

    def caused(self, error: BaseException) -> bool:
        """Whether a signal ended the run with this error. Composer's own handlers, from its import to the next
        `install`, raise SystemExit and leave no other trace."""
        if not self.raised and isinstance(error, SystemExit) and error.code in [128 + n for n in _SIGNALS]:
            self.raised, self.received = True, signal.Signals(int(error.code) - 128)
        return self.raised

    def report(self, *, again: bool = False) -> int:
        """Prints the line, on one rank of a node; returns the exit code."""
        assert self.received is not None
        first, self._reported = not self._reported, True
        if first and is_first():
            what = "received again, and nothing was saved since" if again else "received"
            # One write: the launcher prints at the same time.
            sys.stderr.write(f"stopped: {self.received.name} {what}; {_RESUME}\n")
            sys.stderr.flush()
        return 128 + self.received

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            self._handle_in_worker(number)
        elif not self._leaving:
            # The thread notes it as well, and when it came: this may be called long after.
            self.received = self.received or signal.Signals(number)
            if self._deferred and self._waits:
                self._waits = False
                raise WaitInterrupted
            if not self._deferred and not self.raised:
                self.raised = True
                raise SystemExit(128 + number)

    def _watch(self, reader: int) -> None:
        """The thread: until the other end of the pipe is closed."""
        while numbers := os.read(reader, 64):
            for number in numbers:
                if number in _SIGNALS and not self._leaving:
                    self._note(signal.Signals(number))
        os.close(reader)

    def _note(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if self._first_at is None:
            self._first_at = now
            self.received = self.received or number
        elif now > self._first_at + IGNORED_SECONDS:
            os._exit(self.report(again=True))

    @staticmethod
    def _handle_in_worker(number: int) -> None:
        """A forked process inherits the handlers. Ctrl-C reaches the parent too, which ends its workers; another signal
        to a worker alone has to end it as if there were no handler, so that the parent reports a killed worker."""
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
            signals.uninstall()


def _forget_wakeup() -> None:
    """In a forked process: its signals are not its parent's."""
    if threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget_wakeup)
