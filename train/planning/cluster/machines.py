"""The nodes and GPUs that a run is planned for, and the part of the run's traffic that is sent between nodes."""

from dataclasses import dataclass

from data.base.errors import ConfigError
from train.config.schema import TrainConfig
from train.planning.cluster.gpus import Gpu, find_gpu
from train.planning.traffic import Traffic
from train.planning.units import MeshDim

_USUAL_GPUS = 8
"""Number of GPUs per node if --gpu is given but --gpus is not."""
_GROUPED_MM = 8.0
"""Minimum compute capability for torch's grouped GEMM."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A number of identical nodes, with one rank per GPU."""

    nodes: int
    gpus: int
    """Number of GPUs per node."""
    gpu: Gpu | None = None
    """The kind of GPU. If it is unknown (None), no times are predicted."""

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus


def make_cluster(nodes: int | None, gpus: int | None, gpu: str | None) -> Cluster:
    """Create a cluster from the values of --nodes (default: 1), --gpus (default: 8 with --gpu, otherwise 1) and --gpu.
    Raises ConfigError for invalid values."""
    for option, value in (("--nodes", nodes), ("--gpus", gpus)):
        if value is not None and value < 1:
            raise ConfigError(f"{option} is {value}, but it must be at least 1")
    found = find_gpu(gpu) if gpu is not None else None
    usual = _USUAL_GPUS if found is not None else 1
    return Cluster(nodes=nodes or 1, gpus=gpus or usual, gpu=found)


def members_in_node(dim: MeshDim, gpus: int) -> int:
    """The number of ranks in a group along this mesh dimension that are in the same node. Ranks are numbered node by
    node."""
    return max(1, min(dim.size, gpus // dim.stride))


def between_nodes(sent: Traffic, gpus: int) -> float:
    """The bytes that a rank sends to other nodes, on average. In a ring, one rank per node sends to the next node. In
    an all-to-all, each rank sends the same amount to every other rank."""
    size, inside = sent.dim.size, members_in_node(sent.dim, gpus)
    if inside == size:
        return 0.0
    if sent.kind == "all-to-all":
        return sent.n_bytes * (size - inside) / (size - 1)
    return sent.n_bytes / inside


def check_gpu(config: TrainConfig, gpu: Gpu) -> None:
    """Raise ConfigError if the run is for a CPU, or if torch's grouped GEMM is selected but does not support this GPU.
    The checks are the same as in why_not_grouped_mm (train/models/experts), which can run only on the GPU itself."""
    if config.device == "cpu":
        raise ConfigError(f"is cpu, but --gpu {gpu.name} is given: remove one of them", key="device")
    if config.model.ffn_config.moe_impl != "grouped_mm":
        return
    why = None
    if gpu.capability < _GROUPED_MM:
        why = f"requires a GPU with compute capability {_GROUPED_MM} or higher, and {gpu.name} has {gpu.capability}"
    elif config.precision != "amp_bf16":
        why = f"on a GPU supports only bfloat16, and precision is {config.precision}"
    if why is not None:
        raise ConfigError(f"is grouped_mm, but torch's grouped GEMM {why}: use auto", key="model.ffn_config.moe_impl")
