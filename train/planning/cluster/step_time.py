"""Predicts the time of a training step on a cluster from the peak values in data sheets and from assumed efficiencies.
Nothing is measured.

The time of a step is the sum of: GEMMs and attention, at a fraction of the peak TFLOPs; all other operations of the
model, at a fraction of the memory bandwidth; gathers and reductions of weights, if they do not overlap with
computation; the exchange of tokens for expert parallelism, which does not overlap; and the optimizer, which is limited
by memory bandwidth. The following are not included: kernel launches and latencies of collectives, which dominate in
small models; waiting for data or slower ranks; an uneven load of the experts; checkpoints and evaluations.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from train.config.ranks import train_microbatch_rows
from train.config.schema import TrainConfig
from train.models import precision as precisions
from train.models.flops import Flops, Recompute, flops_by_part, flops_per_token
from train.models.precision import FORMATS
from train.optim.states import n_moments, trained_names
from train.planning.cluster.gpus import Gpu
from train.planning.cluster.machines import Cluster, between_nodes
from train.planning.traffic import Traffic, counting_forwards, microbatches
from train.planning.units import trained_shard_size


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """The efficiency of a GPU relative to its data sheet. These are estimates and not measurements."""

    gemm: float = 0.65
    """Fraction of the peak TFLOPs that the GEMMs of attention, head and adapters reach."""
    experts: float = 0.55
    """Fraction of the peak TFLOPs that the experts' grouped GEMMs reach with an even load."""
    scores: float = 0.5
    """Fraction of the peak TFLOPs that fused attention reaches. Fused attention computes only the causal half of a
    row's scores."""
    memory: float = 0.75
    """Fraction of the memory bandwidth that is reached."""
    link: float = 0.75
    """Fraction of the links' bandwidth that is reached, within a node and between nodes."""
    overlap: float = 0.9
    """Fraction of the computation time during which gathers and reductions can run."""
    host: float = 20e9
    """Bytes per second between GPU and host in one direction (activation_cpu_offload)."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """The predicted time of a step in seconds, by category."""

    experts: float
    other_gemms: float
    attention: float
    elementwise: float
    """Norms, activation functions, copies of tokens and additions, which are limited by memory bandwidth."""
    inside: float
    """Communication within a node, without the part that overlaps with computation."""
    between: float
    """Communication between nodes, without the part that overlaps with computation."""
    optimizer: float
    """Gradient clipping and the optimizer, which are limited by memory bandwidth."""
    offload: float
    """Transfer of activations to the host and back."""
    hidden: float
    """Communication that overlaps with computation. It is not part of the total."""

    @property
    def total(self) -> float:
        return self.computation + self.inside + self.between + self.optimizer + self.offload

    @property
    def computation(self) -> float:
        return self.experts + self.other_gemms + self.attention + self.elementwise

    @property
    def bound(self) -> str:
        """The bottleneck of the step: the resource that accounts for the largest part of the time."""
        shares = {
            "compute": self.experts + self.other_gemms + self.attention,
            "memory bandwidth": self.elementwise + self.optimizer,
            "links inside a node": self.inside,
            "links between nodes": self.between,
            "link to the host": self.offload,
        }
        return max(shares, key=lambda name: shares[name])


def recompute_policy(config: TrainConfig) -> Recompute:
    """The value of activation_checkpointing, with true and false converted to `block` and `none`."""
    policy = config.fsdp_config.activation_checkpointing if config.fsdp_config is not None else "none"
    if isinstance(policy, bool):
        return "block" if policy else "none"
    return policy


def run_flops(config: TrainConfig) -> list[Flops]:
    """FLOPs per token in a step of this run."""
    return flops_by_part(
        config.model,
        config.max_seq_len,
        config.lora,
        trained=trained_names(config),
        recompute=recompute_policy(config),
    )


def tokens_per_rank(config: TrainConfig, ranks: int) -> int:
    """Number of tokens of a rank in a step, including padding."""
    return config.global_train_batch_size // ranks * config.max_seq_len


def predict(
    config: TrainConfig,
    cluster: Cluster,
    flops: Sequence[Flops],
    sent: Sequence[Traffic],
    assumed: Assumptions = Assumptions(),
) -> StepTime:
    """Predict a step with these FLOPs per token (run_flops) and this traffic. The cluster's GPU must be known."""
    gpu, tokens = _known(cluster), tokens_per_rank(config, cluster.ranks)
    extra = counting_forwards(config, cluster.ranks) / microbatches(config, cluster.ranks)
    peak = 1e12 * (gpu.bf16_tflops if config.precision == "amp_bf16" else gpu.fp32_tflops)
    work = {
        each.part: tokens * (each.total + (extra * each.forward if each.part != "head" else 0)) / peak for each in flops
    }
    scores, experts = work.pop("scores"), work.pop("experts")
    bandwidth = 1e9 * gpu.memory_bandwidth * assumed.memory
    elementwise = tokens * _elementwise_bytes(config) / bandwidth
    computation = {
        "experts": experts / assumed.experts,
        "other_gemms": sum(work.values()) / assumed.gemm,
        "attention": scores / 2 / assumed.scores,
        "elementwise": elementwise,
    }
    offloaded = _offloaded_bytes(config, cluster.ranks)
    inside, between, hidden = _communication(config, cluster, sent, sum(computation.values()), assumed)
    return StepTime(
        **computation,
        inside=inside,
        between=between,
        hidden=hidden,
        optimizer=_optimizer_bytes(config, cluster.ranks) / bandwidth,
        offload=2 * offloaded / assumed.host,
    )


def model_flops_utilization(config: TrainConfig, cluster: Cluster, seconds: float) -> float:
    """MFU: the FLOPs of forward and backward, with attention over whole rows as in the PaLM paper, divided by the peak
    throughput of all GPUs. Recomputation is not counted."""
    peak = _known(cluster).peak_flops(config.precision)
    tokens = tokens_per_rank(config, cluster.ranks)
    return tokens * flops_per_token(config.model, config.max_seq_len, config.lora) / (seconds * peak)


def _known(cluster: Cluster) -> Gpu:
    assert cluster.gpu is not None, "predicting times requires a known GPU"
    return cluster.gpu


def _communication(
    config: TrainConfig, cluster: Cluster, sent: Sequence[Traffic], computation: float, assumed: Assumptions
) -> tuple[float, float, float]:
    """Return three times in seconds: of communication within nodes and of communication between nodes, both without the
    part that overlaps with computation, and of communication that overlaps with computation.

    A ring is as slow as its slowest link. The first gather and the last reduction cannot overlap with computation.
    Their time is estimated as one block's share of the total.
    """
    gpu = _known(cluster)
    exchange, weights = [0.0, 0.0], [0.0, 0.0]
    for each in sent:
        far = between_nodes(each, cluster.gpus)
        times = (
            (each.n_bytes - far) / (1e9 * gpu.node_link * assumed.link),
            far / (1e9 * gpu.network * assumed.link),
        )
        slower = 1 if times[1] > times[0] else 0
        into = exchange if each.kind == "all-to-all" else weights
        into[slower] += times[slower]
    total = sum(weights)
    exposed = max(total - assumed.overlap * computation, total / config.model.n_layers)
    share = exposed / total if total else 0.0
    return exchange[0] + share * weights[0], exchange[1] + share * weights[1], total - exposed


def _elementwise_bytes(config: TrainConfig) -> float:
    """The bytes per token that are read and written in a step outside of GEMMs: vectors of d_model in the residual
    stream (2 norms, 2 additions), RoPE and clipping of queries, keys and values, copies of tokens to the experts and
    back, and the GLU. The backward pass counts as two forward passes, and recomputation counts as one."""
    model, ffn = config.model, config.model.ffn_config
    width = FORMATS[precisions.computed(config.precision)].n_bytes
    qkv = model.d_model + 2 * model.attn_config.kv_n_heads * model.head_dim
    block = 10 * model.d_model + 4 * qkv + ffn.moe_top_k * (4 * model.d_model + 3 * ffn.ffn_hidden_size)
    passes = {"none": 3.0, "selective": 3.5, "block": 4.0}[recompute_policy(config)]
    return width * (passes * block * model.n_layers + 4 * model.vocab_size)


def _optimizer_bytes(config: TrainConfig, ranks: int) -> float:
    """The bytes that clipping and the optimizer read and write in fp32: gradients are read to compute their norm,
    scaled, and read again; weights and moments are read and written."""
    numbers = trained_shard_size(config, ranks)
    return FORMATS["fp32"].n_bytes * numbers * (1 + 2 + 1 + 2 + 2 * n_moments(config.optimizer))


def _offloaded_bytes(config: TrainConfig, ranks: int) -> float:
    fsdp, model = config.fsdp_config, config.model
    if fsdp is None or not fsdp.activation_cpu_offload:
        return 0.0
    width = FORMATS[precisions.computed(config.precision)].n_bytes
    rows = microbatches(config, ranks) * train_microbatch_rows(config, ranks)
    ffn = model.ffn_config
    kept = model.d_model
    if recompute_policy(config) != "block":
        qkv = model.d_model + 2 * model.attn_config.kv_n_heads * model.head_dim
        kept = 5 * model.d_model + 2 * qkv + 2 * ffn.moe_top_k * ffn.ffn_hidden_size * (not ffn.moe_recompute)
    return float(width * rows * config.max_seq_len * model.n_layers * kept)
