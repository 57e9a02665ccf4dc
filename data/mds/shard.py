"""Check whether the file of a shard matches the index. The header of the shard is checked too."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from data.base.errors import DataError, reason

_BLOCK = 1 << 20


def file_defect(file: Path, info: Any, *, hashes: bool = True) -> str | None:
    """A message that describes how the file's size or hash differs from its FileInfo in the index; None if they match.
    The message can be appended to the name of the file."""
    try:
        size = file.stat().st_size
        if size != info.bytes:
            return f"has {size} bytes, but {info.bytes} are expected"
        name = algorithm(info) if hashes else None
        if name and _hash(file, name) != info.hashes[name]:
            return f"is damaged (its {name} hash differs from the index)"
    except OSError as error:
        return f"cannot be read ({reason(error)})"
    return None


def check_header(file: Path, reader: Any) -> None:
    """Raises DataError if the header's count, columns or offsets do not match the index or the file's size."""
    with file.open("rb") as opened:
        n_samples = int(np.frombuffer(opened.read(4), np.uint32)[0])
        if n_samples != reader.samples:
            raise DataError(f"has {n_samples} samples, but index.json lists {reader.samples}")
        offsets = np.frombuffer(opened.read(4 * (n_samples + 1)), np.uint32).astype(np.int64)
        start = 4 * (n_samples + 2)
        if not (offsets[0] >= start and offsets[-1] == reader.raw_data.bytes and np.all(np.diff(offsets) > 0)):
            raise DataError("has offsets that do not increase from the header to the end of the file")
        try:
            header = json.loads(opened.read(int(offsets[0]) - start))
            same = all(header[key] == getattr(reader, key) for key in ("column_names", "column_encodings"))
        except (ValueError, RecursionError, KeyError, TypeError):
            raise DataError("has a header that is not a valid MDS header") from None
        if not same:
            raise DataError("does not have the columns that index.json lists")


def decompress(packed: Path, whole: Path, compression: str) -> Path:
    from streaming.base import compression as streaming

    whole.parent.mkdir(parents=True, exist_ok=True)
    try:
        content = streaming.decompress(compression, packed.read_bytes())
    except Exception as error:  # each library raises its own errors
        raise DataError(f"{packed} cannot be decompressed ({error}): write the shard again") from None
    whole.write_bytes(content)
    return whole


def algorithm(info: Any) -> str | None:
    """The fastest of the algorithms for which the index has a hash of the file."""
    return min(info.hashes, key=lambda name: (not name.startswith("xxh"), name), default=None)


def _hash(file: Path, name: str) -> str:
    # Streaming's hash algorithms come from these two libraries. Streaming's own hash function loads the whole file into
    # memory.
    digest = getattr(xxhash if name.startswith("xxh") else hashlib, name)()
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
