"""The default process group, initialized once every rank is ready to join it, however long that takes."""

import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta

from composer.devices import Device
from composer.utils import dist
from torch.distributed import TCPStore, is_initialized  # pyright: ignore[reportPrivateImportUsage]

from data.base.console import node_logger

_POLL_SECONDS = 0.2
_NOTICE_SECONDS = 10.0
"""After which each node says once what it waits for."""
_CONNECT_SECONDS = 30.0
"""For a connection to a server that is there."""


def initialize_dist(device: Device, timeout: float) -> None:
    """Composer's initialize_dist, which fails unless all ranks call it within the timeout. Here it counts from the
    last one's call. Before it ranks may prepare or download data, which may take any time."""
    store = _wait_for_all() if dist.get_world_size() > 1 and not is_initialized() else None
    dist.initialize_dist(device, timeout=timeout)
    del store  # torch has its own by now, of the same server


def _wait_for_all() -> TCPStore:
    """Returns when every rank has called it."""
    address, world_size = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), dist.get_world_size()
    # As torch will: rank 0 serves the store, unless a launcher such as torchrun does.
    serves = dist.get_global_rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    if not serves:
        _poll(lambda: _is_served(address), lambda: "Waiting for rank 0, which still opens its data")
    timeout = timedelta(seconds=_CONNECT_SECONDS)
    store = TCPStore(*address, is_master=serves, timeout=timeout, wait_for_workers=False, multi_tenant=True)
    if store.add("arrived", 1) == world_size:
        store.set("all arrived", "")
    _poll(
        lambda: store.check(["all arrived"]),  # pyright: ignore[reportAttributeAccessIssue]: torch's stubs lack it
        lambda: (
            f"Waiting for {world_size - store.add('arrived', 0)} of {world_size} ranks, which still open their data"
        ),
    )
    return store


def _poll(is_so: Callable[[], bool], waiting: Callable[[], str]) -> None:
    """Waits in Python: while torch waits for a store, signals are not handled."""
    notice_at = time.monotonic() + _NOTICE_SECONDS
    while not is_so():
        if time.monotonic() > notice_at:
            node_logger.info(waiting())
            notice_at = float("inf")
        time.sleep(_POLL_SECONDS)


def _is_served(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=_CONNECT_SECONDS).close()
    except OSError:
        return False
    return True
