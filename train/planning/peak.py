"""Predicts the peak of a rank's allocated memory from the config. Does not import torch.

memory.py computes the lower bound, below which a run is rejected. The prediction in this module is the maximum over the
points of a step at which memory use may peak. During the backward pass of a block, FSDP2 keeps the weights of this
block, those of the next block, which it prefetches, and the input of the last reduce-scatter until the next
reduce-scatter begins. The weights of the root unit and their gradients are kept for the whole backward pass.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from train.config.ranks import train_microbatch_rows
from train.config.schema import TrainConfig
from train.models.shapes import parameter_sizes
from train.optim.states import n_moments, trained_names
from train.planning.activations import Moment, block_bytes, widths
from train.planning.traffic import microbatches
from train.planning.units import EXPERTS, Unit, first_trained_block, meshes, reduce_bytes, trained_shard_size, units

_FP32 = 4
_LOGITS = {True: 1 << 26, False: 1 << 22}
"""Logits per chunk of the head, on a GPU and on a CPU (train/models/loss.py)."""
_CONTEXT, _NCCL, _FRAGMENTS = 1 << 29, 1 << 30, 0.03
"""Reserved memory on a GPU: the bytes of CUDA's context and of NCCL's buffers, and the fragmentation of the allocator
as a fraction of the allocated memory. These values are assumed, not measured."""


@dataclass(frozen=True, kw_only=True)
class MemoryParts:
    """Bytes of a rank at the peak of a step."""

    weights: float
    """The rank's shards of the weights."""
    gradients: float = 0.0
    """The rank's shards of the gradients that exist at this point."""
    optimizer: float
    """The rank's shards of the optimizer's moments, and temporary tensors of the optimizer's step."""
    activations: float = 0.0
    """Tensors kept for the backward pass, and temporary tensors of the current block."""
    gathered: float = 0.0
    """Gathered weights of the current units."""
    prefetched: float = 0.0
    """The buffer of an all-gather: that of the next unit or, in the forward pass, that of the current unit."""
    reduce_buffers: float = 0.0
    """Unsharded gradients, and the input of the most recent reduce-scatter."""
    logits: float = 0.0
    """The logits of a chunk of tokens, and the unsharded gradient of the head's weight."""
    experts_exchange: float = 0.0
    """Tokens received for this rank's experts, their results and gradients (expert parallelism)."""
    reserve: float = 0.0
    """CUDA's context, NCCL's buffers, and fragmentation. These are assumed values."""

    @property
    def allocated(self) -> float:
        """The total without the reserve."""
        return self.total - self.reserve

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))


def memory_parts(config: TrainConfig, ranks: int, *, gpu: bool) -> MemoryParts:
    """The memory of a rank at the peak of a step, on a GPU or on a CPU. ranks: number of ranks."""
    parts = max(_Step(config, ranks, gpu=gpu).moments(), key=lambda each: each.total)
    reserve = _CONTEXT + (_NCCL if ranks > 1 else 0) + _FRAGMENTS * parts.total if gpu else 0.0
    return replace(parts, reserve=reserve)


@dataclass(frozen=True, kw_only=True)
class _Buffers:
    """The sizes of the buffers and gradients of one FSDP2 unit, in bytes."""

    gathered: float = 0.0
    buffer: float = 0.0
    """The buffer of the all-gather. 0 if the unit is on a single rank."""
    gradients: float = 0.0
    """The unsharded gradients, in the dtype of the gathered weights."""
    reduced: float = 0.0
    """The input of the reduce-scatter."""
    sharded: float = 0.0
    """The gradient shards that a rank keeps."""


class _Step:
    """Models a training step of one rank as a sequence of points in time."""

    def __init__(self, config: TrainConfig, ranks: int, *, gpu: bool) -> None:
        self.config, self.ranks, self.gpu, self.n_layers = config, ranks, gpu, config.model.n_layers
        trained = trained_names(config)
        self.first = max(first_trained_block(config, trained), 0)
        self.trains_embedding = "transformer.wte.weight" in trained
        self.tokens = max(train_microbatch_rows(config, ranks), 1) * config.max_seq_len
        self.block = block_bytes(config, self.tokens, gpu=gpu)
        self.accumulates = microbatches(config, ranks) > 1
        self.resharded = config.fsdp_config is not None and config.fsdp_config.reshard_after_forward

        found = {unit.name: unit for unit in (units(config, gpu=gpu) if config.fsdp_config is not None else ())}
        self.embedding, self.root, self.dense, self.experts = (
            self._buffers(found.pop(name, None)) for name in ("embedding", "root", "block", EXPERTS)
        )
        adapters = [self._buffers(unit) for unit in found.values()]
        self.fetches_late = config.lora is not None and any("attn" in name for name in found)
        # Gradients flow through the attention of the first block only if a parameter in this attention, or before it,
        # is trained.
        first = f"transformer.blocks.{self.first}.norm_attn_norm"
        self.ends_in_experts = not self.trains_embedding and not any(name.startswith(first) for name in trained)
        self.adapts_experts = any(name.startswith(EXPERTS) for name in found)
        self.adapters_sharded = sum(each.sharded for each in adapters)
        self.adapter = max(adapters, key=lambda each: each.gathered, default=_Buffers())
        self.divided = self.experts.gathered > 0
        self.gathered_block = self.dense.gathered + self.experts.gathered + self.adapter.gathered

        model, ffn = config.model, config.model.ffn_config
        a, x = widths(config, gpu=gpu)
        fsdp = config.fsdp_config
        degree = fsdp.expert_parallel_degree if fsdp is not None else 1
        self.replicas = (fsdp.data_parallel_replicate_degree if fsdp is not None else None) or 1
        weight = ffn.moe_num_experts // degree * ffn.ffn_hidden_size * model.d_model
        self.of_expert_weight = float(weight * (x if config.lora is None else 0))
        self.of_attention = self.dense.gradients - (0 if self.divided else 3 * self.of_expert_weight)
        self.head = model.vocab_size * model.d_model if "lm_head.weight" in trained else 0
        # Without FSDP2, autograd keeps a copy of the experts' weights in the compute dtype.
        self.casts = 3.0 * a * weight if config.fsdp_config is None and a != x else 0.0
        self.weights, n_trained = _weights(config, ranks, gpu=gpu), trained_shard_size(config, ranks)
        self.gradients, self.optimizer = _FP32 * n_trained, _FP32 * n_moments(config.optimizer) * n_trained

    def moments(self) -> Iterator[MemoryParts]:
        """The points of a step at which the peak can occur."""
        # Lion computes the updates of all parameters before it applies them.
        updates = self.gradients if self.config.optimizer.name == "decoupled_lionw" else 0.0
        yield MemoryParts(weights=self.weights, gradients=self.gradients, optimizer=self.optimizer + updates)
        yield self._forward()
        yield from self._head()
        for number in range(self.n_layers - 1, self.first - 1, -1):
            for moment in self.block.backward:
                yield self._backward(number, moment)
            yield self._reduce(number)
        if self.trains_embedding:
            yield from self._embedding()

    def _parts(self, *, done: int, gathered: float, prefetched: float, **parts: float) -> MemoryParts:
        """The memory at one point of the step. done: number of blocks whose backward pass is complete."""
        sharded = self.dense.sharded + self.experts.sharded + self.adapters_sharded
        every = self.accumulates or self.config.fsdp_config is None
        # With replicas, the gradients to be added to those of earlier microbatches are kept until backward is complete.
        added = done * sharded if self.accumulates and self.replicas > 1 else 0.0
        if not self.resharded:
            of_blocks = self.n_layers * (self.dense.gathered + self.experts.gathered)
            gathered, prefetched = self.root.gathered + self.embedding.gathered + of_blocks, 0.0
        return MemoryParts(
            weights=self.weights,
            gradients=added + (self.gradients if every else done * sharded),
            optimizer=self.optimizer,
            gathered=gathered,
            prefetched=prefetched,
            **parts,
        )

    def _forward(self) -> MemoryParts:
        """The memory during the forward pass of the last block."""
        kept = self._kept(self.n_layers - 1 - self.first) + self.casts
        return self._parts(
            done=0,
            activations=kept + self.block.forward - self.block.exchanged,
            experts_exchange=self.block.exchanged,
            gathered=self.root.gathered + self.gathered_block,
            # FSDP2 keeps the buffer of a unit until the weights of the next unit have been copied out of their own
            # buffer.
            prefetched=self._last_buffer(),
        )

    def _head(self) -> Iterator[MemoryParts]:
        model = self.config.model
        a, x = widths(self.config, gpu=self.gpu)
        stream, vocab_size = self.tokens * model.d_model, model.vocab_size
        chunk = min(max(128, _LOGITS[self.gpu] // vocab_size // 128 * 128), self.tokens)
        kept = self._kept(self.n_layers - self.first)
        # The residual stream, the output of its norm, and its gradient; the probabilities of a chunk and their
        # gradient; the gradient of the head's weight, and the contribution of one chunk to this gradient.
        yield self._parts(
            done=0,
            activations=kept + stream * (2 * x + 2 * a),
            logits=chunk * vocab_size * (_FP32 + a) + (_FP32 + a) * self.head,
            gathered=self.root.gathered,
            prefetched=self._last_buffer(),
        )
        yield self._parts(
            done=0,
            activations=kept + stream * (2 * x + 3 * a),
            logits=(2 * _FP32 + x) * self.head,
            gathered=self.root.gathered,
            prefetched=self.dense.buffer,
        )

    def _last_buffer(self) -> float:
        """The buffer of the unit that a block gathers last."""
        if self.divided and not self.adapts_experts:
            return self.experts.buffer
        return (self.adapter if self.adapter.gathered else self.dense).buffer

    def _others(self, number: int) -> float:
        """Bytes that all blocks except block `number` keep during the backward pass of block `number`."""
        return self._kept(number - self.first) + (self.n_layers - 1 - number) * self.block.retained

    def _kept(self, blocks: int) -> float:
        """Bytes that the first `blocks` trained blocks keep for the backward pass."""
        unreached = self.block.kept - self.block.kept_unreached if blocks and self.ends_in_experts else 0.0
        return blocks * (self.block.kept + self.casts) - unreached

    def _backward(self, number: int, moment: Moment) -> MemoryParts:
        done = self.n_layers - 1 - number
        late = moment.other_gradients
        whole = self.of_attention if late else 0.0
        if not (self.divided and late):
            whole += moment.expert_gradients * self.of_expert_weight
        waits = self.experts.reduced if self.divided and late else self.dense.reduced if done else 0.0
        # Adapters are separate units, so the next block is prefetched only when the backward pass of the block's first
        # adapter begins.
        fetched = (self.dense if number else self.embedding).buffer if late or not self.fetches_late else 0.0
        return self._parts(
            done=done,
            activations=self._others(number)
            + self.casts
            + moment.n_bytes
            - self.block.exchanged
            - (self.block.unreached if number == self.first and self.ends_in_experts else 0.0),
            experts_exchange=self.block.exchanged,
            gathered=self.root.gathered + self.gathered_block,
            prefetched=fetched,
            reduce_buffers=self.root.gradients + whole + waits,
        )

    def _reduce(self, number: int) -> MemoryParts:
        """The point at which the unsharded gradients have been copied to the buffer of the reduce-scatter, and the
        gathered weights and the buffer of the previous reduce-scatter have been freed."""
        unit = self.experts if self.divided else self.dense
        late = min(moment.n_bytes for moment in self.block.backward) if self.divided else 2 * self.block.stream
        return self._parts(
            done=self.n_layers - 1 - number,
            activations=self._others(number) + self.block.retained + late,
            gathered=self.root.gathered + (self.dense.gathered if self.divided else 0.0),
            prefetched=(self.dense if number else self.embedding).buffer,
            reduce_buffers=self.root.gradients + unit.gradients + unit.reduced + self.adapter.reduced,
        )

    def _embedding(self) -> Iterator[MemoryParts]:
        """The points at which the unsharded gradient of the embedding exists: before and after it is copied to a
        buffer."""
        whole = self.root.gradients + self.embedding.gradients
        for gathered, reduced in ((self.embedding.gathered, self.dense.reduced), (0.0, self.embedding.reduced)):
            yield self._parts(
                done=self.n_layers,
                activations=self.n_layers * self.block.retained + 2 * self.block.stream,
                gathered=self.root.gathered + gathered,
                prefetched=0.0,
                reduce_buffers=whole + reduced,
            )

    def _buffers(self, unit: Unit | None) -> _Buffers:
        fsdp = self.config.fsdp_config
        if unit is None or fsdp is None:
            return _Buffers()
        mesh = meshes(fsdp, self.ranks)
        shards = (mesh.expert_shard if unit.experts else mesh.shard).size
        gathered, n_trained = unit.gathered_bytes(shards), unit.trained_size(shards)
        return _Buffers(
            gathered=gathered,
            buffer=gathered if shards > 1 else 0.0,
            gradients=sum(p.gathered_bytes * math.prod(p.shape) for p in unit.parameters if p.trained),
            reduced=float(reduce_bytes(self.config, gpu=self.gpu) * shards * n_trained),
            sharded=float(_FP32 * n_trained),
        )


def _weights(config: TrainConfig, ranks: int, *, gpu: bool) -> float:
    """Bytes of a rank's weights."""
    if config.fsdp_config is None:
        return float(_FP32 * sum(parameter_sizes(config.model).values()))
    mesh = meshes(config.fsdp_config, ranks)
    return float(
        sum(
            unit.copies * parameter.kept_bytes * parameter.shard_size(shards)
            for unit in units(config, gpu=gpu)
            for shards in [(mesh.expert_shard if unit.experts else mesh.shard).size]
            for parameter in unit.parameters
        )
    )
