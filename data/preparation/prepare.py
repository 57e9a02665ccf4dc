"""Prepare an MDS folder of rows from any source. A folder with an index is complete, and is not prepared again.

A row is a sample with the columns of data/mds/row.py. `index.json` and the shards have Streaming's format.
`manifest.json` contains statistics of all rows and tokens.
"""

import shutil
import signal
import time
from pathlib import Path
from typing import Any

from data.base.console import node_logger
from data.base.errors import ConfigError, DataError, plain_os_errors, setting
from data.base.locks import exclusive
from data.base.problems import listed
from data.base.workers import WorkerEnded
from data.config.dataset import DatasetConfig
from data.examples.preprocessing import is_own, resolve_preprocessing_fn
from data.mds.upload import Remote
from data.mds.writer import (
    MANIFEST,
    UNFINISHED,
    MadeFrom,
    Shards,
    check_compression,
    is_whole,
    read_journal,
    read_json,
    refuse_other,
)
from data.preparation.manifest import describe, fingerprint_inputs, fingerprint_of, manifest_of
from data.preparation.progress import Progress, Waiting
from data.preparation.recipe import Recipe
from data.preparation.summary import summary
from data.preparation.tokenizing import Tokenizing
from data.preparation.windows import write_windows
from data.sources.source import Source, open_source
from data.tokenization.tokenizer import Tokenizer


def prepare(config: DatasetConfig, tokenizer: Tokenizer, source: Source | None = None) -> Path:
    """The folder of the source's rows in the cache, `cache_dir/FINGERPRINT`. If the folder does not exist, it is
    prepared.

    `source` is the config's source, already open; if `source` is None, the source is opened here.

    If several processes need the same rows, one process prepares the rows and the others wait, without a time limit.
    Raises ConfigError for a configuration error, and DataError for a data error. The DataError lists all invalid rows.
    """
    source = open_source(config) if source is None else source
    made_from = fingerprint_inputs(config, source, tokenizer)
    folder = Path(config.cache_dir) / fingerprint_of(made_from)
    with plain_os_errors(f"cache_dir is {config.cache_dir!r}, but it", "set it to another folder"):
        recipe = _tokenizing(folder, config, source, tokenizer)
        return write_once(folder, recipe, config, made_from, describe(config, tokenizer))


def prepare_into(
    folder: Path,
    config: DatasetConfig,
    tokenizer: Tokenizer,
    *,
    source: Source | None = None,
    compression: str | None = None,
    remote: str | None = None,
) -> Path:
    """Prepare the source's rows in a given folder, and also in `remote` (a path, or an address such as s3://...).

    `compression` is an algorithm that Streaming supports, with an optional level, such as zstd or zstd:7. A complete
    folder is not changed, and an incomplete folder is resumed. Raises ConfigError if the folder or the remote contains
    conflicting files.
    """
    check_compression(compression)
    source = open_source(config) if source is None else source
    made_from = {**fingerprint_inputs(config, source, tokenizer), "compression": compression}
    with plain_os_errors(str(folder), "choose another folder"):
        recipe = _tokenizing(folder, config, source, tokenizer)
        details = describe(config, tokenizer)
        return write_once(folder, recipe, config, made_from, details, compression=compression, remote=remote)


def _tokenizing(folder: Path, config: DatasetConfig, source: Source, tokenizer: Tokenizer) -> Tokenizing:
    return Tokenizing(
        source=source,
        preprocess=resolve_preprocessing_fn(config.preprocessing_fn),
        tokenizer=tokenizer,
        config=config,
        spool=folder / UNFINISHED,
    )


def write_once(
    folder: Path,
    recipe: Recipe,
    config: DatasetConfig,
    made_from: MadeFrom,
    details: dict[str, Any],
    *,
    compression: str | None = None,
    remote: str | None = None,
) -> Path:
    """Prepare the folder if it is not complete. `details` are added to the manifest unchanged."""
    upload = Remote(remote, folder, made_from) if remote is not None else None
    if not is_whole(folder, made_from) or (folder / UNFINISHED).exists():
        journal = read_journal(folder)
        if journal is not None:
            refuse_other(folder, journal["made_from"], made_from)
        started = time.monotonic()
        with exclusive(folder.with_name(f"{folder.name}.lock"), waiting=Waiting(folder, recipe.source.unit)):
            if not is_whole(folder, made_from):
                _write(folder, recipe, config, made_from, details, compression)
            shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
        # Local rank 0 prints the summary, even if another rank prepared the rows.
        node_logger.info(summary(read_json(folder / MANIFEST), folder, time.monotonic() - started))
    if upload is not None:
        upload.send()
    return folder


def _write(
    folder: Path,
    recipe: Recipe,
    config: DatasetConfig,
    made_from: MadeFrom,
    details: dict[str, Any],
    compression: str | None,
) -> None:
    shards = Shards(folder, made_from, compression)
    try:
        progress = write_windows(shards, recipe, config)
        _refuse_if_nothing_is_kept(progress, config)
    except (ConfigError, DataError):
        shards.discard()  # a resumed preparation would raise the same error again
        raise
    except WorkerEnded as error:
        if error.status >= 0:
            shards.discard()
        raise _of_worker(error, config) from None
    shards.finish(manifest_of(config, recipe.source, made_from, details, progress))


def _of_worker(error: WorkerEnded, config: DatasetConfig) -> DataError:
    if error.status == -signal.SIGKILL:
        return DataError(
            f"a worker process was killed ({error.how}), perhaps by the system because of low memory: start again with "
            f"a smaller value of {setting('prepare_workers')}; completed work is not repeated"
        )
    if error.status == -signal.SIGVTALRM:
        return DataError(
            f"a worker process was ended ({error.how}), because the chat template spent more than a minute in a single "
            "operation: use a tokenizer with another chat template, or change this template"
        )
    name = config.preprocessing_fn
    if not is_own(name):
        return DataError(f"a worker process ended before its work was complete ({error.how}): start again")
    if error.status < 0:
        return DataError(
            f"{setting('preprocessing_fn')} is {name!r}, but a process that ran this function was ended by "
            f"{error.how}: fix the crash, perhaps in an extension module, and start again; completed work is not "
            "repeated"
        )
    return DataError(
        f"{setting('preprocessing_fn')} is {name!r}, but this function ended its process: {error.how}: return an "
        "example, return None to drop the row, or raise an error"
    )


def _refuse_if_nothing_is_kept(progress: Progress, config: DatasetConfig) -> None:
    if progress.tally.examples_kept:
        return
    dropped = progress.dropped()
    reasons = ", ".join(f"{reason} ({count:,})" for reason, count in dropped.items()) or "the source is empty"
    raise DataError(f"none of the {sum(dropped.values()):,} rows can be used: {reasons}: {_hint(progress, config)}")


def _hint(progress: Progress, config: DatasetConfig) -> str:
    if progress.tally.dropped:
        return f"{setting('max_seq_len')} is {config.max_seq_len}: increase the value, or shorten the rows"
    kinds = listed(f"{kind} ({count:,})" for kind, count in progress.reading.kinds.most_common())
    return f"fix the bad rows ({kinds})" if kinds else f"check {setting('preprocessing_fn')}"
