"""The shape of a DBRX model, with the key names of Hugging Face's DbrxConfig, and the presets."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from data.config.sections import Defect, Section
from data.config.values import Count, DropProbability, NotNegative, Positive

Preset = Literal["132b", "73b", "35b", "18b", "9b", "tiny"]

MEGABLOCKS_LIMIT = 2**31
"""MegaBlocks' kernels that copy tokens (megablocks/backend/kernels.py, 0.10.0, `_padded_copy`) compute a row's offset,
row * d_model, in 32 bits, and there are up to tokens * moe_top_k rows. If tokens * moe_top_k * d_model reaches this
limit, the offsets overflow without an error. MegaBlocks' grouped GEMM uses 64 bits, so ffn_hidden_size is not
limited."""


@dataclass(frozen=True, kw_only=True)
class AttnConfig(Section):
    """Attention."""

    attn_pdrop: DropProbability = 0.0
    """Dropout on attention weights."""
    clip_qkv: Positive | None = 8.0
    """Queries, keys and values are clamped to `[-clip_qkv, clip_qkv]`; `null` disables clamping."""
    attn_impl: Literal["auto", "sdpa", "blocks", "flex", "flash"] = "auto"
    """The attention backend. `sdpa`: torch's SDPA, for each document separately. `blocks`: GEMMs over blocks of queries
    (only on a CPU, in fp32 or fp64). `flex`: FlexAttention. `flash`: flash-attn's varlen kernels. `auto` selects
    `flash` on a CUDA machine that has flash-attn, `blocks` on a CPU, and `sdpa` otherwise."""
    kv_n_heads: Count = 8
    """Number of key and value heads. Each key and value head is shared by `n_heads / kv_n_heads` query heads."""
    rope_theta: Positive = 5e5
    """Base of the wavelengths of the rotary embedding (RoPE, Su et al. 2021)."""


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
    """Number of experts in each layer."""
    moe_top_k: Count = 4
    """Number of experts that process each token."""
    moe_jitter_eps: DropProbability = 0.0
    """In training, the router's input is multiplied by uniform noise from `[1 - eps, 1 + eps]`."""
    moe_impl: Literal["auto", "torch", "grouped_mm", "megablocks"] = "auto"
    """The implementation of the experts. `torch`: one GEMM per expert. `grouped_mm`: torch's grouped GEMM.
    `megablocks`: MegaBlocks. `auto` selects `megablocks` on a CUDA machine that has MegaBlocks, `grouped_mm` on a CUDA
    machine whose torch supports it, and `torch` otherwise."""
    moe_recompute: bool = False
    """Recompute the experts' pre-activations in the backward pass instead of keeping them in memory."""
    moe_zloss_weight: NotNegative = 0.0
    """Weight of the router z-loss: the mean squared logsumexp of the router's logits (ST-MoE, Zoph et al. 2022)."""
    moe_loss_weight: NotNegative = 0.05
    """Weight of the load-balancing loss."""
    moe_normalize_expert_weights: float | None = 1.0
    """The weights of the experts that a token selects are divided by their p-norm. This key is the order p of the norm.
    `null` disables the normalization."""
    moe_lbl_scope: Literal["ranks", "batch", "microbatch"] = "ranks"
    """The tokens for which the load-balancing loss counts the assignments to experts. `ranks`: a microbatch on all
    ranks, which requires one all-reduce. `batch`: the whole global batch, which requires an extra forward pass if there
    are several microbatches. `microbatch`: only this rank's microbatch."""


def _heads(model: "ModelConfig") -> Iterator[Defect]:
    if model.d_model % model.n_heads:
        yield Defect("d_model", f"is {model.d_model}, but it must be divisible by n_heads ({model.n_heads})")
    elif model.head_dim % 2:
        yield Defect(
            "d_model",
            f"is {model.d_model}, but RoPE rotates pairs of values: d_model / n_heads ({model.head_dim}) must be even",
        )


def _kv_heads(model: "ModelConfig") -> Iterator[Defect]:
    if model.n_heads % model.attn_config.kv_n_heads:
        yield Defect(
            "n_heads",
            f"is {model.n_heads}, but it must be divisible by attn_config.kv_n_heads ({model.attn_config.kv_n_heads})",
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    """The model's shape and its initial weights."""

    RULES = (_heads, _kv_heads)

    name: Literal["dbrx"] = "dbrx"
    """The architecture."""
    preset: Preset | None = None
    """A preset of the model family (see the table in docs/recipes.md#other-sizes-of-the-model). Other keys in this
    section override the values of the preset."""
    pretrained_model_name_or_path: str | None = None
    """The folder or hub name of stock DBRX weights (safetensors) to start from. The keys of this section are read from
    the `config.json` of the weights. Keys that affect the meaning of the weights cannot be overridden."""
    d_model: Count = 6144
    """Width of the residual stream."""
    n_heads: Count = 48
    """Number of query heads in each layer."""
    n_layers: Count = 40
    """Number of transformer blocks."""
    max_seq_len: Count = 32768
    """The length of the longest sequence that the model supports. The `max_seq_len` of the run may be smaller."""
    vocab_size: Count = 100352
    """Number of rows of the embedding and the head. Must not be smaller than the tokenizer's vocabulary."""
    resid_pdrop: DropProbability = 0.0
    """Dropout on the outputs of attention and experts before they are added to the residual stream."""
    emb_pdrop: DropProbability = 0.0
    """Dropout on embeddings."""
    attn_config: AttnConfig = field(default_factory=AttnConfig)
    ffn_config: FFNConfig = field(default_factory=FFNConfig)
    initializer_range: Positive = 0.02
    """Standard deviation of the initial weights."""
    scale_residual_init: bool = True
    """Scale the initial standard deviation of `out_proj` and `w2` by `1/sqrt(2 n_layers)` (GPT-2), so that the residual
    stream does not grow with depth."""

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
"""For each valid name in target_modules, the last parts of the names of the weights or modules that get an adapter."""


NF4_WEIGHTS = ("attn.Wqkv.weight", "attn.out_proj.weight", "mlp.w1", "mlp.v1", "mlp.w2")
"""The weights of a block that are stored in 4 bits with `lora.base_dtype: nf4`: all except norms and router."""


def _targets(lora: "LoraConfig") -> Iterator[Defect]:
    if unknown := [name for name in lora.target_modules if name not in LORA_TARGETS]:
        found = ", ".join(map(repr, unknown))
        yield Defect("target_modules", f"has unknown names: {found}; valid names are: {', '.join(LORA_TARGETS)}")
    if not lora.target_modules:
        yield Defect(
            "target_modules",
            f"is [], but it must contain at least one name; valid names are: {', '.join(LORA_TARGETS)}",
        )


@dataclass(frozen=True, kw_only=True)
class LoraConfig(Section):
    """LoRA (Hu et al. 2021): adapters are trained, and the weights of the model are frozen."""

    RULES = (_targets,)

    r: Count
    """Rank of the adapters."""
    alpha: Positive
    """An adapter's output is multiplied by `alpha / r`."""
    dropout: DropProbability = 0.0
    """Dropout on an adapter's input, in training only. PEFT does not support dropout for adapters on experts."""
    target_modules: list[str]
    """The modules that get adapters, in every transformer block: `attn` (or only `Wqkv` or `out_proj`), `experts` (or
    only `w1`, `v1` or `w2`), and `router`."""
    per_expert: bool = False
    """Whether each expert has its own matrix A. By default, the experts of a layer share one matrix A for each of `w1`,
    `v1` and `w2`. Each expert always has its own matrix B."""
    base_dtype: Literal["fp32", "bf16", "nf4"] = "bf16"
    """The format of the frozen weights. With `precision: amp_bf16`, `bf16` gives the same results as `fp32`. `nf4`
    stores the large weights of each block in 4 bits (QLoRA, Dettmers et al. 2023), and the other weights in the compute
    dtype. `nf4` requires bitsandbytes."""

    @property
    def scale(self) -> float:
        return self.alpha / self.r

    @property
    def targets(self) -> list[str]:
        """The last parts of the names of the modules with adapters or, for w1, v1 and w2, of the weights."""
        return sorted({name for target in self.target_modules for name in LORA_TARGETS[target]})


PRESETS: Mapping[str, dict[str, Any]] = {
    "132b": _family(6144, 48, 40),
    "73b": _family(5120, 40, 32),
    "35b": _family(4096, 32, 24),
    "18b": _family(3072, 24, 22),
    "9b": _family(2048, 16, 24),
    # These values make the model learn fast on a CPU: a narrow model needs larger initial weights, and short rows need
    # a smaller rope_theta.
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
"""For each preset, the values that differ from ModelConfig's defaults. The defaults describe the 132B model."""
