"""Sizes in bytes, in YAML files, messages and progress bars."""

import math
import re
from typing import Any

from tqdm import tqdm

from data.base.paths import shown

_UNITS = ("", "k", "m", "g", "t")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt]?)i?b)?", re.IGNORECASE)


def parse_bytes(size: int | str) -> int:
    """Convert a size to bytes: `100gb` and `100GiB` are 100 * 1024^3 bytes, as in Streaming; a plain number is in
    bytes. Raises ValueError for an invalid size."""
    match = _SIZE.fullmatch(str(size).strip())
    if match is not None and not math.isfinite(float(match[1])):
        raise ValueError(f"is {shown(size)}, which is too large")
    n_bytes = int(float(match[1]) * 1024 ** _UNITS.index((match[2] or "").lower())) if match else 0
    if n_bytes < 1:
        raise ValueError(
            f"is {size!r}, but it must be a positive number of bytes, or a size such as 500mb, 100gb or 2tb"
        )
    return n_bytes


def format_bytes(n_bytes: float, *, down: bool = False) -> str:
    """Format a number of bytes as text, such as `1.5gb`. Required sizes are rounded up, so that the value shown is
    sufficient. Available sizes are rounded down (`down`), so that the value shown is never more than what is
    available."""
    power = max((power for power in range(len(_UNITS)) if n_bytes >= 1024**power), default=0)
    hundredths = 100 * n_bytes // 1024**power if down else -(-100 * n_bytes // 1024**power)
    return f"{hundredths / 100:.2f}".rstrip("0").rstrip(".") + f"{_UNITS[power]}b"


def progress_bar(desc: str, total: int | None, *, unit: str = "B", **settings: Any) -> tqdm:
    """A tqdm bar. Bytes are scaled by powers of 1024, as in messages, and other units by powers of 1000."""
    divisor = 1024 if unit == "B" else 1000
    return tqdm(desc=desc, total=total, unit=unit, unit_scale=True, unit_divisor=divisor, **settings)
