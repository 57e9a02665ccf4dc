"""A copy of a checkpoint's tensors in CPU memory, which is written while training changes the originals."""

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
"""Alignment of the tensors in memory, in bytes."""

_Layout = tuple[tuple[str, tuple[int, ...], torch.dtype], ...]


class Snapshot:
    """A copy of tensors. Its memory is allocated for the first copy and reused for later ones.

    The memory is pinned if there is a GPU. `take` returns only when the copy is complete, because the next optimizer
    step, which changes the weights, would have to wait for the copy anyway. A copy from a GPU takes a small fraction of
    a step.
    """

    def __init__(self) -> None:
        self._layout: _Layout = ()
        self._places: dict[str, Tensor] = {}
        self._memory: _Memory | None = None

    def take(self, tensors: Mapping[str, Tensor], *, gather: bool = False, keep: bool = True) -> dict[str, Tensor]:
        """Copy this rank's shards of the tensors. The copy is valid until the next call.

        gather: gather and copy whole tensors, one after the other. Every rank must then call this. keep: False if this
        rank copies nothing, because other ranks write the tensors.
        """
        if keep:
            self._make_room(tensors, gather=gather)
        if gather:
            for key, tensor in tensors.items():
                source = whole(tensor)
                if keep:
                    _copy(self._places[key], source)
        elif keep:
            # With one thread, copying is half as fast as with two.
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
            self._memory.release()  # release the old memory before new memory is allocated
        self._memory = _Memory(max(_size(layout), 1))
        self._layout, self._places = layout, _places(layout, self._memory.mapped)


def snapshot_size(tensors: Mapping[str, Tensor], *, gather: bool = False) -> int:
    """Size in bytes of a copy of the tensors on this rank."""
    return _size(_layout(tensors, gather=gather))


def whole(tensor: Tensor) -> Tensor:
    """Gather a whole tensor on every rank. Every rank must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _copy(place: Tensor, source: Tensor) -> None:
    with torch.no_grad():  # set here, because each thread has its own setting
        place.copy_(source, non_blocking=True)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _like(tensor: Tensor, copy: Tensor, *, gather: bool) -> Tensor:
    """Return the copy, as a DTensor if the original is a DTensor. DTensor.from_local is not used because it would move
    the copy to the mesh's device."""
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
    """Return tensors that use `memory`, each with its own storage: torch.save avoids copying a tensor only if the
    tensor fills its storage."""
    places, offset = {}, 0
    for key, shape, dtype in layout:
        if n := math.prod(shape):
            places[key] = torch.frombuffer(memory, dtype=dtype, count=n, offset=offset).view(shape)
        else:
            places[key] = torch.empty(shape, dtype=dtype)
        offset += _room(shape, dtype)
    return places


class _Memory:
    """Memory of exactly the requested size; torch rounds its pinned memory up to a power of two."""

    def __init__(self, n_bytes: int) -> None:
        self.mapped = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # Without MADV_DONTFORK, a data loader worker that is forked later would keep the old pages, which would double
        # the memory use.
        if hasattr(mmap, "MADV_DONTFORK"):  # Linux only
            self.mapped.madvise(mmap.MADV_DONTFORK)
        self._pinned: int | None = None
        if torch.cuda.is_initialized():
            address = torch.frombuffer(self.mapped, dtype=torch.uint8).data_ptr()
            # Memory that cannot be pinned is used as well, but copies to it are slower.
            if int(_cuda().cudaHostRegister(address, n_bytes, 0)) == 0:
                self._pinned = address
            else:
                with suppress(RuntimeError):  # clears the error, which the next kernel would otherwise raise
                    torch.zeros(1, device="cuda")

    def release(self) -> None:
        """Unpin the memory. The system reclaims the memory when the last tensor that uses it is deleted."""
        if self._pinned is not None:
            _cuda().cudaHostUnregister(self._pinned)


def _cuda() -> Any:
    return torch.cuda.cudart()
