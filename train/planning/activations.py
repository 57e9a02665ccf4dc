"""What a block's tensors take in forward and backward, from the config alone. Imports no torch.

Follows train/models with its kernels on a GPU: which results autograd keeps, and what is alive beside them where most
is. tests/planning/test_peak.py compares it with the same code, run on tensors without data (train/simulation).

Letters: D d_model, W width of queries, keys and values, K experts a token, F ffn_hidden_size, E experts.
"""

from dataclasses import dataclass

from train.config.schema import TrainConfig
from train.models import precision as precisions
from train.models.precision import FORMATS, NF4_BLOCK, NF4_BLOCK_BYTES, Precision

_INT, _FP32 = 8, 4


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One at which much of a block is alive."""

    n_bytes: float
    """Activations of the block, gradients of activations among them, beside what earlier blocks keep."""
    expert_gradients: int = 0
    """How many of w1, v1 and w2 have a gradient that is not reduced yet."""
    other_gradients: bool = False
    """Whether the attention's weights have."""


@dataclass(frozen=True, kw_only=True)
class BlockBytes:
    """Of one block, for the tokens of a microbatch."""

    kept: float
    """From its forward pass to its backward pass."""
    retained: float
    """Of that, and of what was made again, what stays after its backward pass until that of the model is over, because
    the graph holds what checkpointing computes again from."""
    unreached: float
    """What is not kept of it where no gradient flows further than to its experts."""
    kept_unreached: float
    """`kept`, of such a block."""
    stream: float
    """The stream of [tokens, D] that enters and leaves it, and its gradient."""
    forward: float
    """At most in its forward pass."""
    backward: tuple[Moment, ...]
    """What can be the most in its backward pass."""
    exchanged: float
    """Of all that, at most, tokens that came from other ranks, their results and gradients (expert parallelism)."""


def widths(config: TrainConfig, *, gpu: bool) -> tuple[int, int]:
    """Bytes of a number that GEMMs compute, and of one in the stream between blocks."""
    fsdp, precision = config.fsdp_config, precisions.on_device(config.precision, gpu=gpu)
    gathered = precisions.gathered(precision, fsdp.mixed_precision if fsdp is not None else None)
    kept: Precision | None = gathered
    if config.lora is not None:
        kept = precisions.frozen(config.lora.base_dtype, gathered) or gathered
    return FORMATS[precisions.computed(precision)].n_bytes, FORMATS[gathered or kept or "fp32"].n_bytes


def block_bytes(config: TrainConfig, tokens: int, *, gpu: bool) -> BlockBytes:
    """tokens: of a microbatch."""
    model, ffn, fsdp = config.model, config.model.ffn_config, config.fsdp_config
    policy = fsdp.activation_checkpointing if fsdp is not None else False
    divided = fsdp is not None and fsdp.expert_parallel_degree > 1
    a, x = widths(config, gpu=gpu)
    trained = config.lora is None
    D, K, E = model.d_model, ffn.moe_top_k, ffn.moe_num_experts
    GC = model.attn_config.kv_n_heads * model.head_dim
    W = D + 2 * GC
    KD, KF = a * K * D, a * K * ffn.ffn_hidden_size
    # Choices and sorted assignments; in fp32 logits, probabilities and weights; in backward their gradients as well.
    routing = 4 * _INT * K + 2 * _FP32 * E + (3 * _FP32 + a) * K
    routed_back = 2 * _INT * K + _FP32 * E + _FP32 * K
    # Tokens that came for this rank's experts, in their order.
    received = KD + 3 * _INT * K + a * K if divided else 0
    hidden = 0 if ffn.moe_recompute else 2 * KF

    # A frozen GEMM does not keep its input.
    first_norm = a * D if config.lora is None or "Wqkv" in config.lora.targets else 0
    second_norm = a * D if trained or not divided else 0
    attention = x * D + first_norm + 3 * a * W - a * GC + a * D + _FP32 * (model.n_heads + 4)
    between = x * D + second_norm
    experts = routing + received + hidden
    everything = attention + between + experts
    kept, retained = everything, 0
    if policy in (True, "block"):
        kept = retained = x * D
    elif policy == "selective":
        kept, retained = 2 * x * D + a * W + experts, x * D + a * D

    # Of weights in 4 bits one is opened at a time, with a copy of its codes, before it meets tokens.
    opened = opening = 0.0
    if config.lora is not None and config.lora.base_dtype == "nf4":
        degree = fsdp.expert_parallel_degree if fsdp is not None else 1
        weight = E // degree * ffn.ffn_hidden_size * D / tokens
        opened, opening = a * weight, (a + NF4_BLOCK_BYTES / NF4_BLOCK) * weight

    # Gathered tokens, activations, results of each expert, their sum; under expert parallelism nothing is summed here.
    rows = KD if divided else a * D
    in_experts = 2 * KF - hidden + KF + (2 * KD + rows if trained else max(opening, opened + KD, KD + rows))
    alive = {True: x * D + between, "block": x * D + between}.get(policy, kept - experts)
    if policy == "selective":
        alive += a * D
    forward = max(alive + experts + in_experts, x * D + a * D + 3.5 * a * W + a * D)

    unreached = attention + routing - 4 * _INT * K
    # What adapters make of tokens, in a few places.
    low = 2 * a * K * config.lora.r if config.lora is not None else 0

    # At the start of the experts' backward pass: what was kept or has been made again, and the gradient of the result.
    open_ = everything
    if policy == "selective":
        open_ = kept + (0 if divided else a * D)
    held = hidden if policy in (False, "none", "selective") else 0
    gradient = KD if divided else 0
    again = KD if ffn.moe_recompute and trained else 0
    without = open_ - hidden + x * D + routed_back + low
    moments = [
        # Hidden vectors, the gradients of three, the gathered gradient of the result.
        Moment(
            n_bytes=without + 2 * KF + max(3 * KF, KF + opened, opening) + KD + gradient + again, expert_gradients=1
        ),
        # Gradients of the hidden vectors; tokens gathered again, and the gradients of two.
        Moment(
            n_bytes=without
            + held
            + 2 * KF
            + (2 * KD + 2 * rows if trained else max(opening, opened + KD) + 3 * rows)
            + gradient,
            expert_gradients=3,
        ),
        # Queries, keys and values, and their gradients at three places.
        Moment(n_bytes=attention + between + 3 * a * W + 2 * x * D, expert_gradients=3, other_gradients=True),
    ]
    if not trained:
        # The gradient of the first GEMM's result, where only its adapter is left.
        moments[-1] = Moment(n_bytes=2 * x * D + a * D + a * W + x * D, other_gradients=True)
    if policy in (True, "block"):
        # Computed again, before anything has a gradient.
        moments.append(Moment(n_bytes=everything + in_experts + x * D))
    return BlockBytes(
        kept=float(tokens * kept),
        retained=float(tokens * retained),
        unreached=float(tokens * unreached),
        kept_unreached=float(tokens * (kept if policy in (True, "block") else received + hidden)),
        stream=float(tokens * x * D),
        forward=tokens * forward,
        backward=tuple(
            Moment(
                n_bytes=tokens * each.n_bytes,
                expert_gradients=each.expert_gradients if trained else 0,
                other_gradients=each.other_gradients,
            )
            for each in moments
        ),
        exchanged=float(tokens * (received + gradient + 2 * rows)) if divided else 0.0,
    )
