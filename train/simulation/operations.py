"""Tracks the allocations, FLOPs and traffic of torch operations. In a simulation, the operations run without data."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from train.simulation.collectives import Traffic, add_traffic, answer, name_of, parts_of, tensors_of
from train.simulation.storages import Storages

_aten = torch.ops.aten


class TrackedOperations(TorchDispatchMode):
    """Runs operations unchanged, and counts their allocations, FLOPs and traffic."""

    def __init__(self, storages: Storages) -> None:
        super().__init__()
        self.storages = storages
        self.traffic = Counter[Traffic]()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented  # DTensor then calls this method again, with this rank's local tensors
        kwargs = kwargs or {}
        if func.namespace == "c10d":
            return self._collective(func, args, kwargs)
        if name_of(func).endswith("chunk_cat"):
            # This operation copies unsharded gradients to the input of a reduce-scatter.
            for gradient in args[0]:
                self.storages.add(gradient.untyped_storage(), "whole gradients")
        out = self.run(func, args, kwargs)
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        elif name_of(func) == "_grouped_mm":
            self.flops += _grouped_flops(args[0], args[1])
        for each in tree_iter(out):
            if isinstance(each, Tensor) and each.device.type != "meta":
                self.storages.add(each.untyped_storage())
        return out

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)

    def collect(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)

    def _collective(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        add_traffic(self.traffic, func, args)
        for tensor, part in parts_of(func, args):
            self.storages.add(tensor.untyped_storage(), part)
        return self.collect(func, args, kwargs)


class SimulatedOperations(TrackedOperations):
    """Runs operations within a FakeTensorMode, where floating-point tensors have no data. Integer tensors that
    determine sizes have data: documents, labels, and the assignment of tokens to experts. Every expert gets the same
    number of tokens."""

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = list(tensors_of((args, kwargs)))
        if func is _aten._local_scalar_dense.default and isinstance(tensors[0], FakeTensor):
            return 1.0  # a norm or a loss, on which no tensor's size depends
        if _has_data(func, tensors, kwargs):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        out = func(*args, **kwargs)
        if func is _aten.topk.default:
            # These are the experts that the router selects: every expert gets the same number of tokens.
            values, indices = out
            with unset_fake_temporarily():
                indices = torch.arange(indices.numel()).remainder(args[0].shape[-1]).view(indices.shape)
            return values, indices
        return out

    def collect(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with unset_fake_temporarily():
            return answer(func, args)


def _has_data(func: Any, tensors: list[Tensor], kwargs: dict[str, Any]) -> bool:
    if tensors:
        return not any(isinstance(tensor, FakeTensor) or tensor.device.type == "meta" for tensor in tensors)
    dtype = kwargs.get("dtype")
    if dtype is not None:
        return not dtype.is_floating_point
    # Without a dtype, arange returns integers, and other functions return torch's default dtype.
    return name_of(func) == "arange"


def _grouped_flops(a: Tensor, b: Tensor) -> int:
    """The FLOPs of [A, K] x [E, K, N] over the rows of each expert, or of [M, A] x [A, N] over the columns of each
    expert, with 2 FLOPs per multiply-add."""
    return 2 * a.shape[0] * a.shape[1] * b.shape[-1]
