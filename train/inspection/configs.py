"""The keys in which two saved configs differ."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from data.base.errors import yaml_of
from train.checkpoint.storage.manifest import CONFIG
from train.config.load import load_saved_config
from train.config.redaction import masked_yaml
from train.config.schema import TrainConfig

_LONGEST_SHOWN = 100


def config_of(checkpoint: Path) -> TrainConfig | None:
    """That in the checkpoint or, of one written before there were manifests, that beside it; None where there is none.

    Raises ConfigError for one that cannot be read.
    """
    places = (checkpoint / CONFIG, checkpoint.parent / CONFIG)
    file = next((place for place in places if place.is_file()), None)
    return load_saved_config(file) if file is not None else None


def config_differences(a: TrainConfig, b: TrainConfig) -> list[str]:
    """A line for each key, as a YAML has it; secrets are neither shown nor compared."""
    of_a, of_b = (dict(_values(yaml.safe_load(masked_yaml(config)))) for config in (a, b))
    keys = dict.fromkeys([*of_a, *of_b])
    return [
        f"{key}: {_show(of_a, key)} -> {_show(of_b, key)}"
        for key in keys
        if key not in of_a or key not in of_b or of_a[key] != of_b[key]
    ]


def _values(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for name, value in node.items():
            yield from _values(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, node


def _show(values: dict[str, Any], key: str) -> str:
    text = yaml_of(values[key]) if key in values else "absent"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."
