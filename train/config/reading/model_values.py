"""The values of the model's keys: from the YAML, the preset and the config.json of pretrained weights."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.config.sections import Defect, Section, partial
from data.config.suggest import show
from train.config.reading.interpolation import resolve
from train.hf.config_json import at, contradictions
from train.hf.repository import KEY
from train.models.config import PRESETS, ModelConfig


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """The values in the config.json of pretrained weights."""

    values: Mapping[str, Any]
    """The values, by the keys of ModelConfig."""
    place: str
    """The path of the config.json."""


PENDING = Pretrained(values={}, place="")
"""A placeholder for weights whose config.json has not been read yet."""


def without_references(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the tree. If `model` or one of its sections is a reference to a mapping, the mapping replaces the
    reference."""
    for path in (("model",), ("model", "attn_config"), ("model", "ffn_config")):
        above = tree if len(path) == 1 else tree.get("model")
        if isinstance(above, dict) and isinstance(above.get(path[-1]), str):
            value: Any = resolve(tree)[0]
            for part in path:
                value = value[part]
            if isinstance(value, dict):
                tree = {**tree, "model": value if len(path) == 1 else {**above, path[-1]: value}}
    return tree


def pretrained_name(tree: dict[str, Any]) -> str | None:
    """Return the folder or the hub name of the pretrained weights, or None if no pretrained weights are set."""
    return _text(tree, "pretrained_model_name_or_path")


def with_values(tree: dict[str, Any], pretrained: Pretrained | None) -> dict[str, Any]:
    """Return the tree with the values of the preset and of the pretrained weights added to `model`. Values that are
    already set in `model` are kept."""
    written = tree.get("model")
    if not isinstance(written, dict):
        return tree
    below = _merge(pretrained.values if pretrained is not None else {}, PRESETS.get(_preset(tree), {}))
    named = pretrained_name(tree)
    if named is not None and pretrained not in (None, PENDING) and (folder := Path(named).expanduser()).is_dir():
        # An absolute path, because a saved config is also read from other working directories.
        written = {**written, "pretrained_model_name_or_path": str(folder.absolute())}
    return {**tree, "model": _merge(below, written)}


def without_unwritten(config: Any, tree: Mapping[str, Any]) -> Any:
    """Return a config whose `model` has only the values in the tree, because the other values come from the weights."""
    values = vars(config)
    if "model" not in values:
        return config
    return partial(type(config), {**values, "model": _only(values["model"], tree["model"])})


def _only(section: Section, values: Mapping[str, Any] | None) -> Any:
    kept = {name: value for name, value in vars(section).items() if name in (values or {})}
    sections = {name: _only(value, (values or {})[name]) for name, value in kept.items() if isinstance(value, Section)}
    return partial(type(section), kept | sections)


def unnamed_weights(tree: Mapping[str, Any]) -> list[Defect]:
    """Return a defect if LLM Foundry's `pretrained: true` is set, but no pretrained weights are specified."""
    model = tree.get("model")
    if not isinstance(model, dict) or model.get("pretrained") is not True:
        return []
    return [Defect("model.pretrained", f"is true, but no weights are specified: set {KEY}")]


def contradicting_weights(tree: dict[str, Any], pretrained: Pretrained) -> list[Defect]:
    """Return a defect for each key that must agree with the weights' config.json but differs from it."""
    written, preset = _model_of(tree), _preset(tree)
    # A preset sets every key, including those that keep ModelConfig's default.
    whole = _merge(dataclasses.asdict(ModelConfig()), PRESETS[preset]) if preset else {}
    wanted = _model_of({**tree, "model": _merge(_merge(pretrained.values, whole), tree["model"])})
    defects = []
    for key, was, here in contradictions(pretrained.values, wanted):
        whose = f" in preset {preset}" if preset and at(written, key) is None else ""
        defects.append(
            Defect(
                f"model.{key}",
                f"is {show(here)}{whose}, but {show(was)} in {pretrained.place}: remove the key, or use other weights",
            )
        )
    return defects


def _model_of(tree: dict[str, Any]) -> dict[str, Any]:
    """The values of the section `model`, with references resolved."""
    model = resolve(tree)[0].get("model")
    return model if isinstance(model, dict) else {}


def _preset(tree: dict[str, Any]) -> str:
    """Return the name of the preset; empty if no preset is set, or if it does not exist."""
    preset = _text(tree, "preset")
    return preset if preset is not None and preset in PRESETS else ""


def _text(tree: dict[str, Any], key: str) -> str | None:
    """Return the string at a key of the model, with references resolved. Return None if the value is not a string."""
    model = tree.get("model")
    value = model.get(key) if isinstance(model, dict) else "${"
    if isinstance(value, str) and "${" in value:  # resolve only if necessary, because it takes time
        value = _model_of(tree).get(key)
    return value if isinstance(value, str) else None


def _merge(base: Mapping[str, Any], over: Mapping[str, Any] | None) -> dict[str, Any]:
    """Merge mappings recursively. Values of `over` take precedence, except that null does not replace a mapping of
    `base`."""
    merged = dict(base)
    for key, value in (over or {}).items():
        below = merged.get(key)
        if isinstance(below, Mapping):
            merged[key] = _merge(below, value) if isinstance(value, Mapping) else below if value is None else value
        else:
            merged[key] = value
    return merged
