"""Counts the allocations and multiplications of a computation, on any device. Used by benchmarks and tests."""

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_GEMMS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm_")


class Watch(TorchDispatchMode):
    """Tracks the allocated bytes, their peak, and the number and FLOPs of GEMMs within the context."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak, self.gemms, self.flops = 0, 0, 0, 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = str(func.overloadpacket).replace(".", "::")
        if name in _GEMMS:
            tensors = [arg for arg in args if isinstance(arg, Tensor)]
            a, b = tensors[-2:]  # the first argument of addmm is added to the product
            self.gemms += 1
            self.flops += 2 * a.numel() * b.shape[-1]
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            storage = leaf.untyped_storage() if isinstance(leaf, Tensor) else None
            if storage is not None and storage._cdata not in given and storage._cdata not in self.seen:
                self.seen.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        return result

    def _freed(self, key: int, nbytes: int) -> None:
        self.seen.discard(key)
        self.now -= nbytes
