"""The resolved config in the form that loggers expect."""

import json

from data.config.sections import Section, leaves
from train.config.redaction import masked


def flat(config: Section) -> dict[str, str | int | float | bool]:
    """Return the values by dotted key, without secrets. null, lists and empty mappings are converted to JSON text."""
    return {
        key: value if isinstance(value, str | int | float | bool) else json.dumps(value)
        for key, value in leaves(masked(config))
    }
