"""safetensors files: 8 bytes with the header's length, a JSON header with the location of each tensor, and the data.

Headers are read and written without the safetensors library, because the library memory-maps whole files.
"""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from train.models.precision import BY_SAFETENSORS, FORMATS, Precision

_MOST_HEADER_BYTES = 100_000_000
"""Maximum size of a header, the same as in the safetensors library."""
_LFS_POINTER = b"version https://git-lfs"


class Stored(NamedTuple):
    """The location of a tensor in its file."""

    dtype: str
    """The dtype in safetensors' notation: F32, BF16, F16, ..."""
    shape: tuple[int, ...]
    start: int
    stop: int
    """The byte range [start, stop), counted from the beginning of the file."""


def read_header(path: Path) -> dict[str, Stored]:
    """Read the header of a file and return its tensors by name. Reads no tensor.

    Raises ValueError if the file is truncated or is not a safetensors file. The message begins with the file's name.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
        if first + file.read(15) == _LFS_POINTER:
            raise ValueError(f"{path.name} is a Git LFS pointer, not the file itself: run `git lfs pull`")
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        if not 2 <= length <= _MOST_HEADER_BYTES:
            raise ValueError(f"{path.name} is not a safetensors file ({size:,} bytes)")
        file.seek(8)
        text = file.read(length)
    if len(text) < length:
        raise ValueError(f"{path.name} is truncated: it has {size:,} bytes, but its header ends at byte {8 + length:,}")
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        tensors = {name: _stored(entry, 8 + length) for name, entry in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"{path.name} has a damaged header") from None
    end = max((stored.stop for stored in tensors.values()), default=8 + length)
    if size != end:
        message = "is truncated" if size < end else "is longer than its header describes"
        raise ValueError(f"{path.name} {message}: it has {size:,} bytes, expected {end:,}")
    return tensors


def _stored(entry: Mapping[str, Any], offset: int) -> Stored:
    dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if start < 0 or (dtype in BY_SAFETENSORS and stop - start != math.prod(shape) * BY_SAFETENSORS[dtype].n_bytes):
        raise ValueError
    return Stored(dtype, shape, offset + start, offset + stop)


def header(shapes: Mapping[str, tuple[int, ...]], precision: Precision) -> bytes:
    """Return the header of a file that contains these tensors in this order."""
    dtype = FORMATS[precision].safetensors
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + math.prod(shape) * FORMATS[precision].n_bytes
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
