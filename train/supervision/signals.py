"""Handlers for SIGTERM and SIGUSR1 (sent by schedulers) and SIGINT (Ctrl-C).

Before training, the first signal ends the process with a one-line message and exit code 128 + n: the handler raises
SystemExit in the main thread. The interrupted code may turn SystemExit into another exception, so `StopSignals` records
that it was raised. During training (`deferred`), the handler only records the signal, and
train/supervision/preemption.py saves and ends the run. In both cases, further signals are ignored for a while, because
schedulers and launchers send duplicates. After that, the next signal ends the process immediately.

Python calls signal handlers only in the main thread, between two bytecode instructions, so never while that thread
waits in a collective. Therefore a thread reads the signal numbers from the wakeup file descriptor, to which the
interpreter writes them on arrival.
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
"""Seconds after the first signal during which further signals count as duplicates."""
_AGAIN_SECONDS = 1.0
"""Seconds after which the thread checks whether the raised exception had an effect."""
_RESUME = "with autoresume=true the next start resumes from the newest checkpoint"


class StopSignals:
    """The signals that this process has received, and its reaction to them. Must be used from the main thread."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        """The first signal received."""
        self._pid = os.getpid()
        self._first_at: float | None = None
        self._error: BaseException | None = None
        """The exception that the handler raised."""
        self._caught = self._deferred = self._reported = self._waits = False
        self.ignoring_all = False
        self._repeated = 0
        """Signals that this process has sent to itself and that the thread has not read yet."""
        self._wakeup: int | None = None

    @property
    def raised(self) -> bool:
        """Whether a signal has raised SystemExit in the main thread."""
        return isinstance(self._error, SystemExit)

    def install(self) -> None:
        """Install the handlers. Call this again after an import that replaces handlers, such as
        composer.core.engine."""
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
        """Stop the thread that `install` started."""
        if self._wakeup is not None:
            signal.set_wakeup_fd(-1)
            os.close(self._wakeup)
            self._wakeup = None

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """In this context, signals do not interrupt the main thread; the training loop checks `received` instead."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """In this context, which must be inside `deferred`, a signal raises WaitInterrupted. Use it for waits whose
        result is not needed if the run ends."""
        self._waits = True
        try:
            if self._deferred and self.received is not None:
                raise WaitInterrupted
            yield
        finally:
            self._waits = False

    def ignore_all(self) -> None:
        """Ignore all signals until the interpreter ends. Call this when the run has ended: every rank must keep its
        exit code, even if the launcher sends the rank a signal because another rank exited first."""
        self.ignoring_all = True
        if self._wakeup is not None:
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)

    def caused(self, error: BaseException) -> bool:
        """Whether a signal ended the run with this error. Also recognizes the SystemExit of Composer's own handlers,
        which are active between the import of Composer and the next `install`."""
        if not self.raised and isinstance(error, SystemExit) and error.code in [128 + n for n in _SIGNALS]:
            self._error, self.received = error, signal.Signals(int(error.code) - 128)
        self._caught = self.raised
        return self.raised

    def report(self, *, again: bool = False) -> int:
        """Print the message on one rank per node and return the exit code."""
        assert self.received is not None
        first, self._reported = not self._reported, True
        if first and is_first():
            what = "received again, and nothing has been saved since the first signal" if again else "received"
            # A single write, because the launcher prints at the same time.
            sys.stderr.write(f"stopped: {self.received.name} {what}; {_RESUME}\n")
            sys.stderr.flush()
        return 128 + self.received

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            self._handle_in_worker(number)
        elif not self.ignoring_all:
            # The thread also records the signal and its time, because this handler may be called much later.
            self.received = self.received or signal.Signals(number)
            if self._interrupts and not self._is_unwinding():
                self._error = WaitInterrupted() if self._deferred else SystemExit(128 + self.received)
                raise self._error

    @property
    def _interrupts(self) -> bool:
        return self._waits if self._deferred else not self._caught

    def _is_unwinding(self) -> bool:
        """Whether the main thread is in a `finally` or `except` block that handles the raised exception."""
        error = sys.exc_info()[1]
        while error is not None and error is not self._error:
            error = error.__context__
        return error is not None

    def _watch(self, reader: int) -> None:
        """The thread's main function, which returns when the write end of the pipe is closed."""
        while True:
            if not select.select([reader], [], [], _AGAIN_SECONDS if self._error is not None else None)[0]:
                self._repeat()
                continue
            if not (numbers := os.read(reader, 64)):
                break
            for number in numbers:
                if number in _SIGNALS and not self.ignoring_all:
                    self._note(signal.Signals(number))
        os.close(reader)

    def _repeat(self) -> None:
        """Send the signal again, because an exception that is raised in a destructor or a C callback is only printed,
        and not propagated."""
        if self.received is not None and self._interrupts and not self.ignoring_all:
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
        """Handle a signal in a forked process, which inherits the handlers. The parent ends its workers on Ctrl-C. Any
        other signal must kill the worker as if there were no handler, so that the parent reports a killed worker."""
        if number != signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Install the handlers, and restore the previous ones on exit unless the process is ending."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    signals = StopSignals()
    signals.install()
    try:
        yield signals
    finally:
        if (
            signals.received is None
            and not signals.ignoring_all
            and threading.current_thread() is threading.main_thread()
        ):
            for number, handler in before.items():
                signal.signal(number, handler)
            signals.uninstall()


def _forget_wakeup() -> None:
    """Detach a forked process from its parent's wakeup pipe."""
    if threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget_wakeup)
