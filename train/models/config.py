"""The shape of a DBRX, in the words of Hugging Face's DbrxConfig, and the presets of the family."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from data.config.sections import Defect, Section
from data.config.values import Count, DropProbability, NotNegative, Positive

Preset = Literal["132b", "73b", "35b", "18b", "9b", "tiny"]

MEGABLOCKS_LIMIT = 2**31
"""MegaBlocks' copies of the tokens (megablocks/backend/kernels.py, 0.10.0, `_padded_copy`) multiply a row's number by
d_model in 32 bits, for up to tokens x moe_top_k rows: from this product on addresses overflow silently. Its grouped
GEMM multiplies in 64 bits, so ffn_hidden_size does not matter."""


@dataclass(frozen=True, kw_only=True)
class AttnConfig(Section):
    """Attention."""

    attn_pdrop: DropProbability = 0.0
    """Dropout on attention weights."""
    clip_qkv: Positive | None = 8.0
    """Queries, keys and values are clamped to [-clip_qkv, clip_qkv]; null leaves them as they are."""
    attn_impl: Literal["auto", "sdpa", "blocks", "flex", "flash"] = "auto"
    """What computes attention: torch's SDPA document by document, GEMMs over blocks of queries (CPU, fp32 and fp64),
    FlexAttention, or flash-attn's varlen kernels. auto takes flash-attn on a CUDA machine that has it and blocks on a
    CPU, else SDPA."""
    kv_n_heads: Count = 8
    """Heads of keys and values; each serves n_heads / kv_n_heads query heads."""
    rope_theta: Positive = 5e5
    """Base of the rotary positions' wavelengths (RoPE, Su et al. 2021)."""


def _top_k(ffn: "FFNConfig") -> Iterator[Defect]:
    if ffn.moe_top_k > ffn.moe_num_experts:
        yield Defect("moe_top_k", f"is {ffn.moe_top_k}, but there are only {ffn.moe_num_experts} experts")


@dataclass(frozen=True, kw_only=True)
class FFNConfig(Section):
    """Router and experts."""

    RULES = (_top_k,)

    ffn_hidden_size: Count = 10752
    """Width of one expert."""
    moe_num_experts: Count = 16
    """Experts of each layer."""
    moe_top_k: Count = 4
    """Experts that each token is sent to."""
    moe_jitter_eps: DropProbability = 0.0
    """In training the router's input is multiplied by noise from [1 - eps, 1 + eps]."""
    moe_impl: Literal["auto", "torch", "grouped_mm", "megablocks"] = "auto"
    """What computes the experts: one GEMM an expert, torch's grouped GEMM, or MegaBlocks. auto takes MegaBlocks on a
    CUDA machine that has it, else grouped_mm on a CUDA machine whose torch has it, else torch."""
    moe_recompute: bool = False
    """The experts' pre-activations are computed again in the backward pass instead of being kept."""
    moe_zloss_weight: NotNegative = 0.0
    """Weight of the router z-loss, the mean squared logsumexp of the router's logits (ST-MoE, Zoph et al. 2022)."""
    moe_loss_weight: NotNegative = 0.05
    """Weight of the load-balancing loss."""
    moe_normalize_expert_weights: float | None = 1.0
    """The chosen experts' weights are divided by their norm of this order; null leaves them as they are."""
    moe_lbl_scope: Literal["ranks", "batch", "microbatch"] = "ranks"
    """Over which tokens the load-balancing loss counts assignments: the microbatch on all ranks (one all-reduce), the
    whole global batch (a counting forward first when there are several microbatches), or the rank's own microbatch."""


def _heads(model: "ModelConfig") -> Iterator[Defect]:
    if model.d_model % model.n_heads:
        yield Defect("d_model", f"is {model.d_model}, but it must be divisible by n_heads ({model.n_heads})")
    elif model.head_dim % 2:
        yield Defect(
            "d_model",
            f"is {model.d_model}, but RoPE turns pairs: d_model / n_heads ({model.head_dim}) must be even",
        )


def _kv_heads(model: "ModelConfig") -> Iterator[Defect]:
    if model.n_heads % model.attn_config.kv_n_heads:
        yield Defect(
            "n_heads",
            f"is {model.n_heads}, but it must be divisible by attn_config.kv_n_heads ({model.attn_config.kv_n_heads})",
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    """The model's shape, and the weights that it starts from."""

    RULES = (_heads, _kv_heads)

    name: Literal["dbrx"] = "dbrx"
    """The architecture."""
    preset: Preset | None = None
    """A member of the family (see PRESETS); keys written beside it override it."""
    pretrained_model_name_or_path: str | None = None
    """A folder or hub name of stock DBRX weights (safetensors) to start from: its config.json gives the keys of this
    section, and those that decide what the weights mean may not be written otherwise."""
    d_model: Count = 6144
    """Width of the residual stream."""
    n_heads: Count = 48
    """Heads of queries in each layer."""
    n_layers: Count = 40
    """Transformer blocks."""
    max_seq_len: Count = 32768
    """The longest sequence that the model is for: the run's max_seq_len may be shorter."""
    vocab_size: Count = 100352
    """Rows of the embedding and of the head: at least as many as the tokenizer has tokens."""
    resid_pdrop: DropProbability = 0.0
    """Dropout on what attention and experts add to the residual stream."""
    emb_pdrop: DropProbability = 0.0
    """Dropout on embeddings."""
    attn_config: AttnConfig = field(default_factory=AttnConfig)
    ffn_config: FFNConfig = field(default_factory=FFNConfig)
    initializer_range: Positive = 0.02
    """Standard deviation of fresh weights."""
    scale_residual_init: bool = True
    """out_proj and w2 are drawn 1/sqrt(2 n_layers) narrower (GPT-2): the residual stream does not grow with depth."""

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads


def _family(d_model: int, n_heads: int, n_layers: int) -> dict[str, Any]:
    return {
        "d_model": d_model,
        "n_heads": n_heads,
        "n_layers": n_layers,
        "ffn_config": {"ffn_hidden_size": d_model * 7 // 4},
    }


LORA_TARGETS: dict[str, tuple[str, ...]] = {
    "Wqkv": ("Wqkv",),
    "out_proj": ("out_proj",),
    "attn": ("Wqkv", "out_proj"),
    "w1": ("w1",),
    "v1": ("v1",),
    "w2": ("w2",),
    "experts": ("w1", "v1", "w2"),
    "layer": ("layer",),
    "router": ("layer",),
}
"""What an adapter can be put on, and by which names: the last parts of the weights' names and of the modules' above."""


NF4_WEIGHTS = ("attn.Wqkv.weight", "attn.out_proj.weight", "mlp.w1", "mlp.v1", "mlp.w2")
"""What of a block lora.base_dtype: nf4 keeps in 4 bits: all but norms and router."""


def _targets(lora: "LoraConfig") -> Iterator[Defect]:
    if unknown := [name for name in lora.target_modules if name not in LORA_TARGETS]:
        found = ", ".join(map(repr, unknown))
        yield Defect("target_modules", f"has {found}, which matches nothing; there are: {', '.join(LORA_TARGETS)}")
    if not lora.target_modules:
        yield Defect("target_modules", f"is [], but something must learn; there are: {', '.join(LORA_TARGETS)}")


@dataclass(frozen=True, kw_only=True)
class LoraConfig(Section):
    """Adapters are trained in place of the model, which is frozen (Hu et al. 2021)."""

    RULES = (_targets,)

    r: Count
    """Rank."""
    alpha: Positive
    """What an adapter adds is multiplied by alpha / r."""
    dropout: DropProbability = 0.0
    """Of what enters an adapter, in training only; PEFT's form of adapters on experts has no dropout."""
    target_modules: list[str]
    """Names from LORA_TARGETS, in every block."""
    per_expert: bool = False
    """Each expert has its own A; else the experts share one A for each of w1, v1 and w2. Each always has its own B."""
    base_dtype: Literal["fp32", "bf16", "nf4"] = "bf16"
    """In what the frozen weights are kept. Under amp_bf16 bf16 computes what fp32 would. nf4 keeps the blocks' large
    weights in 4 bits (QLoRA, Dettmers et al. 2023), the others in what is computed in; it needs bitsandbytes."""

    @property
    def scale(self) -> float:
        return self.alpha / self.r

    @property
    def targets(self) -> list[str]:
        """The last parts of the weights' names, w1, v1 and w2 as they are."""
        return sorted({name for target in self.target_modules for name in LORA_TARGETS[target]})


PRESETS: Mapping[str, dict[str, Any]] = {
    "132b": _family(6144, 48, 40),
    "73b": _family(5120, 40, 32),
    "35b": _family(4096, 32, 24),
    "18b": _family(3072, 24, 22),
    "9b": _family(2048, 16, 24),
    # What learns fastest on a CPU: so narrow a model wants wider initial weights and, for short rows, a smaller theta.
    "tiny": {
        "d_model": 64,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 512,
        "vocab_size": 512,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 500.0},
        "ffn_config": {"ffn_hidden_size": 64, "moe_loss_weight": 0.01},
        "initializer_range": 0.1,
    },
}
"""What each member of the family changes in ModelConfig's defaults, which are the 132B's."""
