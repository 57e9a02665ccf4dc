"""Waits without a time limit until every rank is ready, and then initializes the default process group.

Composer is imported inside functions, because `sharing_failures` must be entered before any slow operation.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

from torch.distributed import PrefixStore, is_initialized  # pyright: ignore[reportPrivateImportUsage]

from data.base.console import node_logger
from data.base.errors import ConfigError, Problems, note_shown_elsewhere
from train.distributed.agreement import announce, check_agreement
from train.distributed.failures import failure_of, is_shown, note_shown, share, shared
from train.distributed.rank_store import address, connect, serves, why_not_served

if TYPE_CHECKING:
    from composer.devices import Device

_POLL_SECONDS, _SLOWEST_POLL_SECONDS = 0.2, 5.0
_NOTICE_SECONDS, _NEXT_NOTICE_SECONDS = 10.0, 60.0
"""Seconds until each node logs a message about what the node is waiting for, and seconds between repetitions of this
message."""
_REPORT_SECONDS = 5.0
"""Seconds for which a failed rank tries to connect to the store, to share its failure."""
_SHOWN_SECONDS = 10.0
"""Seconds for which a failed rank waits until rank 0 shows its error, because the launcher ends all other ranks when
the failed rank ends."""
_ARRIVED, _ALL_ARRIVED = "arrived", "all arrived"


@contextmanager
def sharing_failures(problems: Problems | None = None) -> Iterator[None]:
    """A context manager for all code up to and including initialize_dist. In this context, rank 0 serves the store, and
    if a rank fails, the ranks that wait for this rank raise the same error. Errors in the launcher's environment
    variables are added to `problems`, or raised if `problems` is None."""
    held = None
    if _must_join():
        with problems.collect() if problems is not None else nullcontext():
            address()
            held = connect() if serves() else None
    try:
        yield
    except Exception as error:
        if _must_join():
            with suppress(ConfigError, RuntimeError):
                if held is not None or why_not_served(_REPORT_SECONDS) is None:
                    _share(error)
        raise


def _share(error: Exception) -> None:
    """Share an error. Rank 0 shows its own error. Errors of other ranks are shown by rank 0 while rank 0 waits for
    these ranks."""
    rank, store = int(os.environ["RANK"]), connect(_REPORT_SECONDS)
    share(store, failure_of(error, rank))
    if rank == 0:
        note_shown(store)
    elif _poll(lambda: is_shown(store), str, _SHOWN_SECONDS):
        note_shown_elsewhere(error)


def initialize_dist(device: "Device", timeout: float, facts: Callable[[], Mapping[str, str]] = dict) -> None:
    """Initialize the process group with Composer's initialize_dist, which fails unless all ranks call it within the
    timeout. This function first waits without a time limit until all ranks have called it, so that each rank can
    prepare or download its data beforehand. Rank 0 must prepare its data within sharing_failures, which starts the
    store's server, because the other ranks wait for the server no longer than the timeout.

    facts: returns the values that must be the same on all ranks (see facts_of_start). If they differ between ranks,
    ConfigError is raised on all ranks.
    """
    from composer.utils import dist

    store = _wait_for_all(timeout, facts()) if _must_join() else None
    dist.initialize_dist(device, timeout=timeout)
    del store  # no longer needed, because torch has created its own store on the same server


def _must_join() -> bool:
    """Whether this process is one of several ranks, and the process group is not initialized yet."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and not is_initialized()


def _wait_for_all(timeout: float, facts: Mapping[str, str]) -> PrefixStore:
    """Return once every rank has called this function with the same facts."""
    host, port = address()
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if not serves():
        _wait_for_server(f"{host}:{port}", timeout)
    store = connect()

    def all_arrived() -> bool:
        if (failure := shared(store)) is not None:
            raise ConfigError(failure.message)
        return store.check([_ALL_ARRIVED])

    try:
        announce(store, facts, rank)
        if store.add(_ARRIVED, 1) == world_size:
            store.set(_ALL_ARRIVED, "")
        _poll(
            all_arrived,
            lambda: (
                f"Waiting for {world_size - store.add(_ARRIVED, 0)} of {world_size} ranks, which are still opening "
                f"their data (rank 0 is at {host}:{port})"
            ),
        )
        check_agreement(store, facts, rank, world_size)
    except RuntimeError:  # torch's DistNetworkError
        raise ConfigError(
            f"lost the connection to rank 0 at MASTER_ADDR:MASTER_PORT {host}:{port}: rank 0 has ended; see its output"
        ) from None
    return store


def _wait_for_server(place: str, timeout: float) -> None:
    why: str | None = None

    def is_served() -> bool:
        nonlocal why
        why = why_not_served()
        return why is None

    if not _poll(is_served, lambda: f"Waiting for rank 0 at {place} ({why})", timeout):
        raise ConfigError(
            f"rank 0 at MASTER_ADDR:MASTER_PORT {place} cannot be reached after {timeout:g} s (dist_timeout): {why}; "
            "rank 0 may have ended: see its output, or set these variables to the address of rank 0"
        )


def _poll(is_so: Callable[[], bool], waiting: Callable[[], str], timeout: float = float("inf")) -> bool:
    """Wait until the condition is true or the timeout expires, and return whether the condition is true. The wait is in
    Python, because signals are not handled while torch waits for a store."""
    start = time.monotonic()
    notice_at, seconds = start + _NOTICE_SECONDS, _POLL_SECONDS
    while not is_so():
        now = time.monotonic()
        if now >= start + timeout:
            return False
        if now >= notice_at:
            node_logger.info(waiting())
            notice_at = now + _NEXT_NOTICE_SECONDS
        time.sleep(min(seconds, start + timeout - now))
        seconds = min(1.1 * seconds, _SLOWEST_POLL_SECONDS)  # each sleep is about a tenth of the time waited so far
    return True
