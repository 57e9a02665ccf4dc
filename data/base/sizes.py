"""Sizes in bytes, as YAMLs say them and as messages show them."""

import math
import re

from data.base.paths import shown

_UNITS = ("", "k", "m", "g", "t")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt]?)i?b)?", re.IGNORECASE)


def parse_bytes(size: int | str) -> int:
    """`100gb`, or 100GiB, is 100 * 1024^3 bytes, as in Streaming; a number alone is in bytes. Raises ValueError."""
    match = _SIZE.fullmatch(str(size).strip())
    if match is not None and not math.isfinite(float(match[1])):
        raise ValueError(f"is {shown(size)}, which is too large")
    n_bytes = int(float(match[1]) * 1024 ** _UNITS.index((match[2] or "").lower())) if match else 0
    if n_bytes < 1:
        raise ValueError(f"is {size!r}, but a size is a number of bytes above 0, or such as 500mb, 100gb or 2tb")
    return n_bytes


def format_bytes(n_bytes: float) -> str:
    """`1.5gb`: rounded up, so that it is enough when it is written where the message says."""
    power = max((power for power in range(len(_UNITS)) if n_bytes >= 1024**power), default=0)
    return f"{math.ceil(100 * n_bytes / 1024**power) / 100:g}{_UNITS[power]}b"
