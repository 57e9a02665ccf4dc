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
import select
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
_AGAIN_SECONDS = 1.0
"""After which it is looked whether what was raised had an effect."""
_RESUME = "with autoresume=true the next start resumes from the newest checkpoint"


class StopSignals:
    """Which signal has come, and what the next one does. For the main thread of one process."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        """The first one."""
        self._pid = os.getpid()
        self._first_at: float | None = None
        self._error: BaseException | None = None
        """What the handler has raised."""
        self._caught = self._deferred = self._reported = self._waits = False
        self.leaving = False
        self._repeated = 0
        """Signals of this process to itself that the thread has still to see."""
        self._wakeup: int | None = None

    @property
    def raised(self) -> bool:
        """Whether the signal ended what the main thread was doing."""
        return isinstance(self._error, SystemExit)

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
        """From now on all are ignored, to the end of the interpreter: the run has ended, and its exit code is to be
        that, whichever rank is the first and makes the launcher end the others."""
        self.leaving = True
        if self._wakeup is not None:
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)

    def caused(self, error: BaseException) -> bool:
        """Whether a signal ended the run with this error. Composer's own handlers, from its import to the next
        `install`, raise SystemExit and leave no other trace."""
        if not self.raised and isinstance(error, SystemExit) and error.code in [128 + n for n in _SIGNALS]:
            self._error, self.received = error, signal.Signals(int(error.code) - 128)
        self._caught = self.raised
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
        elif not self.leaving:
            # The thread notes it as well, and when it came: this may be called long after.
            self.received = self.received or signal.Signals(number)
            if self._interrupts and not self._is_unwinding():
                self._error = WaitInterrupted() if self._deferred else SystemExit(128 + self.received)
                raise self._error

    @property
    def _interrupts(self) -> bool:
        return self._waits if self._deferred else not self._caught

    def _is_unwinding(self) -> bool:
        """Whether the main thread is in a `finally` or `except` block because of what the handler has raised."""
        error = sys.exc_info()[1]
        while error is not None and error is not self._error:
            error = error.__context__
        return error is not None

    def _watch(self, reader: int) -> None:
        """The thread: until the other end of the pipe is closed."""
        while True:
            if not select.select([reader], [], [], _AGAIN_SECONDS if self._error is not None else None)[0]:
                self._repeat()
                continue
            if not (numbers := os.read(reader, 64)):
                break
            for number in numbers:
                if number in _SIGNALS and not self.leaving:
                    self._note(signal.Signals(number))
        os.close(reader)

    def _repeat(self) -> None:
        """What is raised in a destructor, or in a callback of C code, is printed and forgotten."""
        if self.received is not None and self._interrupts and not self.leaving:
            self._repeated += 1
            os.kill(self._pid, self.received)

    def _note(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if self._repeated and number == self.received:
            self._repeated -= 1
        elif self._first_at is None:
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
    """Installs the handlers; puts the earlier ones back afterwards unless the process ends."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    signals = StopSignals()
    signals.install()
    try:
        yield signals
    finally:
        if signals.received is None and not signals.leaving and threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
            signals.uninstall()


def _forget_wakeup() -> None:
    """In a forked process: its signals are not its parent's."""
    if threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget_wakeup)
