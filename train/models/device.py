"""The kind of device that a model computes on: the one of its tensors or, in a simulation, the one that they stand for.

Fake tensors of a GPU need the driver of one, so train/simulation has fake CPU tensors in their place. What depends on
the device by choice, such as the size of a chunk, asks here.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

_simulated: str | None = None


def device_type(tensor: Tensor) -> str:
    """`cuda` or `cpu`."""
    return _simulated or tensor.device.type


def is_simulated(device: str) -> bool:
    """Whether tensors have no data and stand for those of this kind of device."""
    return _simulated == device


@contextmanager
def simulating(device: str) -> Iterator[None]:
    global _simulated
    before, _simulated = _simulated, device
    try:
        yield
    finally:
        _simulated = before
