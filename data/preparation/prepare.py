"""Any source -> an MDS folder of rows, once: whole, with an index, or not yet.

A row is a sample with the columns of data/mds/row.py. `index.json` and the shards are Streaming's; `manifest.json` says
what became of every row and token.
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
from data.preparation.manifest import describe, fingerprint_of, manifest_of, what_decides
from data.preparation.progress import Progress, Waiting
from data.preparation.recipe import Recipe
from data.preparation.summary import summary
from data.preparation.tokenizing import Tokenizing
from data.preparation.windows import write_windows
from data.sources.source import Source, open_source
from data.tokenization.tokenizer import Tokenizer


def prepare(config: DatasetConfig, tokenizer: Tokenizer, source: Source | None = None) -> Path:
    """The folder of the source's rows in the cache, made if it is not there yet: `cache_dir/FINGERPRINT`.

    `source` is the config's, where it is open already.

    Processes that ask for the same rows at once do the work once: the others wait, however long it takes. Raises
    ConfigError for a configuration error, DataError for a data error (all bad rows together).
    """
    source = open_source(config) if source is None else source
    made_from = what_decides(config, source, tokenizer)
    folder = Path(config.cache_dir) / fingerprint_of(made_from)
    with plain_os_errors(f"cache_dir is {config.cache_dir!r}, but it", "set it to a folder elsewhere"):
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
    """The source's rows in a folder of your own, and in `remote` (a folder, or s3:// and the like) as well.

    `compression` is Streaming's, such as zstd or zstd:7. A folder that is whole is left alone, one that is not is
    resumed. Raises ConfigError when the folder, or the remote one, has anything else in it that would be in the way.
    """
    check_compression(compression)
    source = open_source(config) if source is None else source
    made_from = {**what_decides(config, source, tokenizer), "compression": compression}
    with plain_os_errors(str(folder), "name another folder"):
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
    """Makes the folder whole, if it is not. `details` go into the manifest as they are."""
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
        # Whichever process did the work: local rank 0 shows it, also when it has waited for another rank.
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
        shards.discard()  # to go on would bring the same again
        raise
    except WorkerEnded as error:
        if error.status >= 0:
            shards.discard()
        raise _of_worker(error, config) from None
    shards.finish(manifest_of(config, recipe.source, made_from, details, progress))


def _of_worker(error: WorkerEnded, config: DatasetConfig) -> DataError:
    if error.status == -signal.SIGKILL:
        return DataError(
            f"a worker process was killed ({error.how}: by the system, when memory runs out): start again, with a "
            f"smaller {setting('prepare_workers')} if it was memory; what is done is kept"
        )
    if error.status == -signal.SIGVTALRM:
        return DataError(
            f"a worker process was ended ({error.how}), because the chat template computed for more than a minute in "
            "a single operation: use a tokenizer with another chat template, or change this one"
        )
    name = config.preprocessing_fn
    if not is_own(name):
        return DataError(f"a worker process ended before its work was done ({error.how}): start again")
    if error.status < 0:
        return DataError(
            f"{setting('preprocessing_fn')} is {name!r}, but a process that ran it was ended by {error.how}: find "
            "the crash, perhaps in an extension module that it uses, and start again; what is done is kept"
        )
    return DataError(
        f"{setting('preprocessing_fn')} is {name!r}, but it ended its process: {error.how}: return an example, return "
        "None to leave the row out, or raise an error"
    )


def _refuse_if_nothing_is_kept(progress: Progress, config: DatasetConfig) -> None:
    if progress.tally.examples_kept:
        return
    dropped = progress.dropped()
    reasons = ", ".join(f"{reason} ({count:,})" for reason, count in dropped.items()) or "there are none"
    raise DataError(f"none of the {sum(dropped.values()):,} rows can be used: {reasons}: {_hint(progress, config)}")


def _hint(progress: Progress, config: DatasetConfig) -> str:
    if progress.tally.dropped:
        return f"{setting('max_seq_len')} is {config.max_seq_len}: raise it, or shorten the rows"
    kinds = listed(f"{kind} ({count:,})" for kind, count in progress.reading.kinds.most_common())
    return f"fix them ({kinds})" if kinds else f"look at {setting('preprocessing_fn')}"
