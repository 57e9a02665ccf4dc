"""The units that FSDP2 gathers and reduces, from the config alone (see train/distributed/build_model.py). Imports no
torch."""

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
"""The module of a block that has its experts."""


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
    """In the model, or within its block."""
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
    """A module that fully_shard was called on, and those of other blocks that are like it."""

    name: str
    """Of the module in a block, such as `norm_attn_norm.attn.Wqkv.lora`; `block` for what the block's own unit has,
    `embedding`, and `root` for the last norm and the head."""
    copies: int
    """How many such units there are: one a block."""
    parameters: tuple[Parameter, ...]
    in_backward: bool
    """Whether a gradient flows through it."""
    prefetched: bool = False
    """Whether it is gathered in backward nevertheless: FSDP2 fetches the unit that comes before the one that is
    computed, and before the first that is reached too."""

    @property
    def of_block(self) -> bool:
        return self.name not in ("embedding", "root")

    @property
    def experts(self) -> bool:
        """Whether it is sharded over expert_shard, and not over shard."""
        return self.name == EXPERTS

    def shard_size(self, shards: int) -> int:
        """Numbers in a rank's shards of one of them."""
        return sum(parameter.shard_size(shards) for parameter in self.parameters)

    def gathered_bytes(self, shards: int) -> float:
        """What an all-gather of one of them puts together, with padding."""
        return shards * sum(p.gathered_bytes * p.shard_size(shards) for p in self.parameters)

    def trained_size(self, shards: int) -> int:
        """Numbers of gradients in a rank's shards of one of them."""
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
    """The units of a model under FSDP2. Adapters and, under expert parallelism, experts are units within that of their
    block."""
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
    # Blocks differ in what is trained alone, and in whether backward reaches them.
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
            # Of the units of a block its own ends last.
            prefetched=before_first and name == "block",
        )
        for (reached, before_first, of_kind), copies in kinds.items()
        for name, of_unit in _by_unit(shapes["block"], divided=_expert_ranks(config) > 1).items()
    ]


def trained_shard_size(config: TrainConfig, ranks: int) -> int:
    """Numbers of the gradients that a rank keeps."""
    if config.fsdp_config is None:
        trained, shapes = trained_names(config), parameter_shapes(config.model)
        return sum(math.prod(shape) for name, shape in shapes.items() if name in trained)
    mesh = meshes(config.fsdp_config, ranks)
    shards = {True: mesh.expert_shard.size, False: mesh.shard.size}
    return sum(unit.copies * unit.trained_size(shards[unit.experts]) for unit in units(config, gpu=True))


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


def _expert_ranks(config: TrainConfig) -> int:
    return config.fsdp_config.expert_parallel_degree if config.fsdp_config is not None else 1


def _in_block(number: int, name: str) -> str:
    return f"transformer.blocks.{number}.{name}"


def _shapes_by_place(config: TrainConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    """Of the embedding, of the root, and of one block, whose names begin within it."""
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
    """The module of a block that its parameter of this name is gathered with."""
    if ".lora." in name:
        # Of the experts' adapters one unit, of a linear layer's each its own.
        return name[: name.index(".lora.") + len(".lora")]
    return EXPERTS if divided and name.startswith(EXPERTS) else "block"
