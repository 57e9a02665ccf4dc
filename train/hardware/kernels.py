"""Selects the implementations of experts and attention once, before the first step, and reports which were selected and
why."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch

from data.base.errors import ConfigError
from train.config.ranks import microbatch_rows, routed_sizes
from train.config.schema import TrainConfig
from train.models.attention.layout import passed_over_attn_impls, resolve_attn_impl
from train.models.config import ModelConfig
from train.models.experts.experts import passed_over_moe_impls, resolve_moe_impl
from train.models.experts.megablocks import RoutedShape
from train.models.shapes import count_parameters

_LOOP_LIMIT = 1_000_000_000
"""The maximum number of parameters for which `auto` may select the loop over experts on a GPU. During this loop, the
GPU is mostly idle."""


class Wording(NamedTuple):
    """Phrases for the error messages of this module. In a training run, the phrases refer to config keys; in a script,
    they refer to its command-line options."""

    choice: str
    """The setting that led to the error."""
    bf16: str
    """The suggestion to switch to bf16."""
    loop: str
    """The suggestion to accept the slow loop over experts."""


_OF_CONFIG = Wording(
    choice="model.ffn_config.moe_impl is auto",
    bf16="set precision: amp_bf16",
    loop="set model.ffn_config.moe_impl=torch to use the loop",
)


def choose_kernels(
    config: TrainConfig, world_size: int, device: torch.device, dtype: torch.dtype
) -> tuple[ModelConfig, list[str]]:
    """Return a copy of config.model and lines for the console. In the copy, moe_impl: auto is replaced by the selected
    implementation, so that the implementation is selected only once.

    For dtype and the errors that are raised, see resolve_kernels.
    """
    model = config.model
    shape = routed_sizes(config, max(microbatch_rows(config, world_size).values()))
    moe_impl, lines = resolve_kernels(model, device, dtype, shape, _OF_CONFIG)
    return replace(model, ffn_config=replace(model.ffn_config, moe_impl=moe_impl)), lines


def resolve_kernels(
    model: ModelConfig, device: torch.device, dtype: torch.dtype, shape: RoutedShape | None, wording: Wording
) -> tuple[str, list[str]]:
    """Return the implementation of the experts, and lines for the console.

    dtype: the compute dtype of experts and attention. shape: the RoutedShape of the largest forward pass, or None if it
    is unknown. Raises ConfigError if the requested implementation is not available, or if auto would select the loop
    over experts for a large model on a GPU.
    """
    try:
        moe_impl, attn_impl = _resolve(model, device, dtype, shape)
    except ValueError as error:
        fix = f"; or {wording.bf16}" if _experts_in_bf16(model, device, shape) else ""
        raise ConfigError(f"model.{error}{fix}") from None
    # The reasons are determined only for auto, because the check imports MegaBlocks and flash-attn, which are otherwise
    # not required.
    experts = attention = ", as configured"
    if model.ffn_config.moe_impl == "auto":
        experts = _reasons(passed_over_moe_impls(device, dtype, shape))
        if device.type == "cuda" and moe_impl == "torch":
            _raise_for_loop(model, device, shape, wording, experts)
    if model.attn_config.attn_impl == "auto":
        attention = _reasons(passed_over_attn_impls(device, dtype, model.attn_config.attn_pdrop))
    return moe_impl, [f"experts: {moe_impl}{experts}", f"attention: {attn_impl}{attention}"]


def _resolve(
    model: ModelConfig, device: torch.device, dtype: torch.dtype, shape: RoutedShape | None
) -> tuple[str, str]:
    attn = model.attn_config
    moe_impl = resolve_moe_impl(model.ffn_config.moe_impl, device, dtype, shape)
    return moe_impl, resolve_attn_impl(attn.attn_impl, device, dtype=dtype, attn_pdrop=attn.attn_pdrop)


def _experts_in_bf16(model: ModelConfig, device: torch.device, shape: RoutedShape | None) -> str | None:
    """The implementation of the experts that would be used in bf16, or None if bf16 would not help."""
    try:
        return _resolve(model, device, torch.bfloat16, shape)[0]
    except ValueError:
        return None


def _reasons(passed_over: Mapping[str, str]) -> str:
    return f" ({'; '.join(f'not {impl}: {why}' for impl, why in passed_over.items())})" if passed_over else ""


def _raise_for_loop(
    model: ModelConfig, device: torch.device, shape: RoutedShape | None, wording: Wording, reasons: str
) -> None:
    total, _ = count_parameters(model)
    if total <= _LOOP_LIMIT:
        return
    fix = "fix one of these problems"
    if _experts_in_bf16(model, device, shape) not in (None, "torch"):
        fix = f"{wording.bf16}, fix one of the other problems listed"
    raise ConfigError(
        f"{wording.choice}, but only the loop over experts is available here, which is slow for {total:,} "
        f"parameters{reasons}: {fix}, or {wording.loop}"
    )
