"""A lower bound on the memory that a rank needs, computed from the config. Does not import torch.

It includes weights, gradients and optimizer states, the largest gathered unit, and the tensors that a microbatch must
keep for its backward pass. It does not include fragmentation of the allocator, the logits of the head, buffers of the
communication library, or the processes themselves. Therefore, a run that is rejected because of this bound could not
run in any case.
"""

import math
from dataclasses import dataclass

from train.config.ranks import train_microbatch_rows
from train.config.schema import FSDPConfig, TrainConfig
from train.models import precision as precisions
from train.models.config import NF4_WEIGHTS
from train.models.precision import FORMATS, NF4_BLOCK, NF4_BLOCK_BYTES, Precision
from train.models.shapes import adapter_shapes, parameter_shapes, parameter_sizes
from train.optim.states import is_frozen, n_moments, trainable_shapes


@dataclass(frozen=True, kw_only=True)
class ResourceEstimate:
    """Lower bound of a rank's memory, in bytes."""

    states: float
    """The rank's share of weights, gradients and optimizer states."""
    gathered: float
    """The largest unit of the model while it is gathered."""
    activations: float
    """Activations of one microbatch that are kept for the backward pass."""

    @property
    def total(self) -> float:
        return self.states + self.gathered + self.activations


def memory_per_rank(config: TrainConfig, world_size: int, *, gpu: bool) -> ResourceEstimate:
    fsdp, precision = config.fsdp_config, precisions.on_device(config.precision, gpu=gpu)
    gathered_in = precisions.gathered(precision, fsdp.mixed_precision if fsdp is not None else None)
    width = FORMATS[precisions.computed(precision)].n_bytes
    shards = 1 if fsdp is None else world_size // (fsdp.data_parallel_replicate_degree or 1)
    gathered = _unpacked_bytes(config, width)
    if fsdp is not None and shards > 1:
        gathered += _gathered_bytes(config, fsdp, _width(gathered_in))
    rows = max(train_microbatch_rows(config, world_size), 1)
    activations = float(width * rows * config.max_seq_len * _kept_per_token(config))
    return ResourceEstimate(
        states=_state_bytes(config, gathered_in) / shards, gathered=gathered, activations=activations
    )


def _width(precision: Precision | None) -> int:
    """Bytes per element in this format. None means the format in which weights are stored."""
    return FORMATS[precision or "fp32"].n_bytes


def _gathered_bytes(config: TrainConfig, fsdp: FSDPConfig, width: float) -> float:
    """Bytes of the largest unit (the embedding, a block, the head), or of all units if they stay gathered."""
    degree, sizes = _expert_ranks(config), _base_bytes(config, width)
    sizes = {name: size / degree if ".experts.mlp." in name else size for name, size in sizes.items()}
    if not fsdp.reshard_after_forward:
        return sum(sizes.values())
    block = sum(size for name, size in sizes.items() if name.startswith("transformer.blocks.0."))
    return max(block, sizes["transformer.wte.weight"])


def _expert_ranks(config: TrainConfig) -> int:
    """Number of ranks that share the experts of a layer."""
    return config.fsdp_config.expert_parallel_degree if config.fsdp_config is not None else 1


def _unpacked_bytes(config: TrainConfig, width: float) -> float:
    """Bytes of the largest unpacked weight, which is w1, v1 or w2 of all experts of a rank. Only one weight is counted,
    because 4-bit weights are unpacked one at a time."""
    model, lora = config.model, config.lora
    packed = lora is not None and lora.base_dtype == "nf4"
    if not packed:
        return 0.0
    shape = parameter_shapes(model)["transformer.blocks.0.ffn.experts.mlp.w1"]
    return width * math.prod(shape) / _expert_ranks(config)


def _base_bytes(config: TrainConfig, width: float) -> dict[str, float]:
    """Bytes of each weight. width: bytes per element of the weights that are not packed in 4 bits."""
    packed = NF4_WEIGHTS if config.lora is not None and config.lora.base_dtype == "nf4" else ()
    return {
        name: size * (NF4_BLOCK_BYTES / NF4_BLOCK if name.endswith(packed) else width)
        for name, size in parameter_sizes(config.model).items()
    }


def _state_bytes(config: TrainConfig, gathered_in: Precision | None) -> float:
    """Total bytes over all ranks: weights in fp32 (4 bytes each) and, for trained weights, a gradient (4) and the
    optimizer's moments (4 each). With adapters, the base weights are in lora.base_dtype."""
    sizes, more = parameter_sizes(config.model), 4 + 4 * n_moments(config.optimizer)
    if config.lora is None:
        return sum(size * (4 if is_frozen(config, name) else 4 + more) for name, size in sizes.items())
    base = _base_bytes(config, _width(precisions.frozen(config.lora.base_dtype, gathered_in)))
    return sum(base.values()) + sum(
        math.prod(shape) * (4 if is_frozen(config, name) else 4 + more)
        for name, shape in adapter_shapes(config.model, config.lora).items()
    )


def _kept_per_token(config: TrainConfig) -> int:
    """Elements per token that are kept for the backward pass. A block keeps its input, the outputs of both norms, the
    residual, queries, keys and values before and after RoPE, the output of attention, and two hidden vectors for each
    active expert (unless they are recomputed). With block checkpointing, it keeps only its input. With selective
    checkpointing, it also keeps the residual and the results of GEMMs. With either kind of checkpointing, the remaining
    tensors exist for one block at a time. Blocks before the first trained parameter keep nothing."""
    model, fsdp = config.model, config.fsdp_config
    blocks = model.n_layers - _blocks_before_training(config)
    if blocks == 0:
        return 0
    qkv = model.d_model + 2 * model.attn_config.kv_n_heads * model.head_dim
    hidden = 0 if model.ffn_config.moe_recompute else 2 * model.ffn_config.moe_top_k * model.ffn_config.ffn_hidden_size
    block = 5 * model.d_model + 2 * qkv + hidden
    if fsdp is not None and fsdp.activation_cpu_offload:
        return block
    if fsdp is None or fsdp.activation_checkpointing in (False, "none"):
        return blocks * block
    kept = 2 * model.d_model + qkv + hidden if fsdp.activation_checkpointing == "selective" else model.d_model
    return blocks * kept + block


def _blocks_before_training(config: TrainConfig) -> int:
    trained = [name for name in trainable_shapes(config) if not is_frozen(config, name)]
    if "transformer.wte.weight" in trained:
        return 0
    numbers = [int(name.split(".")[2]) for name in trained if name.startswith("transformer.blocks.")]
    return min(numbers, default=config.model.n_layers)
