"""The default process group, initialized once every rank is ready to join it, however long that takes.

Imports Composer late: `sharing_failures` is entered before anything slow.
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
"""After which each node says what it waits for, and says it again."""
_REPORT_SECONDS = 5.0
"""In which a rank that fails tries to reach the store."""
_SHOWN_SECONDS = 10.0
"""In which another rank, which waits for it, shows its error. The launcher then ends the others."""
_ARRIVED, _ALL_ARRIVED = "arrived", "all arrived"


@contextmanager
def sharing_failures(problems: Problems | None = None) -> Iterator[None]:
    """Around what precedes initialize_dist, and that: rank 0 serves the store from here on, and ranks that wait for one
    that fails raise its error. What is wrong with the launcher's variables is raised, or added to the problems."""
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
    """Rank 0 shows what it raises itself. What another raises is rank 0's to show once it waits for the others."""
    rank, store = int(os.environ["RANK"]), connect(_REPORT_SECONDS)
    share(store, failure_of(error, rank))
    if rank == 0:
        note_shown(store)
    elif _poll(lambda: is_shown(store), str, _SHOWN_SECONDS):
        note_shown_elsewhere(error)


def initialize_dist(device: "Device", timeout: float, facts: Callable[[], Mapping[str, str]] = dict) -> None:
    """Composer's initialize_dist, which fails unless all ranks call it within the timeout. Here it counts from the
    last one's call. Before it ranks may prepare or download data, which may take any time if rank 0 does so in
    sharing_failures: for its server a rank waits no longer than the timeout.

    facts: returns what must be the same on all ranks (facts_of_start); raises ConfigError on all where it is not."""
    from composer.utils import dist

    store = _wait_for_all(timeout, facts()) if _must_join() else None
    dist.initialize_dist(device, timeout=timeout)
    del store  # torch has its own by now, of the same server


def _must_join() -> bool:
    """Is this one of several ranks, whose process group is still to be initialized?"""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and not is_initialized()


def _wait_for_all(timeout: float, facts: Mapping[str, str]) -> PrefixStore:
    """Returns when every rank has called it with the same facts."""
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
                f"Waiting for {world_size - store.add(_ARRIVED, 0)} of {world_size} ranks, which still open their data "
                f"(rank 0 is at {host}:{port})"
            ),
        )
        check_agreement(store, facts, rank, world_size)
    except RuntimeError:  # torch's DistNetworkError
        raise ConfigError(
            f"the connection to rank 0 at MASTER_ADDR:MASTER_PORT {host}:{port} is lost: see its output, it has ended"
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
            f"rank 0 at MASTER_ADDR:MASTER_PORT {place} cannot be reached after {timeout:g} s (dist_timeout): {why}: "
            "see the output of rank 0, which may have ended, or set them to its address"
        )


def _poll(is_so: Callable[[], bool], waiting: Callable[[], str], timeout: float = float("inf")) -> bool:
    """Whether it is so within the timeout. Waits in Python: while torch waits for a store, signals are not handled."""
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
        seconds = min(1.1 * seconds, _SLOWEST_POLL_SECONDS)  # a tenth of the time waited so far
    return True
