"""Rows, opened: checked once, read one by one. They are prepared first, or lie in an MDS folder of rows already."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.base.errors import ConfigError, DataError, under
from data.base.problems import listed
from data.config.dataset import DatasetConfig
from data.mds.columns import COLUMNS, ROW_FORMS
from data.mds.folder import MdsFolder
from data.mds.writer import INDEX, MANIFEST
from data.preparation.prepare import prepare
from data.sources.source import open_source
from data.tokenization.tokenizer import Tokenizer

NOT_TRAINED = -100
"""The label of a token that is not trained on."""
_HINT = "write the rows again, or name the tokenizer and the max_seq_len that they were written for"


@dataclass(frozen=True, eq=False)
class Row:
    tokens: np.ndarray
    loss_mask: np.ndarray
    lengths: np.ndarray
    """Of the row's documents, in order; they add up to the tokens."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Rows:
    """The rows of one source."""

    folder: Path
    fingerprint: str
    max_seq_len: int
    n_rows: int
    tokens: int | None
    """Of all rows, padding not counted; None where nobody has counted."""
    trained_tokens: int | None
    vocab_size: int
    mds: MdsFolder = field(repr=False)
    decode: Callable[[Mapping[str, Any]], Row] = field(repr=False)
    """Makes the row of a sample; raises ValueError."""

    @property
    def shard_sizes(self) -> np.ndarray:
        """Rows of each shard, int64."""
        return self.mds.shard_sizes

    @property
    def is_remote(self) -> bool:
        return self.mds.remote is not None

    def read(self, row_id: int) -> Row:
        """Brings the row's shard first when it is not here. Raises DataError when that fails, or the row is wrong."""
        sample = self.mds.read(row_id)
        try:
            row = self.decode(sample)
            self._check(row)
        except ValueError as error:
            raise self.mds.damaged(row_id, str(error), _HINT) from None
        return row

    def prefetch(self, row_ids: np.ndarray) -> None:
        """Begins to bring the shards of these rows, in threads of this process; nothing to do where they are here."""
        shards = np.searchsorted(self.mds.ends, row_ids, side="right")
        self.mds.prefetch(dict.fromkeys(shards.tolist()))

    def _check(self, row: Row) -> None:
        n = len(row.tokens)
        if not n == len(row.loss_mask) == row.lengths.sum() or np.any(row.lengths < 1) or not n:
            raise ValueError(f"{n} tokens, {len(row.loss_mask)} of mask, lengths {row.lengths.sum()}")
        if n > self.max_seq_len:
            raise ValueError(f"{n} tokens, but max_seq_len is {self.max_seq_len}")
        low, high = int(row.tokens.min()), int(row.tokens.max())
        if low < 0 or high >= self.vocab_size:
            defect = low if low < 0 else high
            raise ValueError(f"the id {defect}, but the tokenizer has ids below {self.vocab_size}: is it another's?")


@dataclass(frozen=True)
class BrokenShard:
    file: str
    first: int
    last: int
    """Its first and last sample, counted from 0 over the whole folder."""
    why: str


@dataclass(frozen=True)
class Verification:
    folder: str
    n_shards: int
    n_samples: int
    unhashed: int
    """Shards without a hash in the index, of which only size and header were looked at."""
    broken: list[BrokenShard]


def verify(source: Rows | MdsFolder | Path) -> Verification:
    """Reads every shard, whatever was remembered; those of a remote are brought first when they are not here.

    Raises ConfigError or DataError when the index itself is missing or wrong.
    """
    if isinstance(source, Path):
        source = MdsFolder.open(local=str(source), remote=None, split=None, cache_dir="")
    mds = source.mds if isinstance(source, Rows) else source
    broken = []
    for number, end in enumerate(mds.ends.tolist()):
        why = _broken(mds, number)
        if why is not None:
            name = mds.shards[number].raw_data.basename
            broken.append(BrokenShard(name, end - mds.shards[number].samples, end - 1, why))
    unhashed = sum(not shard.raw_data.hashes for shard in mds.shards)
    return Verification(mds.name, len(mds.shards), mds.n_samples, unhashed, broken)


def _broken(mds: MdsFolder, number: int) -> str | None:
    if mds.file(number).exists():
        return mds.defect(number)
    try:
        mds.ensure(number)
    except DataError as error:
        return str(error)
    return None


def check_source(config: DatasetConfig) -> None:
    """Raises ConfigError or DataError when the dataset's one source is not there. Needs no tokenizer; quick."""
    if config.local is None and config.remote is None:
        open_source(config)
    else:
        open_mds(config)


def open_mds(config: DatasetConfig) -> MdsFolder:
    """The folder of `local`, `remote` and `split`. Raises what MdsFolder.open does."""
    return MdsFolder.open(local=config.local, remote=config.remote, split=config.split, cache_dir=config.cache_dir)


def open_rows(config: DatasetConfig, tokenizer: Tokenizer) -> Rows:
    """The rows of the dataset's one source, prepared first when they are not there yet. Involves no collective.

    An MDS folder is read in place when its samples are rows: ours; `input_ids` and `labels` of the same length, -100
    where nothing is trained; `tokens` alone, all of them trained on, where documents end with the tokenizer's eos. Ids
    are an ndarray, or bytes of int64. Raises what prepare and MdsFolder raise, ConfigError when the folder's manifest
    says another tokenizer or max_seq_len, and DataError when its first row cannot be.
    """
    if config.local is not None or config.remote is not None:
        mds = open_mds(config)
        if mds.is_rows:
            return _open_in_place(mds, config, tokenizer)
    return _open_prepared(prepare(config, tokenizer), tokenizer)


def _open_prepared(folder: Path, tokenizer: Tokenizer) -> Rows:
    hint = f"delete the folder {folder.name}, and it is prepared again"
    try:
        mds = MdsFolder.open(local=str(folder), remote=None, split=None, cache_dir="", hint=hint)
    except ConfigError:
        raise DataError(f"{folder / INDEX} is not there: {hint}") from None
    if mds.columns != COLUMNS:
        raise DataError(f"{folder} has other columns than {', '.join(COLUMNS)}: {hint}")
    manifest = mds.manifest
    if manifest is None:
        raise DataError(f"{folder / MANIFEST} is not there, or is no object: {hint}")
    _check_count(mds, manifest)
    mds.check()
    return Rows(
        folder=folder,
        fingerprint=manifest["fingerprint"],
        max_seq_len=manifest["max_seq_len"],
        n_rows=manifest["rows"],
        tokens=manifest["tokens_kept"],
        trained_tokens=manifest["trained_tokens"],
        vocab_size=tokenizer.vocab_size,
        mds=mds,
        decode=_decode_ours,
    )


def _open_in_place(mds: MdsFolder, config: DatasetConfig, tokenizer: Tokenizer) -> Rows:
    if config.preprocessing_fn is not None:
        raise ConfigError(
            f"preprocessing_fn is {config.preprocessing_fn!r}, but the samples of {mds.name} are rows already "
            f"({listed(mds.columns)}): leave it out"
        )
    manifest = mds.manifest or {}
    if manifest:
        _check_manifest(mds, manifest, config, tokenizer)
    mds.check()
    form = next(form for form in ROW_FORMS if set(form) <= set(mds.columns))
    rows = Rows(
        folder=mds.folder,
        # Which documents a row of tokens alone has depends on the token that ends them.
        fingerprint=mds.fingerprint + (f"-eos{tokenizer.eos_token_id}" if form == ("tokens",) else ""),
        max_seq_len=config.max_seq_len,
        n_rows=mds.n_samples,
        tokens=manifest.get("tokens_kept"),
        trained_tokens=manifest.get("trained_tokens"),
        vocab_size=tokenizer.vocab_size,
        mds=mds,
        decode={
            tuple(COLUMNS): _decode_ours,
            ("input_ids", "labels"): _decode_labels,
            ("tokens",): _DecodeTokens(tokenizer.eos_token_id),
        }[form],
    )
    rows.read(0)
    return rows


def _check_manifest(mds: MdsFolder, manifest: Mapping[str, Any], config: DatasetConfig, tokenizer: Tokenizer) -> None:
    _check_count(mds, manifest)
    written = manifest.get("max_seq_len")
    if written != config.max_seq_len:
        raise ConfigError(
            f"max_seq_len is {config.max_seq_len}, but the rows of {mds.name} were prepared for {written}: write "
            "that, or prepare them again"
        )
    theirs = manifest.get("tokenizer") or {}
    if theirs.get("fingerprint") != tokenizer.fingerprint:
        key = "remote" if config.local is None else "local"
        raise ConfigError(
            f"{key} is {getattr(config, key)!r}, whose rows were prepared with the tokenizer {theirs.get('name')} "
            f"(fingerprint {theirs.get('fingerprint')}), but this run's is {tokenizer.name} ({tokenizer.fingerprint}): "
            "name that one, or prepare them again"
        )


def _check_count(mds: MdsFolder, manifest: Mapping[str, Any]) -> None:
    if mds.n_samples != manifest.get("rows"):
        raise DataError(
            f"{mds.folder} has {mds.n_samples} rows in its index, but {manifest.get('rows')} in its manifest: "
            f"{mds.hint}"
        )


def _decode_ours(sample: Mapping[str, Any]) -> Row:
    return Row(*(sample[name] for name in COLUMNS))


def _decode_labels(sample: Mapping[str, Any]) -> Row:
    tokens, labels = _ids(sample, "input_ids"), _ids(sample, "labels")
    if len(tokens) != len(labels):
        raise ValueError(
            f"{len(tokens)} input_ids, but {len(labels)} labels; if they are a prompt and its response, convert the "
            "data again: today both converters write them as turns"
        )
    trained = labels != NOT_TRAINED
    differ = np.flatnonzero(trained & (labels != tokens))
    if len(differ):
        at = int(differ[0])
        raise ValueError(
            f"labels[{at}] is {labels[at]}, but input_ids[{at}] is {tokens[at]}: labels are not shifted here, they "
            f"equal input_ids or are {NOT_TRAINED}"
        )
    return Row(tokens, trained.astype(np.uint8), np.array([len(tokens)], dtype=np.int32))


@dataclass(frozen=True)
class _DecodeTokens:
    """Tokens alone, in which each document ends with eos; the last one may go on in another row."""

    eos_token_id: int

    def __call__(self, sample: Mapping[str, Any]) -> Row:
        tokens = _ids(sample, "tokens")
        ends = np.flatnonzero(tokens == self.eos_token_id) + 1
        if len(tokens) and (not len(ends) or ends[-1] != len(tokens)):
            ends = np.append(ends, len(tokens))
        return Row(tokens, np.ones(len(tokens), dtype=np.uint8), np.diff(ends, prepend=0).astype(np.int32))


def _ids(sample: Mapping[str, Any], name: str) -> np.ndarray:
    value = sample[name]
    if isinstance(value, bytes):
        if len(value) % 8:
            raise ValueError(f"{name} has {len(value)} bytes, which are not int64")
        value = np.frombuffer(value, dtype=np.int64)
    if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype.kind not in "iu":
        seen = f"ndarray of {value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise ValueError(f"{name} is {seen}, but it must be integers in a row: an ndarray, or bytes of int64")
    return value.astype(np.int64, copy=False)


def open_streams(config: DatasetConfig, tokenizer: Tokenizer) -> dict[str, Rows]:
    """Each stream's rows under its name, or those of a dataset without streams under "". Raises what open_rows does."""
    opened = {}
    for name, stream in config.each_stream().items():
        with under(f"streams.{name}") if name else nullcontext():
            opened[name] = open_rows(stream, tokenizer)
    return opened
