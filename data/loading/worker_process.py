"""What a loader's worker process begins with: which signals are its own, and whom it ends with."""

import os
import signal
import threading
from collections.abc import Callable
from multiprocessing import parent_process

from data.base.console import shown_in_workers
from data.base.workers import signalled_at_end_of

_OF_THE_RUN = (signal.SIGINT, signal.SIGUSR1)


class BeginWorker:
    """For `worker_init_fn`. Schedulers and terminals signal every process of a run, but its batches are needed until
    the training process, which is signalled too, has finished its step."""

    def __init__(self) -> None:
        self._show: Callable[[int], None] | None = shown_in_workers()

    def __call__(self, number: int) -> None:
        if self._show is not None:
            self._show(number)
        trainer, parent = parent_process(), os.getppid()
        # A fork server's children end by torch's watchdog alone.
        if trainer is not None and trainer.pid == parent:
            signalled_at_end_of(parent, signal.SIGKILL)
            _heed_only(parent)


def _heed_only(parent: int) -> None:
    """Of SIGTERM the parent's alone counts, which ends a worker that does not end by itself."""
    for number in _OF_THE_RUN:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS has none
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_told, args=(parent,), name="worker-signals", daemon=True).start()


def _end_when_told(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
