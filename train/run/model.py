"""The model of a run: full or with adapters, and with random, pretrained or frozen weights."""

import importlib.util

import torch
from composer.utils import dist

from data.base.console import logger
from data.base.errors import ConfigError
from train.composer_model import DbrxForComposer
from train.config.schema import TrainConfig
from train.console.facts import fact_of
from train.distributed import build_model as sharded
from train.hardware.kernels import choose_kernels
from train.hf.finite import DIVERGED, not_finite
from train.models.config import ModelConfig
from train.models.precision import computed
from train.models.shapes import adapted_experts
from train.run.inputs import Inputs
from train.weights.pretrained import PretrainedFolder


def build_model(
    config: TrainConfig, inputs: Inputs, *, precision: str, device: torch.device, dtype: torch.dtype
) -> DbrxForComposer:
    """Build the sharded model with its weights. Raises ConfigError if the model cannot run on this device, or, on every
    rank, if the loaded weights contain NaN or infinite values."""
    model_config = _choose_kernels(config, device, torch.bfloat16 if computed(precision) == "bf16" else dtype)
    try:
        model = sharded.build_model(
            model_config,
            config.fsdp_config,
            precision=precision,
            device=device,
            seed=config.seed,
            dtype=dtype,
            pretrained=inputs.weights,
            lora=config.lora,
        )
    except sharded.NotFinite as error:
        if isinstance(inputs.weights, PretrainedFolder):
            raise inputs.weights.not_finite(error.names) from None
        defect = not_finite("its weights", error.names, DIVERGED)
        raise ConfigError(f"is {config.load_path!r}, but {defect}", key="load_path") from None
    return DbrxForComposer(config.model, model)


def _choose_kernels(config: TrainConfig, device: torch.device, dtype: torch.dtype) -> ModelConfig:
    """Return config.model with every `auto` replaced by a kernel. Logs the choices and checks the adapters."""
    model_config, lines = choose_kernels(config, dist.get_world_size(), device, dtype)
    for line in lines:
        logger.info(fact_of(line))
    check_lora(config, device, model_config.ffn_config.moe_impl)
    return model_config


def check_lora(config: TrainConfig, device: torch.device, moe_impl: str) -> None:
    """Raise ConfigError if bitsandbytes is needed but missing, or if the experts' GEMMs do not support lora.r. Logs a
    message if the dropout of the experts' adapters will be missing from an export."""
    lora = config.lora
    if lora is not None and lora.base_dtype == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "is nf4, but bitsandbytes is not installed: pip install -e '.[nf4]', or use bf16", key="lora.base_dtype"
        )
    if lora is None or not adapted_experts(lora):
        return
    if device.type == "cuda" and moe_impl != "torch" and lora.r % 8:
        raise ConfigError(
            f"is {lora.r}, but the grouped GEMMs of {moe_impl} require rows of a multiple of 16 bytes: use a multiple "
            "of 8, or model.ffn_config.moe_impl=torch",
            key="lora.r",
        )
    if lora.dropout:
        logger.info(
            f"lora.dropout {lora.dropout} will not be exported for experts: PEFT's adapters for experts have no dropout"
        )
