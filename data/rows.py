"""A prepared folder, opened: checked once, read row by row. Index, shards and hashes are Streaming's."""

import json
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from data.config import DatasetConfig
from data.errors import DataError
from data.prepare import COLUMNS, exclusive, prepare
from data.tokenizer import Tokenizer

CHECKED = "checked.json"
"""Remembers the shards whose hashes were right, by size and time of change."""


@dataclass(frozen=True, eq=False)
class Row:
    tokens: np.ndarray
    loss_mask: np.ndarray
    lengths: np.ndarray
    """Of the row's documents, in order; they add up to the tokens."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Rows:
    """The rows of a prepared folder."""

    folder: Path
    fingerprint: str
    max_seq_len: int
    n_rows: int
    tokens: int
    """Of all rows, padding not counted."""
    trained_tokens: int
    shard_sizes: np.ndarray
    """Rows of each shard, int64."""
    shards: Sequence[Any] = field(repr=False)
    """Streaming's readers."""

    def read(self, row_id: int) -> Row:
        """Raises DataError when the shard is gone or damaged since it was checked."""
        shard = int(np.searchsorted(self._shard_ends, row_id, side="right"))
        place = row_id - int(self._shard_ends[shard] - self.shard_sizes[shard])
        try:
            row = Row(**self.shards[shard][place])
        except Exception as error:  # whatever a damaged file makes of the decoder
            raise self._damaged(shard, place, f"{type(error).__name__}: {error}") from None
        n = len(row.tokens)
        if not n == len(row.loss_mask) == row.lengths.sum() or not 0 < n <= self.max_seq_len:
            raise self._damaged(shard, place, f"{n} tokens, {len(row.loss_mask)} of mask, lengths {row.lengths.sum()}")
        return row

    @cached_property
    def _shard_ends(self) -> np.ndarray:
        return np.cumsum(self.shard_sizes)

    def _damaged(self, shard: int, place: int, why: str) -> DataError:
        file = self.folder / self.shards[shard].raw_data.basename
        return DataError(f"row {place} of {file} cannot be read ({why}): {_way_out(self.folder)}")


def open_rows(config: DatasetConfig, tokenizer: Tokenizer) -> Rows:
    """The dataset's rows, prepared first when they are not there yet. Involves no collective.

    Raises what prepare raises, and DataError when a shard's size, or hash (looked at once), is not the index's.
    """
    folder = prepare(config, tokenizer)
    manifest = _read_json(folder / "manifest.json")
    shards = _open_shards(folder)
    shard_sizes = np.array([shard.samples for shard in shards], dtype=np.int64)
    if shard_sizes.sum() != manifest["rows"]:
        raise DataError(
            f"{folder} has {shard_sizes.sum()} rows in its index, but {manifest['rows']} in its manifest: "
            f"{_way_out(folder)}"
        )
    return Rows(
        folder=folder,
        fingerprint=manifest["fingerprint"],
        max_seq_len=manifest["max_seq_len"],
        n_rows=manifest["rows"],
        tokens=manifest["tokens_kept"],
        trained_tokens=manifest["trained_tokens"],
        shard_sizes=shard_sizes,
        shards=shards,
    )


def _open_shards(folder: Path) -> list[Any]:
    """Streaming's readers of the folder's shards, whose sizes and hashes are right."""
    from streaming import Stream
    from streaming.base.world import World

    _read_json(folder / "index.json")
    # A whole StreamingDataset would add shared memory, barriers between ranks and an epoch of its own, for nothing:
    # the folder is local and complete, and the order is ours.
    shards: list[Any] = list(Stream(local=str(folder), split="").get_shards(World.detect(), False))
    for shard in shards:
        if dict(zip(shard.column_names, shard.column_encodings, strict=True)) != COLUMNS:
            raise DataError(f"{folder} has other columns than {', '.join(COLUMNS)}: {_way_out(folder)}")
    if _checked(folder) != _state(folder, shards):
        can_lock = os.access(folder.parent, os.W_OK)
        with exclusive(folder.with_suffix(".lock")) if can_lock else nullcontext():
            state = _state(folder, shards)
            if _checked(folder) != state:
                _check_hashes(folder, shards)
                _remember(folder, state)
    return shards


def _state(folder: Path, shards: list[Any]) -> dict[str, list[int]]:
    """Size and time of change of each shard. Raises DataError for one that is missing or has another size."""
    state = {}
    for shard in shards:
        info = shard.raw_data
        try:
            stat = (folder / info.basename).stat()
        except OSError as error:
            raise DataError(f"{folder / info.basename} cannot be read ({error.strerror}): {_way_out(folder)}") from None
        if stat.st_size != info.bytes:
            raise DataError(
                f"{folder / info.basename} has {stat.st_size} bytes, but {info.bytes} were written: {_way_out(folder)}"
            )
        state[info.basename] = [stat.st_size, stat.st_mtime_ns]
    return state


def _check_hashes(folder: Path, shards: list[Any]) -> None:
    for shard in shards:
        file = folder / shard.raw_data.basename
        if xxhash.xxh64_hexdigest(file.read_bytes()) != shard.raw_data.hashes["xxh64"]:
            raise DataError(f"{file} is damaged (its xxh64 is not the index's): {_way_out(folder)}")


def _checked(folder: Path) -> Any:
    try:
        return json.loads((folder / CHECKED).read_text())
    except (OSError, ValueError):
        return None


def _remember(folder: Path, state: dict[str, list[int]]) -> None:
    temporary = folder / f"{CHECKED}.tmp"
    try:
        temporary.write_text(json.dumps(state))
        temporary.rename(folder / CHECKED)
    except OSError:
        pass  # a folder that cannot be written is checked each time


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}): {_way_out(file.parent)}") from None


def _way_out(folder: Path) -> str:
    return f"delete the folder {folder.name}, and it is prepared again"
