"""A config as it is shown, all of it or what its user has chosen, and as it is saved: without secrets."""

import dataclasses
from typing import Any

from omegaconf import OmegaConf

from data.base.redaction import HIDDEN, is_secret_name, redacted, variable_of, without_secrets
from data.config.sections import Section, join
from train.config.reading.interpolation import escaped

_LEFT_OUT = "# Secrets are left out of this file; a run that is started with it takes them from the environment:\n"
_NOWHERE = "in no variable, write it on the command line"
_REQUIRED = object()
"""The default of a field that has none."""


def masked_yaml(config: Section) -> str:
    """The config as it is shown: *** in the place of each secret."""
    return _yaml(masked(config))


def saved_yaml(config: Section) -> str:
    """The config as it is saved and read again: without secrets, which a comment at the top names with the environment
    variables that take their place."""
    left_out: dict[str, list[str]] = {}
    text = _yaml(_strip(config, "", left_out))
    if not left_out:
        return text
    lines = [f"#   {key}: {', '.join(dict.fromkeys(sources))}\n" for key, sources in left_out.items()]
    return "".join([_LEFT_OUT, *lines, text])


def differing(config: Section) -> dict[str, Any]:
    """What differs from the defaults: dotted key -> value, in the order of the schema. Required keys are among it."""
    found: dict[str, Any] = {}
    _collect(config, None, "", found)
    return found


def masked(node: Any, name: str = "") -> Any:
    """Plain values: *** in the place of each secret. name: of the field that holds the node."""
    # Keys of mappings are no fields but names that a user gives, such as those of splits.
    if dataclasses.is_dataclass(node):
        return {field.name: masked(getattr(node, field.name), field.name) for field in dataclasses.fields(node)}
    if isinstance(node, dict):
        return {key: masked(value) for key, value in node.items()}
    if isinstance(node, list):
        return [masked(value, name) for value in node]
    if isinstance(node, str):
        return HIDDEN if is_secret_name(name) else redacted(node)
    return node


def _yaml(values: Any) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(escaped(values)))


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


def _collect(section: Any, default: Any, key: str, found: dict[str, Any]) -> None:
    """default: the section that stands for it in the section above; None takes the fields' own defaults."""
    for field in dataclasses.fields(section):
        value, below = getattr(section, field.name), join(key, field.name)
        usual = getattr(default, field.name) if isinstance(default, type(section)) else _default(field)
        if value == usual:
            continue
        if dataclasses.is_dataclass(value):
            _collect_whole(value, usual, below, found)
        elif isinstance(value, dict) and any(map(dataclasses.is_dataclass, value.values())):
            for name, item in value.items():
                _collect_whole(item, None, join(below, name), found)
        elif isinstance(value, list):
            found[below] = [differing(item) if isinstance(item, Section) else masked(item) for item in value]
        else:
            found[below] = masked(value, field.name)


def _collect_whole(section: Any, default: Any, key: str, found: dict[str, Any]) -> None:
    """Also where each of its fields has its default."""
    before = len(found)
    _collect(section, default, key, found)
    if len(found) == before:
        found[key] = {}


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else _REQUIRED
