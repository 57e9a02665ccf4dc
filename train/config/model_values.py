"""The model's keys: those that a YAML has, and below them the values of its preset and of the weights' config.json."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from data.base.errors import ConfigError
from train.config.typed import near, show
from train.hf.config_json import at, contradictions
from train.hf.repository import KEY, read_values
from train.models.config import PRESETS, ModelConfig

Resolved = tuple[dict[str, Any], list[str]]
"""A tree of plain values, and what is wrong with it."""


def resolve_values(tree: dict[str, Any]) -> Resolved:
    """The tree with values in the place of ${...} and, below what is written of the model, those of the preset and of
    the pretrained weights' config.json; and what was wrong."""
    model = OmegaConf.create(tree).get("model")
    if not isinstance(model, DictConfig):
        return _plain_values(tree), []
    preset, name = model.get("preset"), model.get("pretrained_model_name_or_path")
    written, below, there, place = as_written(model), {}, None, ""
    try:
        if preset is not None:
            below = _preset(preset)
        if isinstance(name, str):
            there, place = read_values(name)
            # What is saved is read from other folders too.
            if (folder := Path(name).expanduser()).is_dir():
                written["pretrained_model_name_or_path"] = str(folder.absolute())
    except ConfigError as error:
        # Without their values nothing can be said about the model's.
        return {**_plain_values(tree), "model": {}}, [str(error)]
    resolved = _plain_values({**tree, "model": _merge(_merge(there or {}, below), written)})
    if there is None:
        return resolved, _unnamed_weights(written)
    # A preset speaks of every key, also where it leaves ModelConfig's default.
    whole = _merge(dataclasses.asdict(ModelConfig()), below) if preset is not None else {}
    wanted = _plain_values({**tree, "model": _merge(_merge(there, whole), written)})["model"]
    return resolved, _contradictions(there, place, wanted, written, preset)


def as_written(config: Any) -> Any:
    """Plain values, with ${...} as it is."""
    return OmegaConf.to_container(config, resolve=False)


def _plain_values(tree: dict[str, Any]) -> dict[str, Any]:
    resolved: Any = OmegaConf.to_container(OmegaConf.create(tree), resolve=True)
    return resolved


def _preset(preset: object) -> dict[str, Any]:
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ConfigError(
            f"model.preset is {show(preset)}, but the presets are {', '.join(PRESETS)}{near(preset, PRESETS)}"
        )
    return PRESETS[preset]


def _unnamed_weights(written: Mapping[str, Any]) -> list[str]:
    return [f"model.pretrained is true, but no weights are named: write {KEY}"] if written.get("pretrained") else []


def _contradictions(
    there: Mapping[str, Any], place: str, wanted: Mapping[str, Any], written: Mapping[str, Any], preset: str | None
) -> list[str]:
    """What of the keys that decide what weights mean is written otherwise than in the weights' config.json."""
    differences = []
    for key, was, here in contradictions(there, wanted):
        whose = f" by preset {preset}" if preset is not None and at(written, key) is None else ""
        differences.append(f"{key} is {show(here)}{whose}, but {show(was)} there")
    if not differences:
        return []
    return [f"model contradicts {place}: {'; '.join(differences)}: leave that to the weights, or name others"]


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` wins; mappings are merged, and an empty one (null) leaves those of `base` as they are."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, Mapping):
            merged[key] = _merge(below, value) if isinstance(value, Mapping) else below if value is None else value
        else:
            merged[key] = value
    return merged
