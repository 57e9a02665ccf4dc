"""The kind of device that a model computes on: that of its tensors or, in a simulation, the simulated one.

Fake tensors on a GPU need the driver of a GPU, so train/simulation uses fake CPU tensors instead. Code that makes
choices by device, such as the size of a chunk, uses these functions.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

_simulated: str | None = None


def device_type(tensor: Tensor) -> str:
    """`cuda` or `cpu`."""
    return _simulated or tensor.device.type


def is_simulated(device: str) -> bool:
    """Whether the tensors are fake and stand in for tensors on this kind of device."""
    return _simulated == device


@contextmanager
def simulating(device: str) -> Iterator[None]:
    global _simulated
    before, _simulated = _simulated, device
    try:
        yield
    finally:
        _simulated = before
