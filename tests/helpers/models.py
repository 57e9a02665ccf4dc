"""Small models of this project and of transformers."""

import torch
from torch import Tensor

from train.models.config import AttnConfig, FFNConfig, ModelConfig
from train.models.dbrx import DbrxForCausalLM
from train.models.init import initialise

VOCAB = 96
EVERY_EXPERT = "every head its own, every expert"


def make_config(**changes: object) -> ModelConfig:
    ffn = FFNConfig(ffn_hidden_size=24, moe_num_experts=8, moe_top_k=3)
    attn = AttnConfig(kv_n_heads=2, rope_theta=1e4, clip_qkv=0.6)
    shape = {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64, "vocab_size": VOCAB}
    return ModelConfig(**{**shape, "initializer_range": 0.2, "attn_config": attn, "ffn_config": ffn, **changes})  # type: ignore[arg-type]


SHAPES = {
    "plain": make_config(),
    "one kv head, one expert a token": make_config(
        attn_config=AttnConfig(kv_n_heads=1, rope_theta=5e5),
        # A single normalized weight is always 1, so the router's gradient would be only rounding error.
        ffn_config=FFNConfig(ffn_hidden_size=40, moe_num_experts=4, moe_top_k=1, moe_normalize_expert_weights=None),
    ),
    EVERY_EXPERT: make_config(
        attn_config=AttnConfig(kv_n_heads=4, clip_qkv=8.0),
        ffn_config=FFNConfig(ffn_hidden_size=16, moe_num_experts=3, moe_top_k=3),
    ),
    "no clipping, weights by their 2-norm": make_config(
        n_layers=3,
        attn_config=AttnConfig(kv_n_heads=2, clip_qkv=None),
        ffn_config=FFNConfig(ffn_hidden_size=56, moe_num_experts=16, moe_top_k=4, moe_normalize_expert_weights=2.0),
    ),
}


def make_model(config: ModelConfig, dtype: torch.dtype, device: str = "cpu") -> DbrxForCausalLM:
    model = DbrxForCausalLM(config)
    initialise(model, config, seed=0)
    return model.to(device, dtype).eval()


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()
