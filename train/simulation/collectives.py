"""The traffic that a simulated rank sends in collectives, and the results of the collectives."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_iter


class Traffic(NamedTuple):
    kind: str
    """`all-gather`, `reduce-scatter`, `all-reduce` or `all-to-all`."""
    dimension: str
    """The mesh dimension of the group, or `world` if the group contains all ranks."""


class _Kind(NamedTuple):
    name: str
    times: int
    """The number of times that each byte is sent. It is 2 for an all-reduce, which consists of a reduce-scatter and an
    all-gather."""


_KINDS = {
    "_allgather_base_": _Kind("all-gather", 1),
    "_reduce_scatter_base_": _Kind("reduce-scatter", 1),
    "allreduce_": _Kind("all-reduce", 2),
    "alltoall_base_": _Kind("all-to-all", 1),
}
_PARTS = {
    "_allgather_base_": ("all-gather buffers", "all-gather buffers"),
    "_reduce_scatter_base_": ("gradients", "reduce buffers"),
    "alltoall_base_": ("exchanged tokens", "exchanged tokens"),
}
"""The memory categories of the output and the input of each collective."""


def parts_of(operation: Any, args: tuple[Any, ...]) -> Iterator[tuple[Tensor, str]]:
    """The tensors of a collective, each with its memory category."""
    if parts := _PARTS.get(name_of(operation)):
        yield from zip(tensors_of(args), parts, strict=False)


def name_of(operation: Any) -> str:
    return operation.overloadpacket.__name__


def add_traffic(traffic: Counter[Traffic], operation: Any, args: tuple[Any, ...]) -> None:
    """Add the bytes that this rank sends in a collective: (n - 1) / n of the total size for n ranks, as in a ring, and
    twice this number for an all-reduce. Barriers and broadcasts at the start of a run are not counted."""
    kind = _KINDS.get(name_of(operation))
    if kind is None:
        return
    group = _group(args)
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors_of(args)]
    # The sizes are those of output and input. In an all-to-all, a rank may receive more than it sends.
    whole = sizes[1] if kind.name == "all-to-all" else max(sizes)
    description = group.group_desc
    dimension = description.removeprefix("mesh_") if description.startswith("mesh_") else "world"
    traffic[Traffic(kind.name, dimension)] += kind.times * whole * (group.size() - 1) // group.size()


def answer(operation: Any, args: tuple[Any, ...]) -> Any:
    """Return the result of a collective, without communication. Unlike the other tensors, which are fake, the token
    counts have data. They are received as if every rank had sent the same counts as this rank, because routing is
    even."""
    # The `Work` object that the fake backend returns for a completed collective. torch 2.7 also has this class.
    from torch._C._distributed_c10d import FakeWork

    name, work = name_of(operation), FakeWork().boxed()
    if name == "alltoall_base_":
        received, sent = args[0], args[1]
        if type(received) is Tensor:
            received.copy_(sent)
        return work
    return work if name == "barrier" else (args[0], work)


def tensors_of(args: Any) -> Iterator[Tensor]:
    return (each for each in tree_iter(args) if isinstance(each, Tensor))


def _group(args: tuple[Any, ...]) -> dist.ProcessGroup:
    boxed = next(each for each in args if isinstance(each, torch.ScriptObject))
    return dist.ProcessGroup.unbox(boxed)
