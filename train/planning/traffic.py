"""The bytes that a rank sends in a training step, computed from the config. Does not import torch.

A rank sends as many bytes as it receives. In a ring of n ranks, a rank sends (n-1)/n of the output of an all-gather or
of the input of a reduce-scatter, and twice this fraction of the tensor in an all-reduce. In an all-to-all, a rank sends
the part of its data that belongs to other ranks; tokens are assumed to be spread evenly over the experts. Scalars such
as norms and token counts are not included.

For every microbatch, FSDP2 gathers each unit before its forward pass and again before its backward pass, and reduces
the unit's gradients afterwards, because Composer accumulates gradients in the shards. (torch 2.7 keeps the head
gathered between forward and backward.)
"""

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

from train.config.ranks import train_microbatch_rows
from train.config.schema import FSDPConfig, TrainConfig
from train.models import precision as precisions
from train.models.precision import FORMATS
from train.optim.states import trainable_shapes, trained_names
from train.planning.units import MeshDim, first_trained_block, meshes, reduce_bytes, units

Kind = Literal["all-gather", "reduce-scatter", "all-reduce", "all-to-all"]

_COUNT = 8
"""Bytes of an expert's token count (int64)."""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """The traffic of one kind of collective over one dimension of the mesh."""

    kind: Kind
    dim: MeshDim
    n_bytes: float
    """Bytes that a rank sends in a step."""


def traffic(config: TrainConfig, ranks: int, *, gpu: bool = True) -> list[Traffic]:
    """The traffic of a rank in a step, largest first. Empty for one rank. gpu: whether the run computes on GPUs, which
    affects the precision."""
    if config.fsdp_config is None:
        sent = _of_ddp(config, ranks)
    else:
        sent = _of_fsdp(config, config.fsdp_config, ranks, gpu=gpu)
        sent |= _of_experts(config, config.fsdp_config, ranks, gpu=gpu)
    found = [Traffic(kind=kind, dim=dim, n_bytes=n_bytes) for (kind, dim), n_bytes in sent.items() if n_bytes > 0]
    return sorted(found, key=lambda each: -each.n_bytes)


def microbatches(config: TrainConfig, ranks: int) -> int:
    """The number of microbatches of a rank in a step."""
    return -(-config.global_train_batch_size // ranks // train_microbatch_rows(config, ranks))


def counting_forwards(config: TrainConfig, ranks: int) -> int:
    """The number of additional forward passes in a step that only count the tokens per expert (moe_lbl_scope: batch).
    They do not compute the head."""
    ffn, number = config.model.ffn_config, microbatches(config, ranks)
    return number if ffn.moe_lbl_scope == "batch" and ffn.moe_loss_weight > 0 and number > 1 else 0


_Sent = dict[tuple[Kind, MeshDim], float]


def _of_ddp(config: TrainConfig, ranks: int) -> _Sent:
    """The traffic of DDP: gradients in fp32, once per step, because under Composer, DDP reduces them only in the last
    microbatch."""
    trained, sizes = trained_names(config), trainable_shapes(config)
    size = sum(math.prod(shape) for name, shape in sizes.items() if name in trained)
    dim = MeshDim(name="data", size=ranks, stride=1)
    return {("all-reduce", dim): 2 * _others(dim) * FORMATS["fp32"].n_bytes * size}


def _of_fsdp(config: TrainConfig, fsdp: FSDPConfig, ranks: int, *, gpu: bool) -> _Sent:
    sent: _Sent = defaultdict(float)
    mesh = meshes(fsdp, ranks)
    width, number = reduce_bytes(config, gpu=gpu), microbatches(config, ranks)
    counting = counting_forwards(config, ranks)
    for unit in units(config, gpu=gpu):
        dim = mesh.expert_shard if unit.experts else mesh.shard
        again = number if fsdp.reshard_after_forward and (unit.in_backward or unit.prefetched) else 0
        gathers = unit.copies * (number + again + counting)
        reduced = number * unit.copies * width * unit.trained_size(dim.size)
        sent["all-gather", dim] += gathers * _others(dim) * unit.gathered_bytes(dim.size)
        sent["reduce-scatter", dim] += _others(dim) * dim.size * reduced
        sent["all-reduce", mesh.replicate] += 2 * _others(mesh.replicate) * reduced
    return sent


def _of_experts(config: TrainConfig, fsdp: FSDPConfig, ranks: int, *, gpu: bool) -> _Sent:
    """The traffic of expert parallelism. Tokens and their router weights are sent to the experts, and the results are
    sent back. Gradients are sent in the reverse direction. With block checkpointing, the tokens are sent again, but not
    the results."""
    dim = meshes(fsdp, ranks).expert
    if dim.size == 1:
        return {}
    model, ffn = config.model, config.model.ffn_config
    width = FORMATS[precisions.computed(precisions.on_device(config.precision, gpu=gpu))].n_bytes
    assignments = config.global_train_batch_size // ranks * config.max_seq_len * ffn.moe_top_k
    rows, weights = width * assignments * model.d_model, width * assignments
    number, counting = microbatches(config, ranks), counting_forwards(config, ranks)
    there = rows + weights + number * _COUNT * ffn.moe_num_experts
    recomputed = there if fsdp.activation_checkpointing in (True, "block") else 0
    reached, flows = _layers_in_backward(config)
    total = (2 if counting else 1) * model.n_layers * (there + rows)
    total += reached * (recomputed + rows) + flows * (rows + weights)
    return {("all-to-all", dim): _others(dim) * total}


def _layers_in_backward(config: TrainConfig) -> tuple[int, int]:
    """Return two numbers: the number of layers whose experts have a backward pass and, of these layers, the number in
    which the input of the experts gets a gradient because a trained parameter precedes it."""
    n_layers, trained = config.model.n_layers, trained_names(config)
    first = max(first_trained_block(config, trained), 0)
    before = ("transformer.wte.", f"transformer.blocks.{first}.norm_attn_norm.")
    flows = any(name.startswith(before) for name in trained)
    return n_layers - first, n_layers - first - (0 if flows or first == n_layers else 1)


def _others(dim: MeshDim) -> float:
    """The fraction of the ranks along this dimension that are not this rank: (size - 1) / size."""
    return (dim.size - 1) / dim.size
