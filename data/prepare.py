"""Any source -> an MDS folder of rows, once: `cache_dir/FINGERPRINT`, whole or not there at all.

A row is a sample of `tokens` (int32), `loss_mask` (uint8: is this token trained on?) and `lengths` (int32: of its
documents). `index.json` and the shards are Streaming's; `manifest.json` says what became of every token.
"""

import errno
import fcntl
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from tqdm import tqdm

from data.chat import Document, fit, tokenize_example
from data.config import DatasetConfig
from data.errors import ConfigError, DataError
from data.examples import Problems, read_examples
from data.packing import PACKERS
from data.preprocessing import preprocessing_source, resolve_preprocessing_fn
from data.sources import InputFile, find_files, hash_file, read_rows
from data.tokenizer import Tokenizer

FORMAT_VERSION = 1
"""Part of the fingerprint: raise it when the same input would become other rows."""
COLUMNS = {"tokens": "ndarray:int32", "loss_mask": "ndarray:uint8", "lengths": "ndarray:int32"}
SHARD_BYTES = 8 << 20
WINDOW_TOKENS = 16 << 20
"""Tokens that are packed together, and so held in memory at a time (4 bytes each)."""
HEAD_START = 1.0
"""Seconds that local rank 0 is given to take the lock, because launchers show that rank's output alone."""


@dataclass
class Tally:
    """What became of examples and tokens."""

    examples_in: int = 0
    examples_kept: int = 0
    examples_truncated: int = 0
    """Of the kept ones: their response lost its end."""
    examples_dropped_prompt_fills_row: int = 0
    tokens_in: int = 0
    tokens_kept: int = 0
    tokens_truncated: int = 0
    tokens_dropped: int = 0
    trained_tokens: int = 0
    rows: int = 0
    padding: int = 0

    def add(self, document: Document, fitted: Document | None) -> None:
        self.examples_in += 1
        self.tokens_in += len(document.tokens)
        if fitted is None:
            self.examples_dropped_prompt_fills_row += 1
            self.tokens_dropped += len(document.tokens)
            return
        cut = len(document.tokens) - len(fitted.tokens)
        self.examples_kept += 1
        self.examples_truncated += cut > 0
        self.tokens_kept += len(fitted.tokens)
        self.tokens_truncated += cut
        self.trained_tokens += fitted.trained_tokens


def prepare(config: DatasetConfig, tokenizer: Tokenizer) -> Path:
    """The folder of the dataset's rows, made if it is not there yet.

    Processes that ask for the same rows at once do the work once: the others wait, however long it takes. Raises
    ConfigError for what was written, DataError for what was fed (all bad rows together); neither leaves a folder.
    """
    files = [hash_file(path) for path in find_files(config)]
    fingerprint = fingerprint_of(config, files, tokenizer)
    folder = Path(config.cache_dir) / fingerprint
    try:
        if folder.is_dir():
            return folder
        with exclusive(folder.with_suffix(".lock")):
            if not folder.is_dir():
                _write_folder(folder, config, files, tokenizer)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(f"no space is left for the rows in {folder.parent}: free some, or set cache_dir") from None
        if error.errno in (errno.ENOLCK, errno.ENOTSUP):
            raise ConfigError(
                f"cache_dir is {config.cache_dir!r}, but its file system has no locks, without which ranks would "
                "prepare over one another: name a folder on another"
            ) from None
        if isinstance(error, PermissionError | FileExistsError | NotADirectoryError) or error.errno == errno.EROFS:
            raise ConfigError(f"cache_dir is {config.cache_dir!r}, but it cannot be written: {error}") from None
        raise
    return folder


def fingerprint_of(config: DatasetConfig, files: list[InputFile], tokenizer: Tokenizer) -> str:
    """Hash of everything that decides the rows; where the files lie does not."""
    parts = {
        "format": FORMAT_VERSION,
        "files": [file.xxh3 for file in files],
        "preprocessing": preprocessing_source(config.preprocessing_fn),
        "tokenizer": tokenizer.fingerprint,
        "max_seq_len": config.max_seq_len,
        "packing": config.packing,
    }
    return xxhash.xxh3_128_hexdigest(json.dumps(parts, sort_keys=True).encode())


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Holds the lock file's lock, which ends with the process however it ends; waits without a time limit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first = int(os.environ.get("LOCAL_RANK", "0")) == 0
    if not first:
        time.sleep(HEAD_START)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if first:
                print(f"Waiting for another process that prepares the same rows ({path.with_suffix('')})", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write_folder(folder: Path, config: DatasetConfig, files: list[InputFile], tokenizer: Tokenizer) -> None:
    """Writes into a sibling and renames it whole. Under the lock a sibling that is there is a dead process's."""
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    started = time.monotonic()
    try:
        tally = _write_rows(unfinished, config, files, tokenizer)
        manifest = _manifest(config, files, tokenizer, tally, folder.name)
        (unfinished / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    print(summary(manifest, folder, time.monotonic() - started), flush=True)


def _write_rows(out: Path, config: DatasetConfig, files: list[InputFile], tokenizer: Tokenizer) -> Tally:
    from streaming import MDSWriter  # imports for seconds, and rows that are prepared need none of it

    tally, problems = Tally(), Problems()
    # Not a `with` block: MDSWriter would write a valid index of part of the data when the block raises.
    writer = MDSWriter(columns=COLUMNS, out=str(out), hashes=["xxh64"], size_limit=SHARD_BYTES)
    window: list[Document] = []
    window_tokens = 0
    for document in _documents(config, files, tokenizer, tally, problems):
        window.append(document)
        window_tokens += len(document.tokens)
        if window_tokens >= WINDOW_TOKENS:
            _write_window(writer, window, config, tally)
            window, window_tokens = [], 0
    problems.raise_if_any()
    if not tally.examples_kept:
        raise DataError(
            f"none of the {tally.examples_in} examples can be used: no prompt leaves room for a token of its response "
            f"in max_seq_len ({config.max_seq_len}): raise it, or shorten the prompts"
        )
    _write_window(writer, window, config, tally)
    writer.finish()
    assert tally.tokens_in == tally.tokens_kept + tally.tokens_truncated + tally.tokens_dropped
    return tally


def _documents(
    config: DatasetConfig, files: list[InputFile], tokenizer: Tokenizer, tally: Tally, problems: Problems
) -> Iterator[Document]:
    """The documents that fit; after the first bad row examples are only checked."""
    on_screen = sys.stderr.isatty()
    with tqdm(
        total=sum(file.bytes for file in files),
        desc="Preparing rows",
        unit="B",
        unit_scale=True,
        delay=2,
        mininterval=0.2 if on_screen else 30,  # a log file is not for ten lines a second
    ) as bar:
        rows = read_rows(files, bar.update)
        for example in read_examples(rows, resolve_preprocessing_fn(config.preprocessing_fn), problems):
            if problems.bad_rows:
                continue
            document = tokenize_example(example, tokenizer)
            fitted = fit(document, config.max_seq_len)
            tally.add(document, fitted)
            if fitted is not None:
                yield fitted


def _write_window(writer: Any, documents: list[Document], config: DatasetConfig, tally: Tally) -> None:
    lengths = np.array([len(document.tokens) for document in documents], dtype=np.int32)
    for row in PACKERS[config.packing](lengths, config.max_seq_len):
        tokens = np.concatenate([documents[index].tokens for index in row])
        mask = np.ones(len(tokens), dtype=np.uint8)
        ends = np.cumsum(lengths[row])
        for index, end in zip(row, ends, strict=True):
            start = end - lengths[index]
            mask[start : start + documents[index].n_prompt] = 0
        writer.write({"tokens": tokens, "loss_mask": mask, "lengths": lengths[row]})
        tally.rows += 1
        tally.padding += config.max_seq_len - len(tokens)


def _manifest(
    config: DatasetConfig, files: list[InputFile], tokenizer: Tokenizer, tally: Tally, fingerprint: str
) -> dict[str, Any]:
    return {
        "format": FORMAT_VERSION,
        "fingerprint": fingerprint,
        "inputs": [{"path": str(file.path), "bytes": file.bytes, "xxh3_128": file.xxh3} for file in files],
        "preprocessing_fn": config.preprocessing_fn,
        "max_seq_len": config.max_seq_len,
        "packing": config.packing,
        "tokenizer": {"name": tokenizer.name, "fingerprint": tokenizer.fingerprint},
        **asdict(tally),
        "versions": {name: _version(name) for name in ("dropless", "mosaicml-streaming", "numpy")}
        | {"python": platform.python_version()},
    }


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:  # run from the folder, not installed
        return "not installed"


def summary(manifest: dict[str, Any], folder: Path, seconds: float) -> str:
    """A table of what became of the input."""
    positions = manifest["rows"] * manifest["max_seq_len"]
    used = f"{manifest['tokens_kept'] / positions:.1%} of {positions:,} positions used"
    table = [
        ("", "examples", "tokens", ""),
        ("in", manifest["examples_in"], manifest["tokens_in"], f"from {len(manifest['inputs'])} file(s)"),
        (
            "kept",
            manifest["examples_kept"],
            manifest["tokens_kept"],
            f"{manifest['trained_tokens']:,} of them trained on",
        ),
        ("truncated", manifest["examples_truncated"], manifest["tokens_truncated"], "the response's end was cut"),
        (
            "dropped",
            manifest["examples_dropped_prompt_fills_row"],
            manifest["tokens_dropped"],
            "the prompt leaves no room for a response",
        ),
    ]
    cells = [[f"{cell:,}" if isinstance(cell, int) else cell for cell in line] for line in table]
    lines = [f"  {name:<10}{examples:>14}{tokens:>18}  {note}".rstrip() for name, examples, tokens, note in cells]
    rows = f"{manifest['rows']:,} rows of {manifest['max_seq_len']:,} ({used}) in {seconds:.1f} s: {folder}"
    return "\n".join(["Prepared", *lines, f"  {rows}"])
