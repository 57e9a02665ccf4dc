"""The store through which ranks find each other. torch creates the store from the launcher's environment variables.
This module converts torch's errors to messages that suggest a fix.

Does not import Composer.
"""

import os
import socket
from concurrent.futures import Future
from datetime import timedelta
from threading import Thread

from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from data.base.errors import ConfigError, reason

_CONNECT_SECONDS = 30.0
"""Timeout for connecting to a running server."""


def serves() -> bool:
    """Whether this process serves the store. As in torch, rank 0 serves the store, unless a launcher such as torchrun
    does."""
    return _variable("RANK") == "0" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def connect(seconds: float = _CONNECT_SECONDS) -> PrefixStore:
    """Connect to the store in a thread, because torch waits indefinitely, without handling signals, for a server that
    accepts connections but does not respond. All store objects of a process for the same address share one server,
    which runs as long as any of these objects exists."""
    (host, port), is_master, future = address(), serves(), Future[TCPStore]()
    timeout = timedelta(seconds=seconds)

    def connect() -> None:
        try:
            future.set_result(TCPStore(host, port, None, is_master, timeout, wait_for_workers=False, multi_tenant=True))
        except RuntimeError as error:
            future.set_exception(error)

    Thread(target=connect, daemon=True).start()
    try:
        # If torchrun serves the store, the store may contain keys of an earlier attempt to start the run, so each
        # attempt has its own prefix.
        return PrefixStore(f"ready/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", future.result(seconds))
    except (RuntimeError, TimeoutError) as error:
        why = "is in use by another program" if "EADDRINUSE" in str(error) else "does not respond like rank 0"
        raise ConfigError(
            f"MASTER_ADDR:MASTER_PORT is {host}:{port}, which {why}: set these variables to the address of rank 0's "
            "node and a free port on this node (composer --master_addr, --master_port)"
        ) from None


def why_not_served(seconds: float = _CONNECT_SECONDS) -> str | None:
    """The reason why rank 0's server cannot be reached, or None if it can be reached. The reason may be temporary: for
    example, the host name of rank 0's node may be unknown until that node has started."""
    host, port = address()
    try:
        socket.create_connection((host, port), timeout=seconds).close()
    except OSError as error:
        return reason(error)
    except UnicodeError as error:
        raise ConfigError(f"MASTER_ADDR is {host!r}, which is not a valid host name: {error}") from None
    return None


def address() -> tuple[str, int]:
    host, port = _variable("MASTER_ADDR"), _variable("MASTER_PORT")
    if not (port.isdecimal() and 0 < int(port) < 2**16):
        raise ConfigError(f"MASTER_PORT is {port!r}, but it must be a port number, such as 29500")
    return host, int(port)


def _variable(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise ConfigError(
            f"{name} is not set, but WORLD_SIZE is {os.environ.get('WORLD_SIZE')}: start with a launcher (composer or "
            "torchrun), or set this variable; for one rank, unset WORLD_SIZE"
        )
    return value
