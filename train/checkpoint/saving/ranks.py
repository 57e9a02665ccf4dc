"""Communication between ranks while a checkpoint is saved, over separate process groups."""

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
    """A checkpoint could not be written for a reason other than a file system error."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """All ranks of a run. Every rank must call each method. Only one thread at a time may use a process group."""

    group: ProcessGroup | None = None
    """The group of all ranks; None stands for the default group."""
    first_replica: ProcessGroup | None = None
    """The group of the ranks that write tensors under HYBRID_SHARD; None stands for the group of the mesh."""

    @property
    def is_first(self) -> bool:
        return not dist.is_initialized() or dist.get_rank() == 0

    @property
    def world_size(self) -> int:
        return dist.get_world_size() if dist.is_initialized() else 1

    def gather(self, value: T) -> list[T]:
        """Gather each rank's value on every rank."""
        if self.world_size == 1:
            return [value]
        values = [value] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def on_first(self, run: Callable[[], T]) -> T:
        """Call run() on rank 0; return its result, or raise its error, on every rank."""
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
        return value  # pyright: ignore[reportReturnType]: without an error, this is the result of run()

    def on_each(self, run: Callable[[], T]) -> list[T]:
        """Call run() on every rank; return all results, or raise the first rank's error, on every rank."""
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
        """Return, for each flag, whether it is set on any rank. The collective sends only a few bytes, so it can be
        called in every step."""
        if self.world_size == 1:
            return list(flags)
        of_all = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(of_all, op=dist.ReduceOp.MAX, group=self.group)
        return of_all.bool().tolist()

    def writers(self, mesh: DeviceMesh | None) -> tuple[ProcessGroup | None, bool]:
        """Return the group of the ranks that write tensors (None for the default group or a single rank), and whether
        this rank is in the group. mesh: see mesh_of."""
        if mesh is None:
            return None, self.is_first
        if mesh.ndim == 1:
            return self.group, True
        # The mesh has the dimensions (replicas, shards): see train/distributed/build_model.py.
        return self.first_replica or mesh.get_group(1), mesh.get_local_rank(0) == 0


def mesh_of(tensors: Iterable[Tensor]) -> DeviceMesh | None:
    """Return the mesh over which the tensors are sharded, or None if every rank has the whole tensors. The separate
    mesh of the experts (see train/distributed/build_model.py) spans the same ranks and is ignored."""
    meshes = (tensor.device_mesh for tensor in tensors if isinstance(tensor, DTensor))
    return next((mesh for mesh in meshes if "expert" not in (mesh.mesh_dim_names or ())), None)


def separate_ranks(timeout: float, *, replicas: int = 1) -> Ranks:
    """Create Ranks with separate process groups. Every rank must call this. The groups always use gloo, because NCCL
    operations would be queued on the GPU together with the operations of the training steps.

    timeout: in seconds. replicas: number of replicas of the model (HYBRID_SHARD).
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return Ranks()
    wait = timedelta(seconds=timeout)
    group, first_replica = dist.new_group(backend="gloo", timeout=wait), None
    if replicas > 1:
        first_replica = dist.new_group([*range(dist.get_world_size() // replicas)], backend="gloo", timeout=wait)
    # For ranks that are not in a group, torch returns a number instead of the group.
    of_mine = [each if isinstance(each, ProcessGroup) else None for each in (group, first_replica)]
    return Ranks(group=of_mine[0], first_replica=of_mine[1])


def for_others(error: Exception) -> Exception:
    """Return an error that can be sent to other ranks. Errors of this framework and OSError are returned unchanged; all
    other errors are converted to SaveFailed."""
    if isinstance(error, ConfigError | DataError | OSError | SaveFailed):
        return error
    return SaveFailed(f"a checkpoint could not be written: {type(error).__name__}: {error}")
