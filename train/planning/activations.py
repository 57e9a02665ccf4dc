"""The memory of a block's tensors in forward and backward, computed from the config. Does not import torch.

The formulas follow train/models with the kernels that are used on a GPU: the results that autograd keeps, and the other
tensors that exist when memory use is highest. tests/planning/test_peak.py compares the results with those of
train/simulation, which runs the model's code on tensors without data.

Letters: D d_model, W width of queries, keys and values, K experts per token, F ffn_hidden_size, E experts.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from train.config.schema import TrainConfig
from train.models import precision as precisions
from train.models.precision import FORMATS, NF4_BLOCK, NF4_BLOCK_BYTES, Precision

_INT, _FP32 = 8, 4


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A point in time at which a block's memory use may be highest."""

    n_bytes: float
    """Activations of the block, including gradients of activations, in addition to those kept by earlier blocks."""
    expert_gradients: int = 0
    """The number of weights among w1, v1 and w2 whose gradients are not reduced yet."""
    other_gradients: bool = False
    """Whether the attention weights have gradients that are not reduced yet."""


@dataclass(frozen=True, kw_only=True)
class BlockBytes:
    """Bytes of one block's tensors for the tokens of a microbatch."""

    kept: float
    """Tensors kept from the block's forward pass until its backward pass."""
    retained: float
    """The part of the kept and recomputed tensors that stays in memory after the block's backward pass, until the
    backward pass of the model is complete, because the graph keeps the inputs of checkpointing."""
    unreached: float
    """The part of `kept` that is not needed if gradients flow back only as far as the block's experts."""
    kept_unreached: float
    """The value of `kept` for a block in which gradients flow back only as far as its experts."""
    stream: float
    """The residual stream [tokens, D] at the input or output of the block, or its gradient."""
    forward: float
    """The maximum number of bytes during the block's forward pass."""
    backward: tuple[Moment, ...]
    """The points in the block's backward pass at which the maximum can occur."""
    exchanged: float
    """With expert parallelism, the bytes of the tokens from other ranks, of the experts' results for these tokens, and
    of the gradients. These bytes are included in `forward` and in `backward`."""


def widths(config: TrainConfig, *, gpu: bool) -> tuple[int, int]:
    """Bytes per element of GEMM operands, and of the residual stream."""
    fsdp, precision = config.fsdp_config, precisions.on_device(config.precision, gpu=gpu)
    gathered = precisions.gathered(precision, fsdp.mixed_precision if fsdp is not None else None)
    kept: Precision | None = gathered
    if config.lora is not None:
        kept = precisions.frozen(config.lora.base_dtype, gathered) or gathered
    return FORMATS[precisions.computed(precision)].n_bytes, FORMATS[gathered or kept or "fp32"].n_bytes


def block_bytes(config: TrainConfig, tokens: int, *, gpu: bool) -> BlockBytes:
    """Return the bytes of one block. tokens: number of tokens of a microbatch."""
    block = _Block(config, tokens, gpu=gpu)
    return BlockBytes(
        kept=float(tokens * block.kept),
        retained=float(tokens * block.retained),
        unreached=float(tokens * block.unreached),
        kept_unreached=float(tokens * block.kept_unreached),
        stream=float(tokens * block.stream),
        forward=tokens * block.forward(),
        backward=tuple(replace(each, n_bytes=tokens * each.n_bytes) for each in block.backward()),
        exchanged=float(tokens * (block.received + block.gradient + 2 * block.rows)) if block.divided else 0.0,
    )


class _Block:
    """The memory of one block, in bytes per token."""

    def __init__(self, config: TrainConfig, tokens: int, *, gpu: bool) -> None:
        model, ffn, fsdp, self.lora = config.model, config.model.ffn_config, config.fsdp_config, config.lora
        policy = fsdp.activation_checkpointing if fsdp is not None else "none"
        self.policy = "block" if policy in (True, "block") else "selective" if policy == "selective" else "none"
        self.divided = fsdp is not None and fsdp.expert_parallel_degree > 1
        self.trained, self.recomputes = self.lora is None, ffn.moe_recompute
        a, x = widths(config, gpu=gpu)
        D, K, E = model.d_model, ffn.moe_top_k, ffn.moe_num_experts
        GC = model.attn_config.kv_n_heads * model.head_dim
        self.normed, self.stream, self.qkv = a * D, x * D, a * (D + 2 * GC)
        self.KD, self.KF = a * K * D, a * K * ffn.ffn_hidden_size
        # The indices of selected experts and sorted assignments; logits, probabilities and weights in fp32; and their
        # gradients in backward.
        self.routed_floats = 2 * _FP32 * E + (3 * _FP32 + a) * K
        self.routing = 4 * _INT * K + self.routed_floats
        self.routed_back = 2 * _INT * K + _FP32 * E + _FP32 * K
        # With expert parallelism: `received` counts the received tokens in the order of the experts, with their indices
        # and weights. `gradient` counts the gradient with respect to the results of the experts.
        self.received = self.KD + 3 * _INT * K + a * K if self.divided else 0
        self.gradient = self.KD if self.divided else 0
        # Results of the experts: one row per token or, with expert parallelism, one row per assignment, because the
        # rank that has the token sums them.
        self.rows = self.KD if self.divided else self.normed
        self.hidden = 0 if self.recomputes else 2 * self.KF
        # A GEMM with a frozen weight does not keep its input.
        first_norm = self.normed if self.lora is None or "Wqkv" in self.lora.targets else 0
        self.attention = self.stream + first_norm + 3 * self.qkv - a * GC + self.normed + _FP32 * (model.n_heads + 4)
        self.between = self.stream + (self.normed if self.trained or not self.divided else 0)
        self.experts = self.routing + self.received + self.hidden
        self.everything = self.attention + self.between + self.experts
        # Two low-rank results of the adapters (of rank r) for each assignment.
        self.low = 2 * a * K * self.lora.r if self.lora is not None else 0
        # Only one 4-bit weight matrix is unpacked at a time. Meanwhile, a copy of its packed codes exists.
        self.opened = self.opening = 0.0
        if self.lora is not None and self.lora.base_dtype == "nf4":
            degree = fsdp.expert_parallel_degree if fsdp is not None else 1
            weight = E // degree * ffn.ffn_hidden_size * D / tokens
            self.opened, self.opening = a * weight, (a + NF4_BLOCK_BYTES / NF4_BLOCK) * weight

    @property
    def kept(self) -> float:
        selective = 2 * self.stream + self.qkv + self.experts
        return {"none": self.everything, "block": self.stream, "selective": selective}[self.policy]

    @property
    def retained(self) -> float:
        return {"none": 0, "block": self.stream, "selective": self.stream + self.normed}[self.policy]

    @property
    def kept_unreached(self) -> float:
        if self.policy == "block":
            return self.kept
        return self.hidden + (self.received if self.divided else self.normed + self.routing - self.routed_floats)

    @property
    def unreached(self) -> float:
        return self.attention + self.routed_floats

    def forward(self) -> float:
        """The maximum memory use in forward, which is reached in the experts or in attention."""
        before = {
            "none": self.kept - self.experts,
            "block": self.stream + self.between,
            "selective": self.kept - self.experts + self.normed,
        }
        attention = self.stream + 2 * self.normed + 3.5 * self.qkv
        return max(before[self.policy] + self.experts + self._in_experts(), attention)

    def _in_experts(self) -> float:
        """The gathered tokens, the activations, the results of the experts, and the sum of the results for each
        token."""
        results = 2 * self.KD + self.rows
        if not self.trained:
            results = max(self.opening, self.opened + self.KD, self.KD + self.rows)
        return 2 * self.KF - self.hidden + self.KF + results

    def backward(self) -> Iterator[Moment]:
        """The points in the block's backward pass at which memory use may be highest. Kept tensors, recomputed tensors,
        and gradients are counted."""
        KD, KF, rows = self.KD, self.KF, self.rows
        there = self.everything
        if self.policy == "selective":
            there = self.kept + (0 if self.divided else self.normed)
        there += self.stream + self.routed_back + self.low + self.gradient - self.hidden
        # The hidden vectors, three tensors for their gradients, and the gathered gradient of the result.
        again = KD if self.recomputes and self.trained else 0
        of_hidden = 2 * KF + max(3 * KF, KF + self.opened, self.opening) + KD + again
        yield Moment(n_bytes=there + of_hidden, expert_gradients=1 if self.trained else 0)
        # The gradients of the hidden vectors, the tokens gathered again, and two gradients of the tokens.
        held = self.hidden if self.policy != "block" else 0
        of_input = 2 * KD + 2 * rows if self.trained else max(self.opening, self.opened + KD) + 3 * rows
        yield Moment(n_bytes=there + held + 2 * KF + of_input, expert_gradients=3 if self.trained else 0)
        if self.trained:
            # Queries, keys and values, and three copies of their gradients.
            late = self.attention + self.between + 3 * self.qkv + 2 * self.stream
            yield Moment(n_bytes=late, expert_gradients=3, other_gradients=True)
        else:
            # The gradient of the first GEMM's result, at the point where only the backward pass of its adapter remains.
            yield Moment(n_bytes=3 * self.stream + self.normed + self.qkv, other_gradients=True)
        if self.policy == "block":
            # The recomputed block, before any of its gradients are computed.
            yield Moment(n_bytes=self.everything + self._in_experts() + self.stream)
