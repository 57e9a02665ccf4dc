"""Convert between transformers' config.json of a DBRX model and ModelConfig."""

from collections.abc import Mapping
from typing import Any

from data.tokenization.files import TRANSFORMERS_VERSION
from train.models.config import ModelConfig
from train.models.shapes import WEIGHT_KEYS

# The value of clip_qkv in the config.json of models without clip_qkv: the largest fp16 number. transformers always
# clamps, and does not accept null.
_NO_CLIP = 65504.0


def config_json(model: ModelConfig, generation: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return the content of a config.json with the same meaning in transformers 4.53 to 5.24. It has the keys of 4.x
    and, for 5.x, rope_parameters.

    dtype: torch's name for the dtype of the tensors, float32 or bfloat16.
    """
    attn, ffn = model.attn_config, model.ffn_config
    norm = ffn.moe_normalize_expert_weights
    return {
        "architectures": ["DbrxForCausalLM"],
        "model_type": "dbrx",
        "d_model": model.d_model,
        "n_heads": model.n_heads,
        "n_layers": model.n_layers,
        "max_seq_len": model.max_seq_len,
        "vocab_size": model.vocab_size,
        "resid_pdrop": float(model.resid_pdrop),
        "emb_pdrop": float(model.emb_pdrop),
        "attn_config": {
            "attn_pdrop": float(attn.attn_pdrop),
            "clip_qkv": float(attn.clip_qkv) if attn.clip_qkv is not None else _NO_CLIP,
            "kv_n_heads": attn.kv_n_heads,
            "rope_theta": float(attn.rope_theta),
        },
        "ffn_config": {
            "ffn_act_fn": {"name": "silu"},
            "ffn_hidden_size": ffn.ffn_hidden_size,
            "moe_num_experts": ffn.moe_num_experts,
            "moe_top_k": ffn.moe_top_k,
            # transformers multiplies by noise unless eps is null, even if eps is 0.
            "moe_jitter_eps": float(ffn.moe_jitter_eps) or None,
            "moe_loss_weight": float(ffn.moe_loss_weight),
            "moe_normalize_expert_weights": None if norm is None else float(norm),
        },
        "rope_parameters": {"rope_type": "default", "rope_theta": float(attn.rope_theta)},
        "initializer_range": float(model.initializer_range),
        "output_router_logits": False,
        "tie_word_embeddings": False,
        "use_cache": True,
        "bos_token_id": generation["bos_token_id"],
        "eos_token_id": generation["eos_token_id"],
        "torch_dtype": dtype,
        "transformers_version": TRANSFORMERS_VERSION,
    }


def transformers_config(model: ModelConfig, **more: Any) -> Any:
    """Return transformers' DbrxConfig of the model. `more`: additional keys."""
    from transformers import DbrxConfig

    return DbrxConfig(**config_json(model, {"bos_token_id": None, "eos_token_id": None}, "float32"), **more)


def model_values(contents: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the contents of a config.json, written by transformers 4 or 5, to the values of a ModelConfig. Missing
    keys have the defaults of DbrxConfig.

    Raises ValueError for another architecture, and for settings that this framework does not support.
    """
    _check_architecture(contents)
    attn, ffn = _below(contents, "attn_config"), _below(contents, "ffn_config")
    clip_qkv, jitter = attn.get("clip_qkv"), ffn.get("moe_jitter_eps")
    return {
        "d_model": contents.get("d_model", 2048),
        "n_heads": contents.get("n_heads", 16),
        "n_layers": contents.get("n_layers", 24),
        "max_seq_len": contents.get("max_seq_len", 2048),
        "vocab_size": contents.get("vocab_size", 32000),
        "resid_pdrop": contents.get("resid_pdrop", 0.0),
        "emb_pdrop": contents.get("emb_pdrop", 0.0),
        "initializer_range": contents.get("initializer_range", 0.02),
        "attn_config": {
            "attn_pdrop": attn.get("attn_pdrop", 0.0),
            "clip_qkv": None if clip_qkv == _NO_CLIP else clip_qkv,
            "kv_n_heads": attn.get("kv_n_heads", 1),
            "rope_theta": _rope_theta(contents, attn),
        },
        "ffn_config": {
            "ffn_hidden_size": ffn.get("ffn_hidden_size", 3584),
            "moe_num_experts": ffn.get("moe_num_experts", 4),
            "moe_top_k": ffn.get("moe_top_k", 1),
            "moe_jitter_eps": 0.0 if jitter is None else jitter,
            "moe_loss_weight": ffn.get("moe_loss_weight", 0.01),
            "moe_normalize_expert_weights": ffn.get("moe_normalize_expert_weights", 1.0),
        },
    }


def _below(contents: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    below = contents.get(key) or {}
    if not isinstance(below, Mapping):
        raise ValueError(f"its {key} is {below!r}, but it must be a mapping")
    return below


def _check_architecture(contents: Mapping[str, Any]) -> None:
    if contents.get("model_type") != "dbrx":
        found = contents.get("model_type") or f"missing (architectures: {contents.get('architectures')})"
        raise ValueError(f"its model_type is {found}, but only dbrx is supported")
    if contents.get("tie_word_embeddings"):
        raise ValueError("its tie_word_embeddings is true, but DBRX's head has separate weights")
    if "quantization_config" in contents:
        raise ValueError("its weights are quantized (quantization_config), but fp32, bf16 or fp16 is required")
    activation = _below(_below(contents, "ffn_config"), "ffn_act_fn").get("name", "silu")
    if activation != "silu":
        raise ValueError(f"its ffn_config.ffn_act_fn is {activation}, but only silu is supported")


def _rope_theta(contents: Mapping[str, Any], attn: Mapping[str, Any]) -> Any:
    """Return rope_theta, which is in attn_config in transformers 4, and in rope_parameters in transformers 5."""
    rope = _below(contents, "rope_parameters") or _below(contents, "rope_scaling")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"its rope_type is {kind}, but only default rotary embeddings are supported")
    thetas = [theta for theta in (attn.get("rope_theta"), rope.get("rope_theta")) if theta is not None]
    if len(thetas) > 1 and thetas[0] != thetas[1]:
        raise ValueError(
            f"its attn_config.rope_theta is {attn['rope_theta']}, but its rope_parameters.rope_theta is "
            f"{rope['rope_theta']}"
        )
    return thetas[0] if thetas else 10000.0


def contradictions(values: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (key, value in `values`, value in `wanted`) for each key whose values must be equal in both mappings, but
    are not. `values` are those of the weights' config. Both mappings are nested as in a YAML.

    Keys that are not in `wanted` are ignored. max_seq_len may be smaller in `wanted` than in `values`.
    """
    found = []
    for key in (*WEIGHT_KEYS, "max_seq_len"):
        there = at(values, key)
        here = at(wanted, key, there)
        if here != there and not (key == "max_seq_len" and isinstance(here, int) and here < there):
            found.append((key, there, here))
    return found


def at(values: Any, key: str, default: Any = None) -> Any:
    """Return the value at a dotted key `a.b` in nested mappings."""
    for part in key.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return default
        values = values[part]
    return values
