"""Files as a source: each is hashed once, then read in order, cut into chunks of bytes that workers parse."""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash

from data.errors import DataError
from data.sources import arrays, delimited, lines, parquet, text
from data.sources.content import BLOCK_BYTES, Content, FileChunk, InputFile, check_head, state_of, why_unreadable

READERS = {"lines": lines, "array": arrays, "csv": delimited, "parquet": parquet, "text": text}
"""Each has `check(path, name)` for opening, `split(content) -> chunks` for the parent and `rows(chunk)` for workers."""


class FileSource:
    """The rows of files of one format: `json`, `csv`, `parquet` or `text`.

    JSON is one object a line, or an array when it begins with `[`. A text file is one document; one larger than a chunk
    (1 MB) is cut at line ends into several. `names` are what places call the files, where that is not their path.
    """

    unit = "B"

    def __init__(self, files: Sequence[Path], format: str, names: Mapping[Path, str] | None = None) -> None:
        """Raises DataError for a file that cannot be read, is empty or not UTF-8, or has no proper header."""
        self._files = list(files)
        self._names = {path: str(path) for path in files} | dict(names or {})
        self._readers = [_check(path, self._names[path], format) for path in files]
        self.total = sum(path.stat().st_size for path in files)

    @cached_property
    def _hashed(self) -> list[InputFile]:
        """As they were when the fingerprint was taken, which is what chunks() holds them to."""
        return [hash_file(path) for path in self._files]

    @property
    def fingerprint(self) -> str:
        parts = [[reader, file.xxh3] for reader, file in zip(self._readers, self._hashed, strict=True)]
        return xxhash.xxh3_128_hexdigest(json.dumps(parts).encode())

    @property
    def inputs(self) -> list[dict[str, Any]]:
        return [{"path": self._names[file.path], "bytes": file.bytes, "xxh3_128": file.xxh3} for file in self._hashed]

    def chunks(self) -> Iterator[FileChunk]:
        for reader, file in zip(self._readers, self._hashed, strict=True):
            with Content(file, self._names[file.path]) as content:
                some = False
                for chunk in READERS[reader].split(content):
                    some = True
                    yield chunk
                if not some:
                    raise DataError(f"{content.name}: there are no rows in the file: remove it, or put rows into it")

    def rows(self, chunk: FileChunk) -> Iterator[tuple[str, Any]]:
        return read_rows(chunk)


def read_rows(chunk: FileChunk) -> Iterator[tuple[str, Any]]:
    """`(place, row)` of a chunk; a row that cannot be read is a Problem."""
    if chunk.problem is not None:
        return iter([(chunk.place, chunk.problem)])
    return READERS[chunk.reader].rows(chunk)


def hash_file(path: Path) -> InputFile:
    """Raises DataError when the file cannot be read. A file that has not changed since is not read again."""
    try:
        return _hash_file(path, state_of(path))
    except OSError as error:
        raise DataError(why_unreadable(path, error)) from None


@functools.cache
def _hash_file(path: Path, state: tuple[int, ...]) -> InputFile:
    digest, size = xxhash.xxh3_128(), 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            size += len(block)
    return InputFile(path, size, digest.hexdigest(), state)


def _check(path: Path, name: str, format: str) -> str:
    """The key of the file's reader."""
    head = check_head(path, name, is_text=format != "parquet")
    reader = format if format != "json" else "array" if head.lstrip().startswith(b"[") else "lines"
    READERS[reader].check(path, name)
    return reader
