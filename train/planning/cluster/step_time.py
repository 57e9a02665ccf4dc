"""How long a training step would take on a cluster: a prediction from peaks of the data sheets and assumed shares of
them. Nothing of it is measured.

A step is: GEMMs and attention at a share of the peak TFLOPs; everything else of the model at a share of the memory
bandwidth; gathers and reductions of weights, which run beside the computation, as far as they outlast it; the exchange
of tokens under expert parallelism, which nothing hides; the optimizer, bound by the memory. Not in it: launches
of kernels and latencies of collectives, which decide the time of small models; waiting for data, ranks that wait for
slower ones, an uneven load of the experts, checkpoints and evaluations.
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
    """What a GPU reaches of its data sheet. Estimates, none of them measured."""

    gemm: float = 0.65
    """Of peak TFLOPs: GEMMs of attention, head and adapters."""
    experts: float = 0.55
    """Of peak TFLOPs: the experts' grouped GEMMs, with an even load."""
    scores: float = 0.5
    """Of peak TFLOPs: fused attention, which computes half of the scores of a row, those that are causal."""
    memory: float = 0.75
    """Of the memory bandwidth."""
    link: float = 0.75
    """Of the bandwidth of links, inside a node and between nodes."""
    overlap: float = 0.9
    """Of the time of computation, beside which gathers and reductions can run."""
    host: float = 20e9
    """Bytes a second between GPU and host, one way (activation_cpu_offload)."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of a step, by what it waits for."""

    experts: float
    other_gemms: float
    attention: float
    elementwise: float
    """Norms, activation functions, copies of tokens, additions: bound by the memory."""
    inside: float
    """Communication between GPUs of a node, as far as it is not hidden."""
    between: float
    """Communication between nodes, as far as it is not hidden."""
    optimizer: float
    """Clipping and the optimizer: bound by the memory."""
    offload: float
    """Activations on their way to the host and back."""
    hidden: float
    """Communication beside computation: no part of the total."""

    @property
    def total(self) -> float:
        return self.computation + self.inside + self.between + self.optimizer + self.offload

    @property
    def computation(self) -> float:
        return self.experts + self.other_gemms + self.attention + self.elementwise

    @property
    def bound(self) -> str:
        """What takes the most of it."""
        shares = {
            "compute": self.experts + self.other_gemms + self.attention,
            "memory bandwidth": self.elementwise + self.optimizer,
            "links inside a node": self.inside,
            "links between nodes": self.between,
            "link to the host": self.offload,
        }
        return max(shares, key=lambda name: shares[name])


def recompute_policy(config: TrainConfig) -> Recompute:
    """activation_checkpointing without its older names."""
    policy = config.fsdp_config.activation_checkpointing if config.fsdp_config is not None else "none"
    if isinstance(policy, bool):
        return "block" if policy else "none"
    return policy


def run_flops(config: TrainConfig) -> list[Flops]:
    """Of a token in a step of this run."""
    return flops_by_part(
        config.model,
        config.max_seq_len,
        config.lora,
        trained=trained_names(config),
        recompute=recompute_policy(config),
    )


def tokens_per_rank(config: TrainConfig, ranks: int) -> int:
    """That a rank computes in a step, padding included."""
    return config.global_train_batch_size // ranks * config.max_seq_len


def predict(
    config: TrainConfig,
    cluster: Cluster,
    flops: Sequence[Flops],
    sent: Sequence[Traffic],
    assumed: Assumptions = Assumptions(),
) -> StepTime:
    """The step of a run with so many FLOPs a token (run_flops) and this traffic. The cluster's GPU is known."""
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
    """MFU: the FLOPs of forward and backward, attention over whole rows as in the PaLM paper, over the peak of all
    GPUs. Recomputation does not count."""
    peak = _known(cluster).peak_flops(config.precision)
    tokens = tokens_per_rank(config, cluster.ranks)
    return tokens * flops_per_token(config.model, config.max_seq_len, config.lora) / (seconds * peak)


def _known(cluster: Cluster) -> Gpu:
    assert cluster.gpu is not None, "times are predicted for a known GPU"
    return cluster.gpu


def _communication(
    config: TrainConfig, cluster: Cluster, sent: Sequence[Traffic], computation: float, assumed: Assumptions
) -> tuple[float, float, float]:
    """Seconds inside and between nodes that nothing hides, and those that computation hides.

    A ring is as slow as its slower hop. The first gather and the last reduction have nothing to run beside: of the
    blocks' share one.
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
    """That a token reads and writes in a step outside of GEMMs: vectors of d_model in the residual stream (2 norms, 2
    additions), RoPE and clipping of queries, keys and values, copies of a token for its experts and back, and the GLU;
    in backward twice as many, and with recomputation once more."""
    model, ffn = config.model, config.model.ffn_config
    width = FORMATS[precisions.computed(config.precision)].n_bytes
    qkv = model.d_model + 2 * model.attn_config.kv_n_heads * model.head_dim
    block = 10 * model.d_model + 4 * qkv + ffn.moe_top_k * (4 * model.d_model + 3 * ffn.ffn_hidden_size)
    passes = {"none": 3.0, "selective": 3.5, "block": 4.0}[recompute_policy(config)]
    return width * (passes * block * model.n_layers + 4 * model.vocab_size)


def _optimizer_bytes(config: TrainConfig, ranks: int) -> float:
    """In fp32, gradients are read for their norm, scaled, and read again; weights and moments are read and written."""
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
