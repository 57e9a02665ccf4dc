"""A config as it is shown, and as it is saved: without secrets."""

import dataclasses
from typing import Any

from omegaconf import OmegaConf

from data.base.redaction import HIDDEN, is_secret_name, redacted, variable_of, without_secrets
from data.config.sections import Section, join
from train.config.reading.interpolation import escaped

_LEFT_OUT = "# Secrets are left out of this file; a run that is started with it takes them from the environment:\n"
_NOWHERE = "in no variable, write it on the command line"


def masked_yaml(config: Section) -> str:
    """The config as it is shown: *** in the place of each secret."""
    return _yaml(_mask(config))


def saved_yaml(config: Section) -> str:
    """The config as it is saved and read again: without secrets, which a comment at the top names with the environment
    variables that take their place."""
    left_out: dict[str, list[str]] = {}
    text = _yaml(_strip(config, "", left_out))
    if not left_out:
        return text
    lines = [f"#   {key}: {', '.join(dict.fromkeys(sources))}\n" for key, sources in left_out.items()]
    return "".join([_LEFT_OUT, *lines, text])


def _yaml(values: Any) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(escaped(values)))


def _mask(node: Any, name: str = "") -> Any:
    # Keys of mappings are no fields but names that a user gives, such as those of splits.
    if dataclasses.is_dataclass(node):
        return {field.name: _mask(getattr(node, field.name), field.name) for field in dataclasses.fields(node)}
    if isinstance(node, dict):
        return {key: _mask(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_mask(value, name) for value in node]
    if isinstance(node, str):
        return HIDDEN if is_secret_name(name) else redacted(node)
    return node


def _strip(node: Any, key: str, left_out: dict[str, list[str]], name: str = "") -> Any:
    """Plain values; the keys whose values lost something are put into left_out, with what takes its place."""
    if dataclasses.is_dataclass(node):
        names = [field.name for field in dataclasses.fields(node)]
        return {name: _strip(getattr(node, name), join(key, name), left_out, name) for name in names}
    if isinstance(node, dict):
        return {name: _strip(value, join(key, name), left_out) for name, value in node.items()}
    if isinstance(node, list):
        return [_strip(value, f"{key}[{number}]", left_out, name) for number, value in enumerate(node)]
    if not isinstance(node, str):
        return node
    if is_secret_name(name):
        left_out[key] = [variable_of(name) or _NOWHERE]
        return None
    text, sources = without_secrets(node)
    if sources:
        left_out[key] = [source or _NOWHERE for source in sources]
    return text
