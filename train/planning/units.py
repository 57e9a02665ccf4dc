"""The units that FSDP2 gathers and reduces (see train/distributed/build_model.py), computed from the config. Does not
import torch."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from train.config.schema import FSDPConfig, TrainConfig
from train.models import precision as precisions
from train.models.config import NF4_WEIGHTS
from train.models.precision import FORMATS, NF4_BLOCK, NF4_BLOCK_BYTES
from train.models.shapes import adapter_shapes, parameter_shapes
from train.optim.states import trained_names

EXPERTS = "ffn.experts.mlp"
"""The path, within a block, of the module that contains the block's experts."""


@dataclass(frozen=True, kw_only=True)
class MeshDim:
    """A dimension of a device mesh."""

    name: str
    """The name in train/distributed/build_model.py: shard, replicate, expert_shard or expert. Without FSDP, `data`."""
    size: int
    """Number of ranks."""
    stride: int
    """The difference between the global ranks of neighbors along this dimension."""


@dataclass(frozen=True, kw_only=True)
class Meshes:
    """The mesh dimensions of a run."""

    shard: MeshDim
    replicate: MeshDim
    expert_shard: MeshDim
    expert: MeshDim


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A parameter of an FSDP2 unit. With expert parallelism, a parameter of the experts contains only the rank's own
    experts."""

    name: str
    """The name in the model, or within its block."""
    shape: tuple[int, ...]
    """The shape before packing, if the weight is packed in 4 bits."""
    kept_bytes: float
    """Bytes per element in the shards."""
    gathered_bytes: float
    """Bytes per element in the gathered weights."""
    trained: bool

    def shard_size(self, shards: int) -> int:
        """Number of elements in a rank's shard. FSDP2 splits the first dimension, with padding."""
        return -(-self.shape[0] // shards) * math.prod(self.shape[1:])

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A module on which fully_shard is called. One object represents the same module of all similar blocks."""

    name: str
    """The module within a block, such as `norm_attn_norm.attn.Wqkv.lora`, or one of `block` (the unit of the block
    itself), `embedding`, and `root` (the last norm and the head)."""
    copies: int
    """Number of these units: one for each of the similar blocks."""
    parameters: tuple[Parameter, ...]
    in_backward: bool
    """Whether backward computes gradients in this unit."""
    prefetched: bool = False
    """Whether the unit is gathered in backward although no gradient flows through it. FSDP2 prefetches the unit that
    precedes the current one, so it also gathers the unit that precedes the first unit with a gradient."""

    @property
    def of_block(self) -> bool:
        return self.name not in ("embedding", "root")

    @property
    def experts(self) -> bool:
        """Whether the unit is sharded over expert_shard instead of shard."""
        return self.name == EXPERTS

    def shard_size(self, shards: int) -> int:
        """Number of elements of one unit in a rank's shards."""
        return sum(parameter.shard_size(shards) for parameter in self.parameters)

    def gathered_bytes(self, shards: int) -> float:
        """Bytes of the output of an all-gather of one unit, including padding."""
        return shards * sum(p.gathered_bytes * p.shard_size(shards) for p in self.parameters)

    def trained_size(self, shards: int) -> int:
        """Number of gradient elements of one unit in a rank's shards."""
        return sum(p.shard_size(shards) for p in self.parameters if p.trained)


def meshes(fsdp: FSDPConfig, ranks: int) -> Meshes:
    """The dimensions of the meshes that make_mesh and make_experts_mesh create."""
    replicas, degree = fsdp.data_parallel_replicate_degree or 1, fsdp.expert_parallel_degree
    shards = ranks // replicas
    return Meshes(
        shard=MeshDim(name="shard", size=shards, stride=1),
        replicate=MeshDim(name="replicate", size=replicas, stride=shards),
        expert_shard=MeshDim(name="expert_shard", size=shards // degree, stride=degree),
        expert=MeshDim(name="expert", size=degree, stride=1),
    )


def reduce_bytes(config: TrainConfig, *, gpu: bool) -> int:
    """Bytes per element of gradients when they are reduced."""
    fsdp = config.fsdp_config
    if fsdp is None or _gathered_in(config, gpu=gpu) is None:
        return FORMATS["fp32"].n_bytes
    return FORMATS[precisions.reduced(fsdp.mixed_precision)].n_bytes


def units(config: TrainConfig, *, gpu: bool) -> list[Unit]:
    """The FSDP2 units of a model. The unit of a block contains further units: the adapter of each linear layer, the
    adapters of the experts and, with expert parallelism, the experts."""
    trained, shapes = trained_names(config), _shapes_by_place(config)
    first = first_trained_block(config, trained)
    outer = [
        Unit(
            name=name,
            copies=1,
            parameters=_parameters(config, shapes[name], trained, gpu=gpu),
            in_backward=reached,
            prefetched=name == "embedding" and first == 0,
        )
        for name, reached in {"embedding": first < 0, "root": True}.items()
    ]
    # Blocks differ only in their trained parameters, and in whether backward reaches them.
    kinds = Counter(
        (
            number >= first,
            number == first - 1,
            frozenset(name for name in shapes["block"] if _in_block(number, name) in trained),
        )
        for number in range(config.model.n_layers)
    )
    return outer + [
        Unit(
            name=name,
            copies=copies,
            parameters=_parameters(config, of_unit, of_kind, gpu=gpu),
            in_backward=reached,
            # The block's own unit is the last of its units in forward order.
            prefetched=before_first and name == "block",
        )
        for (reached, before_first, of_kind), copies in kinds.items()
        for name, of_unit in _by_unit(shapes["block"], divided=_expert_ranks(config) > 1).items()
    ]


def trained_shard_size(config: TrainConfig, ranks: int) -> int:
    """Number of gradient elements that a rank keeps."""
    if config.fsdp_config is None:
        trained, shapes = trained_names(config), parameter_shapes(config.model)
        return sum(math.prod(shape) for name, shape in shapes.items() if name in trained)
    mesh = meshes(config.fsdp_config, ranks)
    shards = {True: mesh.expert_shard.size, False: mesh.shard.size}
    return sum(unit.copies * unit.trained_size(shards[unit.experts]) for unit in units(config, gpu=True))


def first_trained_block(config: TrainConfig, trained: Iterable[str]) -> int:
    """The number of the first block that backward reaches. -1 if it reaches the embedding, n_layers if it reaches only
    the root."""
    names = set(trained)
    if "transformer.wte.weight" in names:
        return -1
    numbers = [int(name.split(".")[2]) for name in names if name.startswith("transformer.blocks.")]
    return min(numbers, default=config.model.n_layers)


def _gathered_in(config: TrainConfig, *, gpu: bool) -> precisions.Precision | None:
    fsdp = config.fsdp_config
    precision = precisions.on_device(config.precision, gpu=gpu)
    return precisions.gathered(precision, fsdp.mixed_precision if fsdp is not None else None)


def _expert_ranks(config: TrainConfig) -> int:
    return config.fsdp_config.expert_parallel_degree if config.fsdp_config is not None else 1


def _in_block(number: int, name: str) -> str:
    return f"transformer.blocks.{number}.{name}"


def _shapes_by_place(config: TrainConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    """The shapes of the embedding, of the root, and of one block, with names relative to the block."""
    first, shapes = _in_block(0, ""), parameter_shapes(config.model)
    if config.lora is not None:
        shapes = {**shapes, **adapter_shapes(config.model, config.lora)}
    outer = {name: shape for name, shape in shapes.items() if not name.startswith("transformer.blocks.")}
    return {
        "embedding": {"transformer.wte.weight": outer.pop("transformer.wte.weight")},
        "root": outer,
        "block": {name.removeprefix(first): shape for name, shape in shapes.items() if name.startswith(first)},
    }


def _parameters(
    config: TrainConfig, shapes: Mapping[str, tuple[int, ...]], trained: Collection[str], *, gpu: bool
) -> tuple[Parameter, ...]:
    lora, gathered_in = config.lora, _gathered_in(config, gpu=gpu)
    kept = precisions.frozen(lora.base_dtype, gathered_in) if lora is not None else None
    kept_bytes, gathered_bytes = FORMATS[kept or "fp32"].n_bytes, FORMATS[gathered_in or "fp32"].n_bytes
    packed = NF4_WEIGHTS if lora is not None and lora.base_dtype == "nf4" else ()
    found = []
    for name, shape in shapes.items():
        of_base = NF4_BLOCK_BYTES / NF4_BLOCK if name.endswith(packed) else None
        is_adapter = ".lora." in name
        if name.startswith(EXPERTS) and not is_adapter:
            shape = (shape[0] // _expert_ranks(config), *shape[1:])
        found.append(
            Parameter(
                name=name,
                shape=shape,
                kept_bytes=of_base or (FORMATS["fp32"].n_bytes if is_adapter else kept_bytes),
                gathered_bytes=of_base or gathered_bytes,
                trained=name in trained,
            )
        )
    return tuple(found)


def _by_unit(shapes: Mapping[str, tuple[int, ...]], *, divided: bool) -> dict[str, dict[str, tuple[int, ...]]]:
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        found.setdefault(_unit_of(name, divided=divided), {})[name] = shape
    return found


def _unit_of(name: str, *, divided: bool) -> str:
    """The path, within a block, of the module whose unit contains the parameter of this name."""
    if ".lora." in name:
        # The adapters of a layer's experts are one unit. The adapter of each linear layer is a separate unit.
        return name[: name.index(".lora.") + len(".lora")]
    return EXPERTS if divided and name.startswith(EXPERTS) else "block"
