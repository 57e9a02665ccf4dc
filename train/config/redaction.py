"""Convert a config to YAML or plain values without secrets, for display and for saving."""

import dataclasses
from typing import Any

from omegaconf import OmegaConf

from data.config.sections import Section, join
from data.secrets.names import is_secret_name, variable_of
from data.secrets.redaction import HIDDEN, redacted, without_secrets
from train.config.reading.interpolation import escaped

_LEFT_OUT = "# This file contains no secrets. A run with this config reads the secrets from the environment:\n"
_NOWHERE = "no variable exists, so pass the value on the command line"
_REQUIRED = object()
"""Used as the default of a required field, which has none. It differs from every value."""


def masked_yaml(config: Section) -> str:
    """Return the config as YAML for display, with *** in place of each secret."""
    return _yaml(masked(config))


def saved_yaml(config: Section) -> str:
    """Return the config as YAML for saving, without secrets. A comment at the top lists the keys of the removed
    secrets, and the environment variables from which the secrets are read instead."""
    left_out: dict[str, list[str]] = {}
    text = _yaml(_strip(config, "", left_out))
    if not left_out:
        return text
    lines = [f"#   {key}: {', '.join(dict.fromkeys(sources))}\n" for key, sources in left_out.items()]
    return "".join([_LEFT_OUT, *lines, text])


def differing(config: Section) -> dict[str, Any]:
    """Return the values that differ from their defaults, and the values of required keys, by dotted key in the order of
    the schema."""
    found: dict[str, Any] = {}
    _collect(config, None, "", found)
    return found


def masked(node: Any, name: str = "") -> Any:
    """Return plain values with *** in place of each secret. name: the name of the field that contains the node."""
    # The keys of a mapping are not names of fields. They are chosen by the user, such as the names of splits.
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
    """Return plain values without secrets. Each key whose secret was removed is added to left_out, with the environment
    variables to set."""
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
    """Add the values of a section that differ from their defaults to `found`. default: the parent section's default for
    this section; None uses the defaults of the fields."""
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
    """Like _collect, but a section whose fields all have their defaults is included as {}."""
    before = len(found)
    _collect(section, default, key, found)
    if len(found) == before:
        found[key] = {}


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else _REQUIRED
