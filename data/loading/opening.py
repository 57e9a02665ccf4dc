"""Open the rows of a dataset. If the dataset is an MDS folder of prepared rows, the rows are read in place; otherwise,
the rows are prepared first."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from data.base.errors import ConfigError, DataError, under
from data.base.problems import listed
from data.config.dataset import DatasetConfig
from data.examples.forms import Text
from data.loading.rows import Rows
from data.mds.folder import MdsFolder
from data.mds.row import COLUMNS, ROW_FORMS, decoder
from data.mds.writer import INDEX, MANIFEST
from data.preparation.prepare import prepare
from data.sources.input_files import InputFiles
from data.sources.mds import MdsSource, open_mds
from data.sources.source import Source, open_source
from data.tokenization.tokenizer import Tokenizer


def find_source(config: DatasetConfig, *, rehash: bool = False) -> Source | MdsFolder:
    """The dataset's single source, or its MDS folder if the samples are prepared rows. The call is fast, and needs no
    tokenizer.

    Raises the same errors as `open_source` and `open_mds`.
    """
    if config.local is None and config.remote is None:
        return open_source(config, rehash=rehash)
    mds = open_mds(config)
    return mds if mds.is_rows else MdsSource(config, mds, InputFiles(config.cache_dir, rehash=rehash))


def open_rows(config: DatasetConfig, tokenizer: Tokenizer, source: Source | MdsFolder | None = None) -> Rows:
    """The rows of the dataset's single source, which are prepared first if necessary. Uses no collective operations.

    `source` is the result of find_source; if `source` is None, find_source is called here.

    An MDS folder is read in place if its samples are rows in one of these formats:

    - the format of data/mds/row.py,
    - `input_ids` and `labels` of the same length; labels are -100 for tokens that are not trained on,
    - only `tokens`, all of which are trained on; each document ends with the tokenizer's eos token.

    Ids are an ndarray, or the bytes of int64 values. Raises the same errors as `prepare` and `MdsFolder`, ConfigError
    if the tokenizer or max_seq_len differs from that in the folder's manifest, and DataError if the folder's first row
    is invalid.
    """
    source = find_source(config) if source is None else source
    if isinstance(source, MdsFolder):
        return _open_in_place(source, config, tokenizer)
    return _open_prepared(prepare(config, tokenizer, source), tokenizer)


def _open_prepared(folder: Path, tokenizer: Tokenizer) -> Rows:
    hint = f"delete the folder {folder.name} to prepare it again"
    try:
        mds = MdsFolder.open(local=str(folder), remote=None, split=None, cache_dir="", hint=hint)
    except ConfigError:
        raise DataError(f"{folder / INDEX} is missing: {hint}") from None
    if mds.columns != COLUMNS:
        raise DataError(f"the columns in {folder} are not {', '.join(COLUMNS)}: {hint}")
    manifest = mds.manifest
    if manifest is None:
        raise DataError(f"{folder / MANIFEST} is missing, or is not a JSON object: {hint}")
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
        decode=decoder(tuple(COLUMNS), tokenizer.eos_token_id),
        end_of_text=tokenizer.eos_token_id if manifest["form"] == Text.form else None,
    )


def _open_in_place(mds: MdsFolder, config: DatasetConfig, tokenizer: Tokenizer) -> Rows:
    if config.preprocessing_fn is not None:
        raise ConfigError(
            f"is {config.preprocessing_fn!r}, but the samples of {mds.name} are already prepared rows "
            f"({listed(mds.columns)}): remove preprocessing_fn",
            key="preprocessing_fn",
        )
    manifest = mds.manifest or {}
    if manifest:
        _check_manifest(mds, manifest, config, tokenizer)
    mds.check()
    form = next(form for form in ROW_FORMS if set(form) <= set(mds.columns))
    rows = Rows(
        folder=mds.folder,
        # For rows that contain only tokens, the eos token determines where documents end.
        fingerprint=mds.fingerprint + (f"-eos{tokenizer.eos_token_id}" if form == ("tokens",) else ""),
        max_seq_len=config.max_seq_len,
        n_rows=mds.n_samples,
        tokens=manifest.get("tokens_kept"),
        trained_tokens=manifest.get("trained_tokens"),
        vocab_size=tokenizer.vocab_size,
        mds=mds,
        decode=decoder(form, tokenizer.eos_token_id),
        end_of_text=tokenizer.eos_token_id if form == ("tokens",) or manifest.get("form") == Text.form else None,
    )
    rows.read(0)
    return rows


def _check_manifest(mds: MdsFolder, manifest: Mapping[str, Any], config: DatasetConfig, tokenizer: Tokenizer) -> None:
    _check_count(mds, manifest)
    written = manifest.get("max_seq_len")
    if written != config.max_seq_len:
        raise ConfigError(
            f"is {config.max_seq_len}, but the rows of {mds.name} were prepared for {written}: use "
            f"{written}, or prepare the rows again",
            key="max_seq_len",
        )
    theirs = manifest.get("tokenizer") or {}
    if theirs.get("fingerprint") != tokenizer.fingerprint:
        key = "remote" if config.local is None else "local"
        raise ConfigError(
            f"is {getattr(config, key)!r}, whose rows were prepared with the tokenizer {theirs.get('name')} "
            f"(fingerprint {theirs.get('fingerprint')}), but this run uses {tokenizer.name} ({tokenizer.fingerprint}): "
            "use the tokenizer of the rows, or prepare the rows again",
            key=key,
        )


def _check_count(mds: MdsFolder, manifest: Mapping[str, Any]) -> None:
    if mds.n_samples != manifest.get("rows"):
        raise DataError(
            f"{mds.folder} has {mds.n_samples} rows in its index, but {manifest.get('rows')} in its manifest: "
            f"{mds.hint}"
        )


def open_streams(
    config: DatasetConfig, tokenizer: Tokenizer, sources: Mapping[str, Source | MdsFolder] | None = None
) -> dict[str, Rows]:
    """The rows of each stream, by its name (`""` for a dataset without streams). Raises the same errors as `open_rows`.

    `sources` maps the names to results of find_source.
    """
    opened = {}
    for name, stream in config.each_stream().items():
        with under(f"streams.{name}") if name else nullcontext():
            opened[name] = open_rows(stream, tokenizer, (sources or {}).get(name))
    return opened
