"""The shape of a DBRX, in the words of Hugging Face's DbrxConfig, and the presets of the family.

Checks raise ValueError with the key relative to the class; the reader of the YAML puts `model.` before it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

MEGABLOCKS_LIMIT = 2**31
"""MegaBlocks' copies of the tokens (megablocks/backend/kernels.py, 0.10.0, `_padded_copy`) multiply a row's number by
d_model in 32 bits, for up to tokens x moe_top_k rows: from this product on addresses overflow silently. Its grouped
GEMM multiplies in 64 bits, so ffn_hidden_size does not matter."""


@dataclass(frozen=True, kw_only=True)
class AttnConfig:
    attn_pdrop: float = 0.0
    """Dropout on attention weights."""
    clip_qkv: float | None = 8.0
    """Queries, keys and values are clamped to [-clip_qkv, clip_qkv]; null leaves them as they are."""
    attn_impl: Literal["auto", "sdpa", "blocks", "flex", "flash"] = "auto"
    """What computes attention: torch's SDPA document by document, GEMMs over blocks of queries (CPU, fp32 and fp64),
    FlexAttention, or flash-attn's varlen kernels. auto takes flash-attn on a CUDA machine that has it and blocks on a
    CPU, else SDPA."""
    kv_n_heads: int = 8
    """Heads of keys and values; each serves n_heads / kv_n_heads query heads."""
    rope_theta: float = 5e5

    def __post_init__(self) -> None:
        if not 0 <= self.attn_pdrop < 1:
            raise ValueError(f"attn_pdrop is {self.attn_pdrop}, but a probability of dropping is in [0, 1)")
        if self.clip_qkv is not None and self.clip_qkv <= 0:
            raise ValueError(f"clip_qkv is {self.clip_qkv}, but it must be positive (null for none)")
        if self.kv_n_heads < 1:
            raise ValueError(f"kv_n_heads is {self.kv_n_heads}, but at least 1 is needed")
        if self.rope_theta <= 0:
            raise ValueError(f"rope_theta is {self.rope_theta}, but it must be positive")


@dataclass(frozen=True, kw_only=True)
class FFNConfig:
    ffn_hidden_size: int = 10752
    """Width of one expert."""
    moe_num_experts: int = 16
    moe_top_k: int = 4
    """Experts that each token is sent to."""
    moe_jitter_eps: float = 0.0
    """In training the router's input is multiplied by noise from [1 - eps, 1 + eps]."""
    moe_impl: Literal["auto", "torch", "grouped_mm", "megablocks"] = "auto"
    """What computes the experts: one GEMM an expert, torch's grouped GEMM, or MegaBlocks. auto takes MegaBlocks on a
    CUDA machine that has it, else grouped_mm on a CUDA machine whose torch has it, else torch."""
    moe_recompute: bool = False
    """The experts' pre-activations are computed again in the backward pass instead of being kept."""
    moe_zloss_weight: float = 0.0
    """Weight of the router z-loss, the mean squared logsumexp of the router's logits (ST-MoE, Zoph et al. 2022)."""
    moe_loss_weight: float = 0.05
    """Weight of the load-balancing loss."""
    moe_normalize_expert_weights: float | None = 1.0
    """The chosen experts' weights are divided by their norm of this order; null leaves them as they are."""
    moe_lbl_scope: Literal["ranks", "batch", "microbatch"] = "ranks"
    """Over which tokens the load-balancing loss counts assignments: the microbatch on all ranks (one all-reduce), the
    whole global batch (a counting forward first when there are several microbatches), or the rank's own microbatch."""

    def __post_init__(self) -> None:
        for name in ("ffn_hidden_size", "moe_num_experts", "moe_top_k"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but at least 1 is needed")
        if self.moe_top_k > self.moe_num_experts:
            raise ValueError(f"moe_top_k is {self.moe_top_k}, but there are only {self.moe_num_experts} experts")
        if not 0 <= self.moe_jitter_eps < 1:
            raise ValueError(f"moe_jitter_eps is {self.moe_jitter_eps}, but it must be in [0, 1)")
        if self.moe_loss_weight < 0:
            raise ValueError(f"moe_loss_weight is {self.moe_loss_weight}, but a negative weight would unbalance")
        if self.moe_zloss_weight < 0:
            raise ValueError(f"moe_zloss_weight is {self.moe_zloss_weight}, but it cannot be negative")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    name: Literal["dbrx"] = "dbrx"
    preset: str | None = None
    """A member of the family (see PRESETS); keys written beside it override it."""
    pretrained_model_name_or_path: str | None = None
    """A folder or hub name of stock DBRX weights (safetensors) to start from: its config.json gives the keys of this
    section, and those that decide what the weights mean may not be written otherwise."""
    d_model: int = 6144
    n_heads: int = 48
    n_layers: int = 40
    max_seq_len: int = 32768
    vocab_size: int = 100352
    resid_pdrop: float = 0.0
    emb_pdrop: float = 0.0
    attn_config: AttnConfig = field(default_factory=AttnConfig)
    ffn_config: FFNConfig = field(default_factory=FFNConfig)
    initializer_range: float = 0.02
    scale_residual_init: bool = True
    """out_proj and w2 are drawn 1/sqrt(2 n_layers) narrower (GPT-2): the residual stream does not grow with depth."""

    def __post_init__(self) -> None:
        for name in ("d_model", "n_heads", "n_layers", "max_seq_len", "vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but at least 1 is needed")
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model is {self.d_model}, but it must be divisible by n_heads ({self.n_heads})")
        if self.head_dim % 2:
            raise ValueError(
                f"d_model is {self.d_model}, but RoPE turns pairs: d_model / n_heads ({self.head_dim}) must be even"
            )
        if self.n_heads % self.attn_config.kv_n_heads:
            raise ValueError(
                f"n_heads is {self.n_heads}, but it must be divisible by attn_config.kv_n_heads "
                f"({self.attn_config.kv_n_heads})"
            )
        for name in ("resid_pdrop", "emb_pdrop"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but a probability of dropping is in [0, 1)")
        if self.initializer_range <= 0:
            raise ValueError(f"initializer_range is {self.initializer_range}, but it must be positive")

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


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Adapters are trained in place of the model, which is frozen (Hu et al. 2021)."""

    r: int
    """Rank."""
    alpha: float
    """What an adapter adds is multiplied by alpha / r."""
    dropout: float = 0.0
    """Of what enters an adapter, in training alone; PEFT's form of adapters on experts does not tell of it."""
    target_modules: list[str]
    """Names from LORA_TARGETS, in every block."""
    per_expert: bool = False
    """Each expert has an A of its own; else there is one for all experts, each for w1, v1 and w2, and B is its own."""
    base_dtype: Literal["fp32", "bf16", "nf4"] = "bf16"
    """In what the frozen weights are kept. Under amp_bf16 bf16 computes what fp32 would. nf4 keeps the blocks' large
    weights in 4 bits (QLoRA, Dettmers et al. 2023), the others in what is computed in; it needs bitsandbytes."""

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"r is {self.r}, but at least 1 is needed")
        if self.alpha <= 0:
            raise ValueError(f"alpha is {self.alpha}, but it must be positive")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, but a probability of dropping is in [0, 1)")
        if unknown := [name for name in self.target_modules if name not in LORA_TARGETS]:
            raise ValueError(
                f"target_modules has {', '.join(map(repr, unknown))}, which matches nothing; there are: "
                f"{', '.join(LORA_TARGETS)}"
            )
        if not self.target_modules:
            raise ValueError(f"target_modules is [], but something must learn; there are: {', '.join(LORA_TARGETS)}")

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
