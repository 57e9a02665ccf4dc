"""The type of device on which a model computes: the type of its tensors' device or, in a simulation, the simulated
type.

Fake tensors on a GPU need a GPU driver, so train/simulation uses fake CPU tensors instead. Code whose choices depend on
the device, such as the size of a chunk, uses the functions of this module.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

_simulated: str | None = None


def device_type(tensor: Tensor) -> str:
    """`cuda` or `cpu`."""
    return _simulated or tensor.device.type


def is_simulated(device: str) -> bool:
    """Whether this type of device is simulated, that is, whether fake tensors represent tensors on such a device."""
    return _simulated == device


@contextmanager
def simulating(device: str) -> Iterator[None]:
    global _simulated
    before, _simulated = _simulated, device
    try:
        yield
    finally:
        _simulated = before
