"""The resolved config as loggers take it."""

import json
from collections.abc import Iterator
from typing import Any

from data.config.sections import Section, join
from train.config.redaction import masked


def flat(config: Section) -> dict[str, str | int | float | bool]:
    """Dotted key -> value, without secrets; null, lists and empty mappings are text."""
    return dict(_leaves(masked(config), ""))


def _leaves(node: Any, key: str) -> Iterator[tuple[str, str | int | float | bool]]:
    if isinstance(node, dict) and node:
        for name, value in node.items():
            yield from _leaves(value, join(key, name))
    else:
        yield key, node if isinstance(node, str | int | float | bool) else json.dumps(node)
