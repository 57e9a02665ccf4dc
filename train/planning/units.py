"""The units that FSDP2 gathers and reduces, from the config alone (see train/distributed/build_model.py). Imports no
torch."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from train.config.schema import FSDPConfig, TrainConfig
from train.models import precision as precisions
from train.models.config import NF4_WEIGHTS
from train.models.precision import FORMATS, NF4_BLOCK, NF4_BLOCK_BYTES
from train.models.shapes import adapter_shapes, parameter_shapes
from train.optim.states import trained_names


@dataclass(frozen=True, kw_only=True)
class MeshDim:
    """A dimension of a device mesh."""

    name: str
    """As train/distributed/build_model.py calls it: shard, replicate, expert_shard, expert; data without FSDP."""
    size: int
    """Ranks in it."""
    stride: int
    """Distance between the numbers of two neighbouring ranks in it."""


@dataclass(frozen=True, kw_only=True)
class Meshes:
    """The dimensions over which a run is divided."""

    shard: MeshDim
    replicate: MeshDim
    expert_shard: MeshDim
    expert: MeshDim


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A parameter of a unit as FSDP2 sees it: under expert parallelism a rank's experts alone."""

    name: str
    shape: tuple[int, ...]
    """Of the numbers, also where they are packed in 4 bits."""
    kept_bytes: float
    """Of a number in the shards."""
    gathered_bytes: float
    """Of a number once it is gathered."""
    trained: bool

    def shard_size(self, shards: int) -> int:
        """Numbers in a rank's shard. FSDP2 divides the first dimension, and pads it."""
        return -(-self.shape[0] // shards) * math.prod(self.shape[1:])

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A module that fully_shard was called on."""

    name: str
    """Of the module; empty for the root, which has the last norm and the head."""
    parameters: tuple[Parameter, ...]
    experts: bool
    """Whether it is sharded over expert_shard, and not over shard."""
    in_backward: bool
    """Whether a gradient flows through it."""

    def shard_size(self, shards: int) -> int:
        """Numbers in a rank's shards of all parameters."""
        return sum(parameter.shard_size(shards) for parameter in self.parameters)

    def gathered_bytes(self, shards: int) -> float:
        """What an all-gather puts together, with padding."""
        return shards * sum(p.gathered_bytes * p.shard_size(shards) for p in self.parameters)

    def trained_size(self, shards: int) -> int:
        """Numbers of gradients in a rank's shards."""
        return sum(p.shard_size(shards) for p in self.parameters if p.trained)


def meshes(fsdp: FSDPConfig, ranks: int) -> Meshes:
    """As make_mesh and make_experts_mesh make them."""
    replicas, degree = fsdp.data_parallel_replicate_degree or 1, fsdp.expert_parallel_degree
    shards = ranks // replicas
    return Meshes(
        shard=MeshDim(name="shard", size=shards, stride=1),
        replicate=MeshDim(name="replicate", size=replicas, stride=shards),
        expert_shard=MeshDim(name="expert_shard", size=shards // degree, stride=degree),
        expert=MeshDim(name="expert", size=degree, stride=1),
    )


def reduce_bytes(config: TrainConfig, *, gpu: bool) -> int:
    """Bytes of a number in which gradients are reduced."""
    fsdp = config.fsdp_config
    if fsdp is None or _gathered_in(config, gpu=gpu) is None:
        return FORMATS["fp32"].n_bytes
    return FORMATS[precisions.reduced(fsdp.mixed_precision)].n_bytes


def units(config: TrainConfig, *, gpu: bool) -> list[Unit]:
    """Every unit of a model under FSDP2, in the order of its forward pass. Adapters and, under expert parallelism,
    experts are units within the unit of their block."""
    fsdp = config.fsdp_config
    assert fsdp is not None, "without FSDP there are no units"
    trained, divided = trained_names(config), fsdp.expert_parallel_degree > 1
    first = first_trained_block(config, trained)
    of_unit: dict[str, list[Parameter]] = {}
    for parameter in _parameters(config, trained, gpu=gpu):
        of_unit.setdefault(_unit_of(parameter.name, divided=divided), []).append(parameter)

    def is_reached(name: str) -> bool:
        if name == "transformer.wte":
            return first < 0
        return not name or int(name.split(".")[2]) >= first

    return [
        Unit(
            name=name,
            parameters=tuple(parameters),
            experts=name.endswith(".experts.mlp"),
            in_backward=is_reached(name),
        )
        for name, parameters in of_unit.items()
    ]


def first_trained_block(config: TrainConfig, trained: Iterable[str]) -> int:
    """The first block that backward reaches; -1 when it reaches the embedding, n_layers when only the head."""
    names = set(trained)
    if "transformer.wte.weight" in names:
        return -1
    numbers = [int(name.split(".")[2]) for name in names if name.startswith("transformer.blocks.")]
    return min(numbers, default=config.model.n_layers)


def _gathered_in(config: TrainConfig, *, gpu: bool) -> precisions.Precision | None:
    fsdp = config.fsdp_config
    precision = precisions.on_device(config.precision, gpu=gpu)
    return precisions.gathered(precision, fsdp.mixed_precision if fsdp is not None else None)


def _parameters(config: TrainConfig, trained: set[str], *, gpu: bool) -> Iterator[Parameter]:
    model, lora, fsdp = config.model, config.lora, config.fsdp_config
    gathered_in = _gathered_in(config, gpu=gpu)
    kept = precisions.frozen(lora.base_dtype, gathered_in) if lora is not None else None
    kept_bytes, gathered_bytes = FORMATS[kept or "fp32"].n_bytes, FORMATS[gathered_in or "fp32"].n_bytes
    packed = NF4_WEIGHTS if lora is not None and lora.base_dtype == "nf4" else ()
    degree = fsdp.expert_parallel_degree if fsdp is not None else 1
    adapters = adapter_shapes(model, lora) if lora is not None else {}
    for name, shape in {**parameter_shapes(model), **adapters}.items():
        is_adapter = name in adapters
        of_base = NF4_BLOCK_BYTES / NF4_BLOCK if name.endswith(packed) else None
        if ".experts.mlp." in name and not is_adapter:
            shape = (shape[0] // degree, *shape[1:])
        yield Parameter(
            name=name,
            shape=shape,
            kept_bytes=of_base or (FORMATS["fp32"].n_bytes if is_adapter else kept_bytes),
            gathered_bytes=of_base or gathered_bytes,
            trained=name in trained,
        )


def _unit_of(name: str, *, divided: bool) -> str:
    """The module that a parameter of this name is gathered with."""
    if ".lora." in name:
        # Of the experts' adapters one unit, of a linear layer's each its own.
        return name[: name.index(".lora.") + len(".lora")]
    if name.startswith("transformer.blocks."):
        experts = ".ffn.experts.mlp"
        if divided and experts in name:
            return name[: name.index(experts) + len(experts)]
        return ".".join(name.split(".")[:3])
    return "transformer.wte" if name == "transformer.wte.weight" else ""
