"""Which code computes experts and attention: chosen once, before the first step, and printed with the reasons."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from data.errors import ConfigError
from train.config import TrainConfig, microbatch_rows
from train.models.config import ModelConfig
from train.models.experts import passed_over_moe_impls, resolve_moe_impl
from train.models.layout import passed_over_attn_impls, resolve_attn_impl
from train.plan import count_parameters

_LOOP_LIMIT = 1_000_000_000
"""Parameters up to which `auto` may take the loop over experts on a GPU, which leaves most of it idle."""


def choose_kernels(
    config: TrainConfig, world_size: int, device: torch.device, dtype: torch.dtype
) -> tuple[ModelConfig, list[str]]:
    """config.model with what `auto` stands for in moe_impl, so that no step chooses again, and lines for the console.

    dtype is what experts and attention compute in. Raises ConfigError when what was asked for cannot be had, and when
    auto comes down to the loop over experts for a large model on a GPU.
    """
    model, attn = config.model, config.model.attn_config
    rows = max(microbatch_rows(config, world_size).values())
    shape = (rows * config.max_seq_len, model.ffn_config.moe_top_k, model.d_model)
    try:
        moe_impl = resolve_moe_impl(model.ffn_config.moe_impl, device, dtype, shape)
        attn_impl = resolve_attn_impl(attn.attn_impl, device, dtype=dtype, attn_pdrop=attn.attn_pdrop)
    except ValueError as error:
        raise ConfigError(f"model.{error}") from None
    lines = []
    for part, wanted, impl, passed_over in (
        ("experts", model.ffn_config.moe_impl, moe_impl, passed_over_moe_impls(device, dtype, shape)),
        ("attention", attn.attn_impl, attn_impl, passed_over_attn_impls(device, dtype, attn.attn_pdrop)),
    ):
        lines.append(f"{part}: {impl}{_reasons(passed_over) if wanted == 'auto' else ', as configured'}")
        if part == "experts" and wanted == "auto":
            _refuse_loop(model, impl, device, passed_over)
    return replace(model, ffn_config=replace(model.ffn_config, moe_impl=moe_impl)), lines


def _reasons(passed_over: Mapping[str, str]) -> str:
    return f" ({'; '.join(f'not {impl}: {why}' for impl, why in passed_over.items())})" if passed_over else ""


def _refuse_loop(model: ModelConfig, moe_impl: str, device: torch.device, passed_over: Mapping[str, str]) -> None:
    total, _ = count_parameters(model)
    if device.type == "cuda" and moe_impl == "torch" and total > _LOOP_LIMIT:
        raise ConfigError(
            f"model.ffn_config.moe_impl is auto, but only the loop over experts can compute here, which is slow for "
            f"{total:,} parameters{_reasons(passed_over)}: remove one of these causes, or write "
            "model.ffn_config.moe_impl=torch to take the loop"
        )
