"""A copy of a checkpoint's tensors in the memory of the host, which is written while training changes the originals."""

import math
import mmap
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

_THREADS = 2
_ALIGNED = 64
"""Bytes: where a tensor begins in the memory."""

_Layout = tuple[tuple[str, tuple[int, ...], torch.dtype], ...]


class Snapshot:
    """The memory is taken for the first copy, and used again for those after it.

    On a GPU it is pinned. `take` returns when the copy is complete: the next optimizer step changes the weights, so it
    would have to wait for the copy anyway, and a copy from a GPU takes a small part of a step.
    """

    def __init__(self) -> None:
        self._layout: _Layout = ()
        self._places: dict[str, Tensor] = {}
        self._memory: _Memory | None = None

    def take(self, tensors: Mapping[str, Tensor], *, gather: bool = False, keep: bool = True) -> dict[str, Tensor]:
        """The tensors with this rank's parts copied, until the next call.

        gather: all of each tensor is copied, one after the other, which is for every rank. keep: False where this rank
        copies nothing, because others write what it has.
        """
        if keep:
            self._make_room(tensors, gather=gather)
        if gather:
            for key, tensor in tensors.items():
                source = whole(tensor)
                if keep:
                    _copy(self._places[key], source)
        elif keep:
            # A thread reads and writes memory at half the speed of two.
            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(_copy, self._places.values(), map(_local, tensors.values())))
        if torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()
        if not keep:
            return {}
        return {key: _like(tensor, self._places[key], gather=gather) for key, tensor in tensors.items()}

    def _make_room(self, tensors: Mapping[str, Tensor], *, gather: bool) -> None:
        layout = _layout(tensors, gather=gather)
        if layout == self._layout:
            return
        self._places = {}
        if self._memory is not None:
            self._memory.release()  # before more is taken
        self._memory = _Memory(max(_size(layout), 1))
        self._layout, self._places = layout, _places(layout, self._memory.mapped)


def snapshot_size(tensors: Mapping[str, Tensor], *, gather: bool = False) -> int:
    """Bytes that a copy of them takes on this rank."""
    return _size(_layout(tensors, gather=gather))


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every rank. Every rank has to call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _copy(place: Tensor, source: Tensor) -> None:
    with torch.no_grad():  # which is each thread's own
        place.copy_(source, non_blocking=True)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _like(tensor: Tensor, copy: Tensor, *, gather: bool) -> Tensor:
    """The copy, as a part of a sharded tensor where the original is one. Not by DTensor.from_local, which would move it
    to the device of the mesh."""
    if gather or not isinstance(tensor, DTensor):
        return copy
    return DTensor(copy, tensor._spec, requires_grad=False)  # pyright: ignore[reportCallIssue]: torch's stub


def _layout(tensors: Mapping[str, Tensor], *, gather: bool) -> _Layout:
    return tuple(
        (key, tuple(tensor.shape if gather else _local(tensor).shape), tensor.dtype) for key, tensor in tensors.items()
    )


def _size(layout: _Layout) -> int:
    return sum(_room(shape, dtype) for _, shape, dtype in layout)


def _room(shape: Iterable[int], dtype: torch.dtype) -> int:
    return -(-math.prod(shape) * dtype.itemsize // _ALIGNED) * _ALIGNED


def _places(layout: _Layout, memory: mmap.mmap) -> dict[str, Tensor]:
    """A storage for each tensor: torch.save writes a tensor as it is only where it fills its storage."""
    places, offset = {}, 0
    for key, shape, dtype in layout:
        if n := math.prod(shape):
            places[key] = torch.frombuffer(memory, dtype=dtype, count=n, offset=offset).view(shape)
        else:
            places[key] = torch.empty(shape, dtype=dtype)
        offset += _room(shape, dtype)
    return places


class _Memory:
    """Memory of exactly this size; torch's own pinned memory is rounded up to a power of two."""

    def __init__(self, n_bytes: int) -> None:
        self.mapped = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # A forked worker of a loader would keep the pages of its start, and each of them would be there twice then.
        if hasattr(mmap, "MADV_DONTFORK"):  # of Linux alone
            self.mapped.madvise(mmap.MADV_DONTFORK)
        self._pinned: int | None = None
        if torch.cuda.is_initialized():
            address = torch.frombuffer(self.mapped, dtype=torch.uint8).data_ptr()
            # What cannot be pinned is copied all the same, more slowly.
            if int(_cuda().cudaHostRegister(address, n_bytes, 0)) == 0:
                self._pinned = address
            else:
                with suppress(RuntimeError):  # the error is kept, and raised by the next kernel
                    torch.zeros(1, device="cuda")

    def release(self) -> None:
        """Given back to the system with the last tensor in it."""
        if self._pinned is not None:
            _cuda().cudaHostUnregister(self._pinned)


def _cuda() -> Any:
    return torch.cuda.cudart()
