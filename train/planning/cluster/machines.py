"""The nodes and GPUs that a run is planned for, and which of its traffic goes from node to node."""

from dataclasses import dataclass

from data.base.errors import ConfigError
from train.config.schema import TrainConfig
from train.planning.cluster.gpus import Gpu, find_gpu
from train.planning.traffic import Traffic
from train.planning.units import MeshDim

_USUAL_GPUS = 8
"""Of a node with one of GPUS."""
_GROUPED_MM = 8.0
"""The least compute capability of torch's grouped GEMM."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Nodes with as many ranks each as they have GPUs."""

    nodes: int
    gpus: int
    """Of a node."""
    gpu: Gpu | None = None
    """None where it is not known: then no times are predicted."""

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus


def make_cluster(nodes: int | None, gpus: int | None, gpu: str | None) -> Cluster:
    """From --nodes (default: 1), --gpus (default: 8 with --gpu, else 1) and --gpu. Raises ConfigError."""
    for option, value in (("--nodes", nodes), ("--gpus", gpus)):
        if value is not None and value < 1:
            raise ConfigError(f"{option} is {value}, but there must be at least 1")
    found = find_gpu(gpu) if gpu is not None else None
    usual = _USUAL_GPUS if found is not None else 1
    return Cluster(nodes=nodes or 1, gpus=gpus or usual, gpu=found)


def members_in_node(dim: MeshDim, gpus: int) -> int:
    """Ranks of a group of this dimension that share a node of so many GPUs; ranks are numbered node by node."""
    return max(1, min(dim.size, gpus // dim.stride))


def between_nodes(sent: Traffic, gpus: int) -> float:
    """Bytes of it that a rank sends to other nodes, on average: in a ring 1 of the hops of a node's ranks leads to the
    next node; in an all-to-all each rank sends as much to every other."""
    size, inside = sent.dim.size, members_in_node(sent.dim, gpus)
    if inside == size:
        return 0.0
    if sent.kind == "all-to-all":
        return sent.n_bytes * (size - inside) / (size - 1)
    return sent.n_bytes / inside


def check_gpu(config: TrainConfig, gpu: Gpu) -> None:
    """Raises ConfigError where the run is for a CPU, and where torch's grouped GEMM is asked for and cannot compute on
    this GPU, as why_not_grouped_mm of train/models/experts says once a run has the GPU."""
    if config.device == "cpu":
        raise ConfigError(f"is cpu, but --gpu {gpu.name} is given: leave one of them out", key="device")
    if config.model.ffn_config.moe_impl != "grouped_mm":
        return
    why = None
    if gpu.capability < _GROUPED_MM:
        why = f"needs a GPU of compute capability {_GROUPED_MM} or more, and {gpu.name} has {gpu.capability}"
    elif config.precision != "amp_bf16":
        why = f"computes in bfloat16 on a GPU, and precision is {config.precision}"
    if why is not None:
        raise ConfigError(f"is grouped_mm, but torch's grouped GEMM {why}: write auto", key="model.ffn_config.moe_impl")
