"""Prepare an MDS folder of rows from any source. A folder with an index is complete, and is not prepared again.

A row is a sample with the columns of data/mds/row.py. `index.json` and the shards have Streaming's format.
`manifest.json` contains statistics of all rows and tokens.
"""

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.base.console import node_logger
from data.base.errors import ConfigError, DataError, EngineError, ReadError, plain_os_errors
from data.base.locks import exclusive
from data.base.workers import WorkerEnded
from data.config.dataset import DatasetConfig
from data.examples.preprocessing import resolve_preprocessing_fn
from data.mds.upload import Remote
from data.mds.writer import INDEX, MANIFEST, UNFINISHED, MadeFrom, check_compression, is_whole, read_json, refuse_other
from data.preparation.engines.choice import LOCAL, Engine
from data.preparation.engines.run import check, clean_remote, run, run_share
from data.preparation.packing.recipe import Recipe
from data.preparation.packing.tokenizing import Tokenizing
from data.preparation.parts.manifest import (
    EARLIER_VERSIONS,
    describe,
    fingerprint_inputs,
    fingerprint_of,
    in_version,
)
from data.preparation.parts.merge import merge
from data.preparation.parts.part import PartError
from data.preparation.parts.plan import REMOVED, plan, read_plan, remove_unfinished
from data.preparation.parts.progress import Waiting
from data.preparation.summary import summary
from data.preparation.worker_errors import error_of_worker
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
    inputs = fingerprint_inputs(config, source, tokenizer)
    with plain_os_errors(f"cache_dir is {config.cache_dir!r}, but it", "set it to another folder"):
        made_from = _made_from_in_cache(Path(config.cache_dir), inputs)
        folder = Path(config.cache_dir) / fingerprint_of(made_from)
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
    engine: Engine = LOCAL,
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
        output: dict[str, Any] = {"compression": compression, "remote": remote, "engine": engine}
        return write_once(folder, recipe, config, made_from, describe(config, tokenizer), **output)


def _made_from_in_cache(cache_dir: Path, made_from: dict[str, Any]) -> MadeFrom:
    """`made_from`, in an earlier version if the rows were prepared by this version."""
    earlier = (in_version(made_from, version) for version in EARLIER_VERSIONS)
    return next((each for each in earlier if is_whole(cache_dir / fingerprint_of(each), each)), made_from)


def _made_from_in(folder: Path, made_from: MadeFrom) -> MadeFrom:
    """`made_from`, in the version in which the folder was prepared."""
    if not (folder / INDEX).exists() or not (folder / MANIFEST).exists():
        return made_from
    version = read_json(folder / MANIFEST).get("format")
    return in_version(made_from, version) if version in EARLIER_VERSIONS else made_from


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
    engine: Engine = LOCAL,
) -> Path:
    """Prepare the folder if it is not complete. `details` are added to the manifest unchanged."""
    made_from = _made_from_in(folder, made_from)
    upload = Remote(remote, folder, made_from) if remote is not None else None
    whole = is_whole(folder, made_from)
    temporary = [folder / UNFINISHED, folder / REMOVED]
    if not whole or any(path.exists() for path in temporary):
        check(engine, recipe.source)
        planned = read_plan(folder) if not whole else None
        if planned is not None:
            refuse_other(folder, planned["made_from"], made_from)
        elif engine.merge_only and not whole:
            raise ConfigError(f"{folder} has no parts to merge: prepare all parts first (--part 0/N to N-1/N)")
        if engine.share is not None and not whole:
            return _write_share(folder, recipe, config, made_from, compression, engine.share)
        started = time.monotonic()
        with exclusive(folder.with_name(f"{folder.name}.lock"), waiting=Waiting(folder, recipe.source.unit)):
            if not is_whole(folder, made_from):
                _write(folder, recipe, config, made_from, details, compression, engine)
            for path in temporary:
                shutil.rmtree(path, ignore_errors=True)
        # Local rank 0 prints the summary, even if another rank prepared the rows.
        node_logger.info(summary(read_json(folder / MANIFEST), folder, time.monotonic() - started))
    if upload is not None and engine.share is None:
        upload.send()
        if engine.remote is not None:
            clean_remote(engine.remote)
    return folder


def _write(
    folder: Path,
    recipe: Recipe,
    config: DatasetConfig,
    made_from: MadeFrom,
    details: dict[str, Any],
    compression: str | None,
    engine: Engine,
) -> None:
    try:
        job = replace(plan(folder, recipe, config, made_from, compression), remote=engine.remote)
        merge(job, made_from, details, run(job, engine))
    except (PartError, ReadError, EngineError):
        raise
    except (ConfigError, DataError):
        _discard(folder, engine)  # a resumed preparation would raise the same error again
        raise
    except WorkerEnded as error:
        if error.status >= 0:
            _discard(folder, engine)
        raise error_of_worker(error, config) from None


def _write_share(
    folder: Path,
    recipe: Recipe,
    config: DatasetConfig,
    made_from: MadeFrom,
    compression: str | None,
    share: tuple[int, int],
) -> Path:
    """Prepare a share of the slices. Other jobs may prepare other shares in the same folder, so nothing is removed if
    an error is raised."""
    index, count = share
    try:
        job = plan(folder, recipe, config, made_from, compression)
        run_share(job, index, count)
    except WorkerEnded as error:
        raise error_of_worker(error, config) from None
    except (OSError, ConfigError, DataError) as error:
        if is_whole(folder, made_from):
            node_logger.info(f"{folder} was completed by other jobs while this job prepared part {index}/{count}")
            return folder
        if isinstance(error, FileNotFoundError) and read_plan(folder) is None:
            removed = f"{folder / UNFINISHED} was removed while this job prepared part {index}/{count}"
            raise DataError(f"{removed}, perhaps by a job that found invalid rows: start again") from None
        raise
    n_slices = len(range(index, len(job.slices), count))
    node_logger.info(
        f"Prepared part {index}/{count} ({n_slices:,} of {len(job.slices):,} slices) in {folder}: when all parts are "
        "prepared, merge them with --merge"
    )
    return folder


def _discard(folder: Path, engine: Engine) -> None:
    """Remove the unfinished files, if they belong to a preparation."""
    if engine.remote is not None:
        clean_remote(engine.remote, discard=True)
    if read_plan(folder) is None:
        return
    remove_unfinished(folder)
    if not any(folder.iterdir()):
        folder.rmdir()
