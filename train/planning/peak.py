"""The most memory that a rank has allocated at a time, from the config alone. Imports no torch.

memory.py has the lower bound, below which a run is refused; this is the prediction.
"""

from dataclasses import dataclass, fields

from train.config.ranks import train_microbatch_rows
from train.config.schema import FSDPConfig, TrainConfig
from train.models import precision as precisions
from train.models.precision import FORMATS
from train.models.shapes import parameter_sizes
from train.optim.states import n_moments, trained_names
from train.planning.memory import memory_per_rank
from train.planning.units import meshes, reduce_bytes, units

_FP32 = 4
_LOGITS = {True: 1 << 26, False: 1 << 22}
"""Of a chunk of the head, on a GPU and on a CPU (train/models/loss.py)."""
_CONTEXT, _NCCL, _FRAGMENTS = 1 << 29, 1 << 30, 0.03
"""What is reserved on a GPU: CUDA's context, NCCL's buffers, and of all else what lies between the allocator's blocks.
Assumed, not measured."""


@dataclass(frozen=True, kw_only=True)
class MemoryParts:
    """Bytes of a rank at the peak of a step, which is in the backward pass."""

    weights: float
    """Its shards of the weights."""
    gradients: float
    """Its shards of the gradients."""
    optimizer: float
    """Its shards of the optimizer's moments."""
    activations: float
    """Kept for the backward pass, and what the block that is computed needs meanwhile."""
    gathered: float
    """The weights of the unit that is computed."""
    prefetched: float
    """The weights of the unit that comes next."""
    reduce_buffers: float
    """A block's whole gradients, and their copy in the precision in which they are reduced."""
    logits: float
    """Of a chunk of tokens, with the whole gradient of the head's weight."""
    experts_exchange: float
    """Tokens that came for this rank's experts, their results and gradients (expert parallelism)."""
    reserve: float
    """CUDA's context, NCCL's buffers, gaps between the allocator's blocks: assumed."""

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))


def memory_parts(config: TrainConfig, ranks: int, *, gpu: bool) -> MemoryParts:
    """What a rank of so many has allocated at the peak of a step, on a GPU or on a CPU."""
    bound = memory_per_rank(config, ranks, gpu=gpu)
    fsdp = config.fsdp_config
    weights, trained = _states(config, ranks, gpu=gpu)
    gathered, gradients = _of_block(config, fsdp, ranks, gpu=gpu) if fsdp is not None else (0.0, 0.0)
    whole = fsdp is not None and not fsdp.reshard_after_forward
    parts = {
        "weights": weights,
        "gradients": _FP32 * trained,
        "optimizer": _FP32 * n_moments(config.optimizer) * trained,
        "activations": bound.activations,
        "gathered": bound.gathered if whole else gathered,
        "prefetched": 0.0 if whole or config.model.n_layers == 1 else gathered,
        "reduce_buffers": gradients,
        "logits": _logits(config, ranks, gpu=gpu),
        "experts_exchange": _exchanged(config, ranks, gpu=gpu),
    }
    reserve = _CONTEXT + (_NCCL if ranks > 1 else 0) + _FRAGMENTS * sum(parts.values()) if gpu else 0.0
    return MemoryParts(**parts, reserve=reserve)


def _states(config: TrainConfig, ranks: int, *, gpu: bool) -> tuple[float, float]:
    """Bytes of a rank's weights, and how many numbers of them are trained."""
    if config.fsdp_config is None:
        trained = trained_names(config)
        sizes = parameter_sizes(config.model)
        return float(_FP32 * sum(sizes.values())), sum(size for name, size in sizes.items() if name in trained)
    mesh, kept, numbers = meshes(config.fsdp_config, ranks), 0.0, 0
    for unit in units(config, gpu=gpu):
        shards = (mesh.expert_shard if unit.experts else mesh.shard).size
        kept += unit.copies * sum(p.kept_bytes * p.shard_size(shards) for p in unit.parameters)
        numbers += unit.copies * unit.trained_size(shards)
    return kept, numbers


def _of_block(config: TrainConfig, fsdp: FSDPConfig, ranks: int, *, gpu: bool) -> tuple[float, float]:
    """Bytes of the last block's gathered weights, and of its gradients before they are reduced."""
    mesh = meshes(fsdp, ranks)
    # Of blocks in which different parameters are trained, the last kind.
    of_block = {
        unit.name: (unit, (mesh.expert_shard if unit.experts else mesh.shard).size)
        for unit in units(config, gpu=gpu)
        if unit.of_block and unit.in_backward
    }
    if mesh.shard.size == 1:
        return 0.0, 0.0
    gathered = sum(unit.gathered_bytes(shards) for unit, shards in of_block.values())
    trained = sum(p.size for unit, _ in of_block.values() for p in unit.parameters if p.trained)
    computed = FORMATS[precisions.computed(precisions.on_device(config.precision, gpu=gpu))].n_bytes
    reduced = reduce_bytes(config, gpu=gpu)
    return gathered, trained * (computed + reduced)


def _tokens(config: TrainConfig, ranks: int) -> int:
    return max(train_microbatch_rows(config, ranks), 1) * config.max_seq_len


def _logits(config: TrainConfig, ranks: int, *, gpu: bool) -> float:
    model = config.model
    chunk = max(128, _LOGITS[gpu] // model.vocab_size // 128 * 128)
    logits = 2 * _FP32 * min(chunk, _tokens(config, ranks)) * model.vocab_size
    whole = "lm_head.weight" in trained_names(config)
    return float(logits + (_FP32 * model.vocab_size * model.d_model if whole else 0))


def _exchanged(config: TrainConfig, ranks: int, *, gpu: bool) -> float:
    fsdp, model = config.fsdp_config, config.model
    if fsdp is None or fsdp.expert_parallel_degree == 1:
        return 0.0
    width = FORMATS[precisions.computed(precisions.on_device(config.precision, gpu=gpu))].n_bytes
    return 3.0 * width * _tokens(config, ranks) * model.ffn_config.moe_top_k * model.d_model
