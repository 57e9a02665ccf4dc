"""The model that a run starts with: whole or with adapters, with fresh, pretrained or frozen weights."""

import importlib.util

import torch

from data.base.console import logger
from data.base.errors import ConfigError
from train.config.schema import TrainConfig
from train.distributed.build_model import NotFinite, Weights, build_model
from train.hf.finite import DIVERGED, not_finite
from train.hf.repository import KEY
from train.models.config import ModelConfig
from train.models.dbrx import DbrxForCausalLM
from train.weights.frozen_base import frozen_base
from train.weights.pretrained import PretrainedFolder
from train.weights.start import Start


def starting_model(
    config: TrainConfig,
    model_config: ModelConfig,
    start: Start | None,
    precision: str,
    device: torch.device,
    dtype: torch.dtype,
) -> DbrxForCausalLM:
    """Sharded, with its weights. Raises ConfigError, on every rank, when those that were read are not finite."""
    weights = _weights(config, start)
    try:
        return build_model(
            model_config,
            config.fsdp_config,
            precision=precision,
            device=device,
            seed=config.seed,
            dtype=dtype,
            pretrained=weights,
            lora=config.lora,
        )
    except NotFinite as error:
        if isinstance(weights, PretrainedFolder):
            raise ConfigError(weights.not_finite(error.names)) from None
        defect = not_finite("its weights", error.names, DIVERGED)
        raise ConfigError(f"load_path is {config.load_path!r}, but {defect}") from None


def _weights(config: TrainConfig, start: Start | None) -> Weights | None:
    """What the model starts with. A checkpoint brings all weights anyway, but one of adapters never their base."""
    if config.lora is None and start is not None:
        return None
    if (base := frozen_base(config)) is not None:
        return base
    name = config.model.pretrained_model_name_or_path
    if name is not None:
        logger.info(f"starting from the weights in {name}")
        return PretrainedFolder.open(name, config.model)
    if config.lora is not None:
        logger.info(
            f"lora: the frozen base is drawn from seed {config.seed}, because {KEY} names no weights and load_path no "
            "checkpoint of a whole model"
        )
    return None


def check_lora(config: TrainConfig, device: torch.device, moe_impl: str) -> None:
    """Raises ConfigError when bitsandbytes is needed and missing, or the experts' GEMMs cannot take this rank; says
    what an export will not tell of."""
    lora = config.lora
    if lora is not None and lora.base_dtype == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "lora.base_dtype is nf4, but bitsandbytes is not installed: pip install -e '.[nf4]', or write bf16"
        )
    if lora is None or not {"w1", "v1", "w2"} & set(lora.targets):
        return
    if device.type == "cuda" and moe_impl != "torch" and lora.r % 8:
        raise ConfigError(
            f"lora.r is {lora.r}, but the grouped GEMMs of {moe_impl} want rows of 16 bytes: write a multiple of 8, or "
            "model.ffn_config.moe_impl=torch"
        )
    if lora.dropout:
        logger.info(
            f"lora.dropout {lora.dropout}: on experts in training alone, PEFT's form of their adapters has none"
        )
