"""safetensors files: 8 bytes give the header's length, a JSON header says where each tensor lies, then come the bytes.

Headers are read and written here without the library, which maps whole files into memory.
"""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from train.models.precision import BY_SAFETENSORS, FORMATS, Precision

_MOST_HEADER_BYTES = 100_000_000
"""The library's own limit."""
_LFS_POINTER = b"version https://git-lfs"


class Stored(NamedTuple):
    """Where a tensor lies in its file."""

    dtype: str
    """As safetensors names it: F32, BF16, F16, ..."""
    shape: tuple[int, ...]
    start: int
    stop: int
    """Of its bytes, counted from the file's beginning."""


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of a file by name. Reads no tensor.

    Raises ValueError, which begins with the file's name, when it is no safetensors file or not all of one.
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
        raise ValueError(f"{path.name} is cut off: it has {size:,} bytes, its header alone {8 + length:,}")
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        tensors = {name: _stored(entry, 8 + length) for name, entry in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"{path.name} has a header that is damaged") from None
    end = max((stored.stop for stored in tensors.values()), default=8 + length)
    if size != end:
        message = "is cut off" if size < end else "has more than its header speaks of"
        raise ValueError(f"{path.name} {message}: it has {size:,} bytes of {end:,}")
    return tensors


def _stored(entry: Mapping[str, Any], offset: int) -> Stored:
    dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if start < 0 or (dtype in BY_SAFETENSORS and stop - start != math.prod(shape) * BY_SAFETENSORS[dtype].n_bytes):
        raise ValueError
    return Stored(dtype, shape, offset + start, offset + stop)


def header(shapes: Mapping[str, tuple[int, ...]], precision: Precision) -> bytes:
    """What a file begins with that holds these tensors, one behind the other."""
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
