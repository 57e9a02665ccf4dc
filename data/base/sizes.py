"""Sizes in bytes, as YAMLs say them and as messages show them."""

import math
import re

_UNITS = {"b": 0, "kb": 1, "mb": 2, "gb": 3, "tb": 4}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?b)?", re.IGNORECASE)


def parse_bytes(size: int | str) -> int:
    """`100gb` is 100 * 1024^3 bytes, as in Streaming; a number alone is in bytes. Raises ValueError."""
    match = _SIZE.fullmatch(str(size).strip())
    n_bytes = int(float(match[1]) * 1024 ** _UNITS[(match[2] or "b").lower()]) if match else 0
    if n_bytes < 1:
        raise ValueError(f"is {size!r}, but a size is a number of bytes above 0, or such as 500mb, 100gb or 2tb")
    return n_bytes


def format_bytes(n_bytes: int) -> str:
    """`1.5gb`: rounded up, so that it is enough when it is written where the message says."""
    unit = max((unit for unit, power in _UNITS.items() if n_bytes >= 1024**power), key=_UNITS.__getitem__, default="b")
    return f"{math.ceil(100 * n_bytes / 1024 ** _UNITS[unit]) / 100:g}{unit}"
