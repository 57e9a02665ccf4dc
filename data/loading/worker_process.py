"""Initialization of a loader's worker process: signal handlers, and the conditions under which the process ends."""

import os
import signal
import threading
from collections.abc import Callable
from multiprocessing import parent_process

from data.base.console import shown_in_workers
from data.base.workers import signalled_at_end_of

_OF_THE_RUN = (signal.SIGINT, signal.SIGUSR1)


class BeginWorker:
    """A `worker_init_fn` that makes workers ignore the signals that schedulers and terminals send to all processes of a
    run. Workers are needed until the training process, which also receives the signal, has finished its step."""

    def __init__(self) -> None:
        self._show: Callable[[int], None] | None = shown_in_workers()

    def __call__(self, number: int) -> None:
        if self._show is not None:
            self._show(number)
        trainer, parent = parent_process(), os.getppid()
        # Worker processes that a fork server started are ended only by torch's watchdog.
        if trainer is not None and trainer.pid == parent:
            signalled_at_end_of(parent, signal.SIGKILL)
            _ignore_signals_of_others(parent)


def _ignore_signals_of_others(parent: int) -> None:
    """Only a SIGTERM from the parent ends the worker. The parent sends SIGTERM if the worker does not exit when
    requested."""
    for number in _OF_THE_RUN:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not available on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_on_sigterm, args=(parent,), name="worker-signals", daemon=True).start()


def _end_on_sigterm(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
