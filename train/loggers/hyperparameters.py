"""The resolved config as loggers take it."""

import json

from data.config.sections import Section, leaves
from train.config.redaction import masked


def flat(config: Section) -> dict[str, str | int | float | bool]:
    """Dotted key -> value, without secrets; null, lists and empty mappings are text."""
    return {
        key: value if isinstance(value, str | int | float | bool) else json.dumps(value)
        for key, value in leaves(masked(config))
    }
