"""The name and shape of every parameter, and parameter counts, computed from the config, without torch."""

import functools
import math
from collections.abc import Mapping

from train.models.config import LORA_TARGETS, LoraConfig, ModelConfig

WEIGHT_KEYS = (
    *("d_model", "n_heads", "n_layers", "vocab_size"),
    *("attn_config.kv_n_heads", "attn_config.rope_theta", "attn_config.clip_qkv"),
    *("ffn_config.ffn_hidden_size", "ffn_config.moe_num_experts", "ffn_config.moe_top_k"),
    "ffn_config.moe_normalize_expert_weights",
)
"""The model keys that determine how the weights are interpreted. A run that loads weights also uses the values of these
keys from the model that it loads."""


def parameter_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The name of every parameter, as in Hugging Face's DBRX, and its shape."""
    return dict(_parameter_shapes(model))


@functools.lru_cache(maxsize=8)
def _parameter_shapes(model: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    # Cached, because a search for settings calls this thousands of times.
    d, ffn = model.d_model, model.ffn_config
    experts = (ffn.moe_num_experts * ffn.ffn_hidden_size, d)
    block = {
        "norm_attn_norm.norm_1.weight": (d,),
        "norm_attn_norm.attn.Wqkv.weight": (d + 2 * model.attn_config.kv_n_heads * model.head_dim, d),
        "norm_attn_norm.attn.out_proj.weight": (d, d),
        "norm_attn_norm.norm_2.weight": (d,),
        "ffn.router.layer.weight": (ffn.moe_num_experts, d),
        "ffn.experts.mlp.w1": experts,
        "ffn.experts.mlp.v1": experts,
        "ffn.experts.mlp.w2": experts,
    }
    blocks = {f"transformer.blocks.{i}.{name}": shape for i in range(model.n_layers) for name, shape in block.items()}
    return {
        "transformer.wte.weight": (model.vocab_size, d),
        **blocks,
        "transformer.norm_f.weight": (d,),
        "lm_head.weight": (model.vocab_size, d),
    }


def adapter_shapes(model: ModelConfig, lora: LoraConfig) -> dict[str, tuple[int, ...]]:
    """The name of every adapter parameter (see lora/adapters.py) and its shape."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in adapted_shapes(model, lora).items():
        n_experts = model.ffn_config.moe_num_experts if is_fused(name) else 1
        A, B = pair_shapes(shape, lora, n_experts)
        shapes |= {f"{adapter_name(name)}.lora_A": A, f"{adapter_name(name)}.lora_B": B}
    return shapes


def pair_shapes(shape: tuple[int, int], lora: LoraConfig, n_experts: int = 1) -> tuple[tuple[int, int], ...]:
    """The shapes of A and B in the adapter of a weight of this shape. The weight contains the rows of n_experts
    experts."""
    rows, columns = shape
    return (lora.r * (n_experts if lora.per_expert else 1), columns), (rows, lora.r)


def is_fused(name: str) -> bool:
    """Whether the parameter of this name stacks the weights of all experts along its rows."""
    return name.rpartition(".")[2] in LORA_TARGETS["experts"]


def adapted_experts(lora: LoraConfig) -> list[str]:
    """Which of w1, v1 and w2 have an adapter, in this order."""
    return [name for name in LORA_TARGETS["experts"] if name in lora.targets]


def adapted_shapes(model: ModelConfig, lora: LoraConfig) -> dict[str, tuple[int, int]]:
    """The names and shapes of the base weights that have an adapter."""
    parts = {name: name.removesuffix(".weight").rpartition(".")[2] for name in parameter_shapes(model)}
    shapes = {name: shape for name, shape in parameter_shapes(model).items() if parts[name] in lora.targets}
    return {name: (shape[0], shape[1]) for name, shape in shapes.items()}


def adapter_name(name: str) -> str:
    """The prefix of the adapter parameters of a base weight: `x.Wqkv.lora` for `x.Wqkv.weight`, `x.lora.w1` for
    `x.w1`."""
    above, _, last = name.rpartition(".")
    return f"{above}.lora" if last == "weight" else f"{above}.lora.{last}"


def count_parameters(model: ModelConfig) -> tuple[int, int]:
    """Return the total number of parameters, and the number of active parameters: those of moe_top_k experts in each
    layer, and all parameters outside the experts."""
    sizes = parameter_sizes(model)
    total = sum(sizes.values())
    experts = sum(size for name, size in sizes.items() if ".experts." in name)
    ffn = model.ffn_config
    return total, total - experts * (ffn.moe_num_experts - ffn.moe_top_k) // ffn.moe_num_experts


def count_adapters(model: ModelConfig, lora: LoraConfig) -> tuple[int, int]:
    """Return the total number of parameters of the adapters, and the number of active parameters of the adapters."""
    total = active = 0
    ffn = model.ffn_config
    for name, shape in adapter_shapes(model, lora).items():
        of_experts = ".experts." in name and (lora.per_expert or name.endswith("lora_B"))
        total += math.prod(shape)
        active += math.prod(shape) * ffn.moe_top_k // ffn.moe_num_experts if of_experts else math.prod(shape)
    return total, active


def parameter_sizes(model: ModelConfig) -> dict[str, int]:
    """The number of elements of each parameter."""
    return {name: math.prod(shape) for name, shape in parameter_shapes(model).items()}
