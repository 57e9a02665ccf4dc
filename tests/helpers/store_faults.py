"""What goes wrong with the object stores on loopback."""

import threading
from dataclasses import dataclass

_lock = threading.Lock()


@dataclass
class Fault:
    """What happens to requests of a method whose path contains a text."""

    method: str
    path: str
    times: int
    """To how many of them; the later ones are answered."""
    kind: str
    """error (500), denied (403), reset (the connection ends), cut (half of the body), or slow."""
    seconds: float = 1.0
    """That a slow one takes."""


def take_fault(faults: list[Fault], method: str, path: str) -> Fault | None:
    """The fault that meets a request, which is counted."""
    with _lock:
        for fault in faults:
            if fault.times > 0 and fault.method == method and fault.path in path:
                fault.times -= 1
                return fault
    return None
