"""A small DBRX folder that transformers has saved."""

from pathlib import Path
from typing import Any

import torch
import transformers

NO_CLIP = 65504.0
"""Larger than any activation."""
SHAPE: dict[str, Any] = {
    "d_model": 32,
    "n_heads": 4,
    "n_layers": 2,
    "max_seq_len": 64,
    "vocab_size": 97,
    "attn_config": {"kv_n_heads": 2, "clip_qkv": 0.5, "rope_theta": 500.0},
    "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 5, "moe_top_k": 2},
}


def stock_config(**values: Any) -> transformers.DbrxConfig:
    """Set rope_theta at the keys that transformers 4 and 5 read. Only transformers 4 accepts null for no clipping."""
    attn = values["attn_config"]
    rope = {"rope_type": "default", "rope_theta": attn["rope_theta"]}
    if attn.get("clip_qkv") is None:
        attn = attn | {"clip_qkv": NO_CLIP}
    return transformers.DbrxConfig(**(values | {"attn_config": attn, "rope_parameters": rope}))


def make_stock_model(**changes: Any) -> transformers.DbrxForCausalLM:
    torch.manual_seed(0)
    model = transformers.DbrxForCausalLM(stock_config(**(SHAPE | changes)))
    with torch.no_grad():
        for param in model.parameters():
            param.normal_(0.0, 0.2)
    return model.eval()


def write_stock_folder(
    folder: Path, dtype: torch.dtype = torch.float32, shard_size: str = "50KB", **changes: Any
) -> transformers.DbrxForCausalLM:
    """Write the folder and return the saved model."""
    model = make_stock_model(**changes).to(dtype)
    model.save_pretrained(folder, max_shard_size=shard_size)
    return model
