"""Faults of the object stores on localhost."""

import threading
from dataclasses import dataclass

_lock = threading.Lock()


@dataclass
class Fault:
    """A fault that affects requests with this method whose path contains this text."""

    method: str
    path: str
    times: int
    """Number of requests that the fault affects. Later requests are answered."""
    kind: str
    """error (500), denied (403), reset (the connection is closed), cut (half of the body), or slow."""
    seconds: float = 1.0
    """Duration of a slow request."""


def take_fault(faults: list[Fault], method: str, path: str) -> Fault | None:
    """Return the fault of a request, if any, and count it."""
    with _lock:
        for fault in faults:
            if fault.times > 0 and fault.method == method and fault.path in path:
                fault.times -= 1
                return fault
    return None
