"""What ranks tell one another while a checkpoint is saved, over process groups that nothing else uses."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from data.base.errors import ConfigError, DataError

T = TypeVar("T")


class SaveFailed(RuntimeError):
    """A checkpoint could not be written, and not because of a file system."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """All ranks of a run. Each method is for every rank; one thread at a time may use a process group."""

    group: ProcessGroup | None = None
    """Of all ranks; None: the default one."""
    first_replica: ProcessGroup | None = None
    """Of the ranks that write under HYBRID_SHARD; None: that of the mesh."""

    @property
    def is_first(self) -> bool:
        return not dist.is_initialized() or dist.get_rank() == 0

    @property
    def world_size(self) -> int:
        return dist.get_world_size() if dist.is_initialized() else 1

    def gather(self, value: T) -> list[T]:
        """Each rank's value, on every rank."""
        if self.world_size == 1:
            return [value]
        values = [value] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def on_first(self, run: Callable[[], T]) -> T:
        """What rank 0's run() returns or raises, on every rank."""
        found: list[tuple[T | None, Exception | None]] = [(None, None)]
        if self.is_first:
            try:
                found = [(run(), None)]
            except Exception as error:
                found = [(None, for_others(error))]
        if self.world_size > 1:
            dist.broadcast_object_list(found, src=0, group=self.group)
        ((value, error),) = found
        if error is not None:
            raise error
        return value  # pyright: ignore[reportReturnType]: without an error it is what run returned

    def on_each(self, run: Callable[[], T]) -> list[T]:
        """What every rank's run() returns, or the error of the first one that raises, on every rank."""
        value, error = None, None
        try:
            value = run()
        except Exception as raised:
            error = for_others(raised)
        found = self.gather((value, error))
        if (first := next((error for _, error in found if error is not None), None)) is not None:
            raise first
        return [value for value, _ in found]  # pyright: ignore[reportReturnType]

    def any(self, *flags: bool) -> list[bool]:
        """Of each flag, whether any rank has it. A collective of a few bytes, for every step."""
        if self.world_size == 1:
            return list(flags)
        of_all = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(of_all, op=dist.ReduceOp.MAX, group=self.group)
        return of_all.bool().tolist()

    def writers(self, mesh: DeviceMesh | None) -> tuple[ProcessGroup | None, bool]:
        """The group of the ranks that write tensors (None: the default one, or one rank alone), and whether this rank
        is one of them. mesh: see mesh_of."""
        if mesh is None:
            return None, self.is_first
        if mesh.ndim == 1:
            return self.group, True
        # (replicas, shards): see train/distributed/build_model.py.
        return self.first_replica or mesh.get_group(1), mesh.get_local_rank(0) == 0


def mesh_of(tensors: Iterable[Tensor]) -> DeviceMesh | None:
    """Of the ranks that share the tensors; None where every rank has them whole. Experts have a mesh of their own
    (see train/distributed/build_model.py), over the same ranks, which is not meant here."""
    meshes = (tensor.device_mesh for tensor in tensors if isinstance(tensor, DTensor))
    return next((mesh for mesh in meshes if "expert" not in (mesh.mesh_dim_names or ())), None)


def separate_ranks(timeout: float, *, replicas: int = 1) -> Ranks:
    """With groups of their own, on gloo wherever the run computes: those of NCCL run on the GPU, between the steps'
    own. timeout: in seconds. Every rank has to call it.

    replicas: of the model, under HYBRID_SHARD.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return Ranks()
    wait = timedelta(seconds=timeout)
    group, first_replica = dist.new_group(backend="gloo", timeout=wait), None
    if replicas > 1:
        first_replica = dist.new_group([*range(dist.get_world_size() // replicas)], backend="gloo", timeout=wait)
    # torch gives a number to ranks that are not in a group.
    of_mine = [each if isinstance(each, ProcessGroup) else None for each in (group, first_replica)]
    return Ranks(group=of_mine[0], first_replica=of_mine[1])


def for_others(error: Exception) -> Exception:
    """An error that other ranks can be sent: ours and a file system's as they are, the text of any other one."""
    if isinstance(error, ConfigError | DataError | OSError | SaveFailed):
        return error
    return SaveFailed(f"a checkpoint could not be written: {type(error).__name__}: {error}")
