"""A config as it is shown: without secrets."""

import dataclasses
import re
from typing import Any

from omegaconf import OmegaConf

from data.base.addresses import without_login
from train.config.reading.interpolation import escaped
from train.config.schema import TrainConfig

_SECRET_KEY = re.compile(r"(^|_)(token|key|secret|password)$")


def masked_yaml(config: TrainConfig) -> str:
    """`to_yaml` (load.py) without the values of keys that name a secret and without logins in addresses."""
    return OmegaConf.to_yaml(OmegaConf.create(escaped(_mask(dataclasses.asdict(config)))))


def _mask(node: Any, key: str = "") -> Any:
    if isinstance(node, dict):
        return {name: _mask(value, str(name)) for name, value in node.items()}
    if isinstance(node, list):
        return [_mask(value, key) for value in node]
    if isinstance(node, str):
        return "***" if _SECRET_KEY.search(key) else without_login(node)
    return node
