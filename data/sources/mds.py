"""The source for MDS folders whose samples are not tokenized yet, local or remote, written by this project or by LLM
Foundry.

LLM Foundry's finetuning converter writes `prompt` and `response` (str; older versions bytes), `messages` (json) or
`turns` (json: a list of {input_ids, labels}). Its text converter writes `text` (str).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xxhash

from data.base.errors import ConfigError, DataError, setting
from data.base.problems import Place, listed
from data.config.dataset import DatasetConfig
from data.examples.forms import TEXT_FORMS
from data.mds.folder import MdsFolder
from data.mds.writer import INDEX
from data.sources.formats import content as c
from data.sources.input_files import InputFiles, Opened
from data.sources.slices import Piece, Slice, grouped, size_of_slices

_AS_JSON = ("messages", "turns")
"""Columns that contain a list, or the JSON text of a list."""


@dataclass(frozen=True)
class MdsChunk:
    first: int
    """Index of the chunk's first sample in the folder, from 0."""
    size: int
    """Number of samples, all from one shard."""


def open_mds(config: DatasetConfig) -> MdsFolder:
    """Open the folder that `local`, `remote` and `split` specify. Raises the same errors as `MdsFolder.open`."""
    return MdsFolder.open(local=config.local, remote=config.remote, split=config.split, cache_dir=config.cache_dir)


class MdsSource:
    """The samples in order. The location of a row in messages is `folder sample N`, counted from 0 over the whole
    folder."""

    unit = "rows"
    is_local_only = False

    def __init__(self, config: DatasetConfig, mds: MdsFolder, record: InputFiles) -> None:
        """`mds` is the result of open_mds. Raises ConfigError if the remote dataset is too large, if the samples are
        already prepared rows, or if their columns are not supported and there is no `preprocessing_fn`."""
        self.mds, self._record = mds, record
        self.total = self.mds.n_samples
        key = "remote" if config.local is None else "local"
        has = f"is {getattr(config, key)!r}, whose samples have the columns {listed(self.mds.columns)}"
        if self.mds.is_rows:
            raise ConfigError(f"{has}: the samples are already prepared rows", key=key)
        if config.preprocessing_fn is None and not any(set(form) <= set(self.mds.columns) for form in TEXT_FORMS):
            forms = "; ".join(" and ".join(form) for form in TEXT_FORMS)
            fix = f"set {setting('preprocessing_fn')} to convert the samples"
            raise ConfigError(f"{has}, but the supported columns are {forms}: {fix}", key=key)
        if self.mds.remote is not None and self.mds.n_bytes > config.max_prepare_bytes:
            raise ConfigError(
                f"is {config.remote!r}, whose samples contain {self.mds.n_bytes:,} bytes to tokenize, but "
                f"max_prepare_bytes is {config.max_prepare_bytes:,}: convert the original data once with "
                "scripts/convert_finetuning_dataset.py --tokenizer, or increase max_prepare_bytes",
                key="remote",
            )

    @property
    def fingerprint(self) -> str:
        """Hash of the hashes of all shards in the index. Shards for which the index has no hash are downloaded and
        hashed."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        self.mds.check()
        digest = xxhash.xxh3_128(self.mds.fingerprint)
        unhashed = [number for number, shard in enumerate(self.mds.shards) if not shard.raw_data.hashes]
        for number in unhashed:
            self.mds.ensure(number)
        for file in self._record.hashed({self.mds.file(number): Opened() for number in unhashed}, "mds").values():
            digest.update(bytes.fromhex(file.digest))
        return digest.hexdigest()

    @property
    def inputs(self) -> list[dict[str, Any]]:
        about = {"samples": self.total, "bytes": self.mds.n_bytes, "columns": self.mds.columns}
        return [{"path": self.mds.name, **about, "fingerprint": self.fingerprint}]

    def slices(self, n_bytes: int) -> list[Slice]:
        """Slices of whole shards. They are computed from the index, so no shard is downloaded here."""
        self.mds.check()
        shards = zip(self.mds.shards, self.mds.ends.tolist(), strict=True)
        pieces = (Piece(file=0, size=shard.samples, start=end - shard.samples, stop=end) for shard, end in shards)
        n_bytes = size_of_slices(n_bytes, self.mds.n_bytes)
        return grouped(pieces, max(n_bytes * self.total // max(self.mds.n_bytes, 1), 1))

    def chunks(self, slice: Slice) -> Iterator[MdsChunk]:
        """Chunks of about a megabyte on average."""
        for piece in slice.pieces:
            assert piece.stop is not None
            shard = self.mds.shards[int(np.searchsorted(self.mds.ends, piece.stop))]
            size = min(max(c.BLOCK_BYTES * shard.samples // shard.raw_data.bytes, 1), c.CHUNK_ROWS)
            for first in range(piece.start, piece.stop, size):
                yield MdsChunk(first, min(size, piece.stop - first))

    def check_visible(self) -> None:
        if self.mds.remote is None and not (self.mds.folder / INDEX).is_file():
            raise DataError(f"{self.mds.folder / INDEX} is missing")

    def check_done(self, files: set[int]) -> None:
        """Shards are verified when they are read."""

    def rows(self, chunk: MdsChunk) -> Iterator[tuple[Place, Any]]:
        for sample in range(chunk.first, chunk.first + chunk.size):
            place = Place(0, sample, f"{self.mds.name} sample {sample}")
            n_bytes = self.mds.sample_bytes(sample)
            if n_bytes > c.MAX_ROW_BYTES:
                yield place, c.too_large(n_bytes)
            else:
                yield place, {name: _plain(name, value) for name, value in self.mds.read(sample).items()}


def _plain(name: str, value: Any) -> Any:
    """The value as it would be in a row of a JSONL file. A value of an unsupported type is returned unchanged, and
    data/examples/examples.py reports it."""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return value
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if name in _AS_JSON and isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
