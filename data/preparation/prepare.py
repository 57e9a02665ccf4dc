"""Any source -> an MDS folder of rows, once: whole, with an index, or not yet.

A row is a sample of `tokens` (int32), `loss_mask` (uint8: is this token trained on?) and `lengths` (int32: of its
documents). `index.json` and the shards are Streaming's; `manifest.json` says what became of every row and token.
"""

import json
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import xxhash
from tqdm import tqdm

from data.base.errors import ConfigError, DataError, plain_os_errors
from data.base.locks import exclusive, is_first
from data.base.problems import listed
from data.base.versions import STREAMING, installed_versions
from data.base.workers import WorkerEnded, all_cores, in_order
from data.config.dataset import DatasetConfig
from data.examples.examples import Reading
from data.examples.preprocessing import is_own, preprocessing_source, resolve_preprocessing_fn
from data.mds.upload import Remote
from data.mds.writer import UNFINISHED, MadeFrom, Sample, Shards, is_whole, read_journal, refuse_other
from data.preparation.windows import Part, Tally, Task, Tokenizing
from data.sources.source import Source, open_source
from data.tokenization.tokenizer import Tokenizer

FORMAT_VERSION = 3
"""Part of the fingerprint: raise it when the same input would become other rows."""
WINDOW_TOKENS = 16 << 20
"""Tokens that are packed together, and so held in memory at a time; what a killed run has to do again at most."""
BAR_DELAY = 2
"""Seconds that pass without a progress bar: what is quick needs none."""
MININTERVAL = 0.2 if sys.stderr.isatty() else 30.0
"""Seconds between two states of the progress bar: a log file is not for ten lines a second."""
UNDER_WAY = 64 << 20
"""Units of the source that are given out to workers at a time: a few rows of the largest size fill it alone."""


class Recipe(Protocol):
    """How chunks become samples: read in workers, written window by window."""

    @property
    def source(self) -> Source: ...

    def columns(self, form: str) -> dict[str, str]: ...

    def read(self, task: Task) -> Part: ...

    def samples(self, window: list[Any], tally: Tally) -> Iterator[Sample]: ...


def prepare(config: DatasetConfig, tokenizer: Tokenizer) -> Path:
    """The folder of the source's rows in the cache, made if it is not there yet: `cache_dir/FINGERPRINT`.

    Processes that ask for the same rows at once do the work once: the others wait, however long it takes. Raises
    ConfigError for what was written, DataError for what was fed (all bad rows together).
    """
    source = open_source(config)
    made_from = what_decides(config, source, tokenizer)
    folder = Path(config.cache_dir) / fingerprint_of(made_from)
    with plain_os_errors(f"cache_dir is {config.cache_dir!r}, but it", "set it to a folder elsewhere"):
        recipe = tokenizing(folder, config, source, tokenizer)
        return write_once(folder, recipe, config, made_from, _describe(config, tokenizer))


def prepare_into(
    folder: Path,
    config: DatasetConfig,
    tokenizer: Tokenizer,
    *,
    compression: str | None = None,
    remote: str | None = None,
) -> Path:
    """The source's rows in a folder of one's own, and in `remote` (a folder, or s3:// and the like) as well.

    `compression` is Streaming's, such as zstd or zstd:7. A folder that is whole is left alone, one that is not is gone
    on with. Raises ConfigError when the folder, or the remote one, has anything else in it that would be in the way.
    """
    check_compression(compression)
    source = open_source(config)
    made_from = {**what_decides(config, source, tokenizer), "compression": compression}
    with plain_os_errors(str(folder), "name another folder"):
        recipe = tokenizing(folder, config, source, tokenizer)
        message = _describe(config, tokenizer)
        return write_once(folder, recipe, config, made_from, message, compression=compression, remote=remote)


def what_decides(config: DatasetConfig, source: Source, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Everything that decides the rows, by name; where the input lies does not. Reads all of the input."""
    preprocessing = preprocessing_source(config.preprocessing_fn)
    of_tokens = (
        {}
        if tokenizer is None
        else {
            "tokenizer": tokenizer.fingerprint,
            "max_seq_len": config.max_seq_len,
            "packing": config.packing,
            "target_prompts": config.target_prompts,
            "target_responses": config.target_responses,
            "excess_length": config.excess_length,
        }
    )
    return {
        "format": FORMAT_VERSION,
        "input": source.fingerprint,
        "preprocessing_fn": xxhash.xxh3_128_hexdigest(preprocessing.encode()) if preprocessing else None,
        **of_tokens,
        "on_bad_example": config.on_bad_example,
    }


def fingerprint_of(made_from: MadeFrom) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(made_from, sort_keys=True).encode())


def check_compression(compression: str | None) -> None:
    """Raises ConfigError when Streaming does not know it."""
    if compression is None:
        return
    from streaming.base.compression import get_compressions

    known = sorted(get_compressions())
    if compression not in known:
        raise ConfigError(f"compression is {compression!r}, but it must be one of {', '.join(known)}")


def tokenizing(folder: Path, config: DatasetConfig, source: Source, tokenizer: Tokenizer) -> Tokenizing:
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
    message: dict[str, Any],
    *,
    compression: str | None = None,
    remote: str | None = None,
) -> Path:
    """Makes the folder whole, if it is not. `said` goes into the manifest as it is."""
    upload = Remote(remote, folder, made_from) if remote is not None else None
    if not is_whole(folder, made_from) or (folder / UNFINISHED).exists():
        journal = read_journal(folder)
        if journal is not None:
            refuse_other(folder, journal["made_from"], made_from)
        with exclusive(folder.with_name(f"{folder.name}.lock"), waiting=Waiting(folder)):
            if not is_whole(folder, made_from):
                _write(folder, recipe, config, made_from, message, compression)
            shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    if upload is not None:
        upload.send()
    return folder


@dataclass
class Progress:
    """How far the source is read, and what was in it: what the journal keeps."""

    chunks: int = 0
    done: int = 0
    """Of the source's units."""
    total: int = 0
    reading: Reading = field(default_factory=Reading)
    tally: Tally = field(default_factory=Tally)

    @classmethod
    def of_journal(cls, state: dict[str, Any], total: int) -> "Progress":
        if not state:
            return cls(total=total)
        reading, tally = Reading(), Tally()
        for target, values in ((reading, state["reading"]), (tally, state["tally"])):
            for name, value in values.items():
                setattr(target, name, type(getattr(target, name))(value) if isinstance(value, dict) else value)
        return cls(state["chunks"], state["done"], total, reading, tally)

    def for_journal(self) -> dict[str, Any]:
        return {**vars(self), "reading": vars(self.reading), "tally": vars(self.tally)}


def _write(
    folder: Path,
    recipe: Recipe,
    config: DatasetConfig,
    made_from: MadeFrom,
    message: dict[str, Any],
    compression: str | None,
) -> None:
    started = time.monotonic()
    shards = Shards(folder, made_from, compression)
    try:
        progress = _write_windows(shards, recipe, config)
        _refuse_if_nothing_is_kept(progress, config)
    except (ConfigError, DataError):
        shards.discard()  # to go on would bring the same again
        raise
    except WorkerEnded as error:
        if error.status >= 0:
            shards.discard()
        raise _of_worker(error, config) from None
    manifest = _manifest(config, recipe.source, made_from, message, progress)
    shards.finish(manifest)
    print(summary(manifest, folder, time.monotonic() - started), flush=True)


def _of_worker(error: WorkerEnded, config: DatasetConfig) -> DataError:
    if error.status == -signal.SIGKILL:
        return DataError(
            f"a worker process was killed ({error.how}: by the system, when memory runs out): start again, with a "
            "smaller prepare_workers if it was memory; what is done is kept"
        )
    name = config.preprocessing_fn
    if not is_own(name):
        return DataError(f"a worker process ended before its work was done ({error.how}): start again")
    if error.status < 0:
        return DataError(
            f"preprocessing_fn is {name!r}, but a process that ran it was ended by {error.how}: find the crash, "
            "perhaps in an extension module that it uses, and start again; what is done is kept"
        )
    return DataError(
        f"preprocessing_fn is {name!r}, but it ended its process: {error.how}: return an example, return None to leave "
        "the row out, or raise an error"
    )


def _write_windows(shards: Shards, recipe: Recipe, config: DatasetConfig) -> Progress:
    """All windows that are not written yet. Raises DataError with all bad rows, where they are errors."""
    progress = Progress.of_journal(shards.state, recipe.source.total)
    chunks = islice(recipe.source.chunks(), progress.chunks, None)
    n_workers = config.prepare_workers or all_cores()
    ahead = deque(islice(chunks, n_workers))
    n_workers = max(1, min(n_workers, len(ahead)))
    given_out = 0
    window: list[Any] = []

    def tasks() -> Iterator[Task]:
        nonlocal given_out
        while (chunk := ahead.popleft() if ahead else next(chunks, None)) is not None:
            given_out += chunk.size
            yield _task(chunk, progress.reading, config)

    def under_way() -> int:
        if progress.reading.form is None:  # which the first valid row decides, for all
            return 1
        return 2 * n_workers if given_out < UNDER_WAY else 0

    def flush() -> None:
        if window:
            columns = recipe.columns(str(progress.reading.form))
            shards.write_window(columns, recipe.samples(window, progress.tally), progress.for_journal)
            window.clear()

    parts = in_order(recipe.read, tasks(), n_workers, under_way, isolated=is_own(config.preprocessing_fn))
    with closing(parts), _bar(recipe.source, progress) as bar:
        for part in parts:
            given_out -= part.size
            progress.chunks += 1
            progress.done += part.size
            progress.reading.merge(part.reading)
            progress.tally.merge(part.tally)
            bar.update(part.size)
            if _is_refused(progress.reading, config):
                window.clear()
                bar.set_postfix(bad_rows=progress.reading.bad_rows, refresh=False)
            elif part.content is not None:
                window.append(part.content.received())
                if sum(content.weight for content in window) >= WINDOW_TOKENS:
                    flush()
    if _is_refused(progress.reading, config):
        progress.reading.raise_if_any()
    flush()
    return progress


def _task(chunk: Any, reading: Reading, config: DatasetConfig) -> Task:
    return Task(
        chunk=chunk,
        form=reading.form,
        first_place=reading.first_place,
        check_only=_is_refused(reading, config),
    )


def _is_refused(reading: Reading, config: DatasetConfig) -> bool:
    return config.on_bad_example == "error" and reading.bad_rows > 0


def _refuse_if_nothing_is_kept(progress: Progress, config: DatasetConfig) -> None:
    if progress.tally.examples_kept:
        return
    dropped = _dropped(progress)
    reasons = ", ".join(f"{reason} ({count:,})" for reason, count in dropped.items()) or "there are none"
    raise DataError(f"none of the {sum(dropped.values()):,} rows can be used: {reasons}: {_hint(progress, config)}")


def _hint(progress: Progress, config: DatasetConfig) -> str:
    if progress.tally.dropped:
        return f"max_seq_len is {config.max_seq_len}: raise it, or shorten the rows"
    kinds = listed(f"{kind} ({count:,})" for kind, count in progress.reading.kinds.most_common())
    return f"mend them ({kinds})" if kinds else "look at preprocessing_fn"


def _dropped(progress: Progress) -> dict[str, int]:
    """Reason -> rows."""
    reading = progress.reading
    dropped = {"bad rows": reading.bad_rows, "preprocessing_fn returned None": reading.n_dropped}
    return {reason: count for reason, count in (progress.tally.dropped | dropped).items() if count}


def _bar(source: Source, progress: Progress) -> Any:
    return tqdm(
        total=source.total or None,
        initial=progress.done,
        desc="Preparing rows",
        unit=source.unit,
        unit_scale=True,
        delay=BAR_DELAY,
        mininterval=MININTERVAL,
    )


class Waiting:
    """Called each second while another process prepares the folder: shows, on one rank of a node, how far it is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shown = is_first()
        self.bar: Any = None

    def __call__(self) -> None:
        if not self.shown:
            return
        if self.bar is None:
            print(f"Waiting for another process that prepares the same rows ({self.folder})", flush=True)
            self.bar = tqdm(desc="Prepared by another", unit_scale=True, delay=BAR_DELAY, mininterval=MININTERVAL)
        with suppress(DataError):  # it is finished just now
            state = (read_journal(self.folder) or {}).get("state") or {"done": 0, "total": 0}
            self.bar.total = state["total"] or None
            self.bar.update(state["done"] - self.bar.n)


def _manifest(
    config: DatasetConfig, source: Source, made_from: MadeFrom, message: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    reading, tally = progress.reading, progress.tally
    dropped = _dropped(progress)
    counts = {name: value for name, value in vars(tally).items() if not isinstance(value, dict)}
    return {
        "format": FORMAT_VERSION,
        "fingerprint": fingerprint_of(made_from),
        "made_from": made_from,
        "inputs": source.inputs,
        "form": reading.form,
        "preprocessing_fn": config.preprocessing_fn,
        **message,
        "rows_in": reading.n_valid + reading.n_dropped + reading.bad_rows,
        "examples_in": reading.n_valid,
        **counts,
        "dropped": dropped,
        "bad_rows": dict(reading.kinds),
        "ignored_columns": dict(reading.ignored),
        "document_lengths": dict(sorted(tally.document_lengths.items(), key=lambda item: int(item[0]))),
        "versions": installed_versions(("dropless", *STREAMING, "numpy")),
    }


def _describe(config: DatasetConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    of_tokenizer = {key: getattr(tokenizer, key) for key in ("name", "fingerprint", "chat_template")}
    return {"max_seq_len": config.max_seq_len, "packing": config.packing, "tokenizer": of_tokenizer}


def summary(manifest: dict[str, Any], folder: Path, seconds: float) -> str:
    """A table of what became of the input."""
    if "tokenizer" not in manifest:
        dropped = "".join(f", {count:,} dropped ({reason})" for reason, count in manifest["dropped"].items())
        wrote = f"Wrote {manifest['rows']:,} of {manifest['rows_in']:,} rows{dropped} in {seconds:.1f} s: {folder}"
        return "\n".join([wrote, *_noticed(manifest)])
    table: list[tuple[Any, Any, Any, str]] = [
        ("", "rows", "tokens", ""),
        ("in", manifest["rows_in"], manifest["tokens_in"], f"from {len(manifest['inputs'])} file(s)"),
        ("kept", manifest["examples_kept"], manifest["tokens_kept"], f"{manifest['trained_tokens']:,} trained on"),
        ("truncated", manifest["examples_truncated"], manifest["tokens_truncated"], "of the kept: the end was cut"),
        ("dropped", sum(manifest["dropped"].values()), manifest["tokens_dropped"], ""),
        *(("", count, "", reason) for reason, count in manifest["dropped"].items()),
    ]
    cells = [[f"{cell:,}" if isinstance(cell, int) else cell for cell in line] for line in table]
    lines = [f"  {name:<10}{rows:>14}{tokens:>20}  {note}".rstrip() for name, rows, tokens, note in cells]
    positions = manifest["rows"] * manifest["max_seq_len"]
    used = f"{manifest['tokens_kept'] / positions:.1%} of {positions:,} positions used"
    lines.append(f"  {manifest['rows']:,} rows of {manifest['max_seq_len']:,} ({used}) in {seconds:.1f} s: {folder}")
    return "\n".join(["Prepared", *lines, *_noticed(manifest)])


def _noticed(manifest: dict[str, Any]) -> Iterator[str]:
    for key, what in (("bad_rows", "bad rows"), ("ignored_columns", "ignored columns")):
        if manifest[key]:
            yield f"  {what}: {listed(f'{name} ({count:,})' for name, count in manifest[key].items())}"
