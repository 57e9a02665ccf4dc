"""The source for files, local or remote. Each local file is hashed once. Large files of lines and large Parquet files
are cut into slices; other files are read from start to end."""

import functools
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import xxhash

from data.base.console import notice, rank_logger
from data.base.errors import DataError, os_errors_named
from data.base.problems import Place, listed
from data.sources.find import Part
from data.sources.formats import arrays, delimited, ipc, lines, parquet, text
from data.sources.formats.compressed import is_compressed
from data.sources.formats.content import Content, FileChunk, InputFile, check_head, check_unchanged
from data.sources.input_files import InputFiles, Opened
from data.sources.remote.kept import BATCH, kept
from data.sources.remote.remote_file import InputPath, RemoteFile, size_of
from data.sources.slices import Piece, Slice, grouped, size_of_slices

READERS: dict[str, Any] = {
    "lines": lines,
    "array": arrays,
    "csv": delimited,
    "parquet": parquet,
    "arrow": ipc,
    "text": text,
}
"""The module that reads each kind of file. It has three functions: `check(path, name)` is called when a file is opened,
and returns a description of the part of every row that is skipped, or None; `split(content)` yields chunks;
`rows(chunk)` yields rows."""
_OF_LINES = ("lines", "text")
"""Formats that can be read from any line."""
_WITH_ROW_COUNT = {"parquet": parquet, "arrow": ipc}
"""Binary formats whose files store their number of rows."""
VISIBLE = 200
"""Approximate maximum number of files that check_visible checks."""
LARGE = 16 << 20
"""Size in bytes. For chunks of at least this size, the decompressed size counts towards the memory limit."""


class FileSource:
    """Reads the rows of files that have the same format: `json`, `csv`, `parquet`, `arrow` or `text`.

    A `json` file contains one object per line, or an array if the file begins with `[`. A text file is one document; a
    file larger than a chunk (1 MB) is split at line ends into several documents. Files without rows are skipped.
    `names` maps files to their names in messages, for files whose names differ from their paths. `order` is the order
    of the files in `inputs`, if it differs from the order in `parts`.
    """

    unit = "B"
    is_local_only = False

    def __init__(
        self,
        parts: Sequence[Part],
        format: str,
        record: InputFiles,
        names: Mapping[InputPath, str] | None = None,
        order: Sequence[InputPath] = (),
    ) -> None:
        """Raises DataError if a file cannot be read, is not UTF-8 or has an invalid header, or if all files are empty.

        Files that are in the record of input files are not opened.
        """
        self._parts, self._format, self._record = list(parts), format, record
        used = dict.fromkeys(path for part in parts for path in part.files)
        self._files = list(dict.fromkeys(order)) or list(used)
        self._names = {path: str(path) for path in self._files} | dict(names or {})
        self._opened = dict(self._open_all())
        self._readers = {path: opened.reader for path, opened in self._opened.items()}
        left_out: dict[str, list[str]] = {}
        for path, opened in self._opened.items():
            if opened.left_out is not None:
                left_out.setdefault(opened.left_out, []).append(self._names[path])
        for what, files in left_out.items():
            notice(f"Skipping {what} in {'1 file' if len(files) == 1 else f'{len(files):,} files'}: {listed(files)}")
        if not any(self._readers.values()):
            raise DataError(self._no_rows("the file is empty"))

    def _open_all(self) -> Iterator[tuple[InputPath, Opened]]:
        for first in range(0, len(self._files), BATCH):
            batch = self._files[first : first + BATCH]
            remote = [path for path in batch if isinstance(path, RemoteFile)]
            with kept(remote, end=self._format in _WITH_ROW_COUNT):
                yield from ((path, self._open(path)) for path in batch)

    def _open(self, path: InputPath) -> Opened:
        recorded = self._record.opened(path, self._format) if isinstance(path, Path) else None
        if recorded is not None and recorded.reader in (None, *READERS):
            return recorded
        name = self._names[path]
        if isinstance(path, RemoteFile) and self._format not in _WITH_ROW_COUNT:
            is_compressed(path)  # slices() needs the answer, when the head of the file is no longer in memory
        reader = _reader_of(path, name, self._format)
        return Opened(reader=reader, left_out=READERS[reader].check(path, name) if reader is not None else None)

    @property
    def total(self) -> int:
        """Size of the files in bytes. The size of a slice is proportional to its number of rows; to compute this size,
        the rows of the file are counted."""
        shares = [
            self._bytes[path] if rows is None else self._bytes[path] * (rows[1] - rows[0]) // max(self._count(path), 1)
            for path, rows in self._ranges()
        ]
        return sum(shares)

    @cached_property
    def _bytes(self) -> dict[InputPath, int]:
        return {path: size_of(path) for path in self._files}

    @cached_property
    def _hashed(self) -> dict[InputPath, InputFile]:
        """The files as they were when the fingerprint was computed. chunks() raises an error if the files have changed
        since then."""
        local = {path: opened for path, opened in self._opened.items() if isinstance(path, Path)}
        remote = [path for path in self._opened if isinstance(path, RemoteFile)]
        hashed: dict[InputPath, InputFile] = {**self._record.hashed(local, self._format)}
        return hashed | {path: InputFile(path, path.n_bytes, path.digest) for path in remote}

    @property
    def fingerprint(self) -> str:
        """Hash of the content of the files and of the slices in the config, which together determine the rows."""
        parts: list[Any] = []
        for part in self._parts:
            files = [_identity(reader, self._hashed[path]) for path in part.files if (reader := self._readers[path])]
            parts += files if part.slice is None else [[files, part.slice.start, part.slice.end, part.slice.percent]]
        return xxhash.xxh3_128_hexdigest(json.dumps(parts).encode())

    @property
    def inputs(self) -> list[dict[str, Any]]:
        files = [self._hashed[path] for path in self._files]
        return [
            {
                "path": self._names[file.path],
                "bytes": file.bytes,
                "xxh3_128" if isinstance(file.path, Path) else "digest": file.digest,
            }
            for file in files
        ]

    def slices(self, n_bytes: int) -> list[Slice]:
        n_bytes = size_of_slices(n_bytes, self.total)
        return grouped(self._pieces(n_bytes), n_bytes)

    def _pieces(self, n_bytes: int) -> Iterator[Piece]:
        numbers = {path: number for number, path in enumerate(self._files)}
        for path, rows in self._ranges():
            reader, size = self._readers[path], self._bytes[path]
            if rows is not None and rows[0] < rows[1]:
                share = size * (rows[1] - rows[0]) // self._count(path)
                yield Piece(file=numbers[path], size=share, rows=rows)
            elif reader is not None and rows is None:
                yield from _cut_file(numbers[path], path, self._names[path], reader, size, n_bytes)

    def chunks(self, slice: Slice) -> Iterator[FileChunk]:
        for piece in slice.pieces:
            yield from self._chunks(piece)

    def check_visible(self) -> None:
        files = list(self._hashed.items())
        for path, file in files[:: max(len(files) // VISIBLE, 1)]:
            check_unchanged(file, self._names[path])

    def check_done(self, files: set[int]) -> None:
        for path, file in self._hashed.items():
            check_unchanged(file, self._names[path])
        if not files:
            raise DataError(self._no_rows("the file has no rows"))
        wanted = [path for path, rows in self._ranges() if rows is None or not self._count(path)]
        with_rows = {self._files[number] for number in files}
        if without := [self._names[path] for path in dict.fromkeys(wanted) if path not in with_rows]:
            named = "1 file has no rows and is" if len(without) == 1 else f"{len(without):,} files have no rows and are"
            rank_logger.info(f"{named} skipped: {listed(without)}")

    def rows(self, chunk: FileChunk) -> Iterator[tuple[Place, Any]]:
        return read_rows(chunk)

    def _ranges(self) -> Iterator[tuple[InputPath, tuple[int, int] | None]]:
        """Each file, with the range of rows to read from it, counted from 0; None: all rows."""
        for part in self._parts:
            if part.slice is None:
                yield from ((path, None) for path in part.files)
                continue
            counts = [self._count(path) for path in part.files]
            start, end = part.slice.bounds(sum(counts))
            for path, count in zip(part.files, counts, strict=True):
                yield path, (min(max(start, 0), count), min(max(end, 0), count))
                start, end = start - count, end - count

    def _count(self, path: InputPath) -> int:
        """Number of rows in the file, including invalid rows."""
        reader = self._readers[path]
        return _count_rows(reader, self._hashed[path], self._names[path]) if reader is not None else 0

    def _chunks(self, piece: Piece) -> Iterator[FileChunk]:
        path = self._files[piece.file]
        reader = self._readers[path]
        assert reader is not None
        of_lines = {"start": piece.start, "stop": piece.stop} if reader in _OF_LINES else {}
        groups = {"groups": (piece.start, piece.stop)} if piece.stop is not None and not of_lines else {}
        with Content(self._hashed[path], self._names[path], piece.file, **of_lines) as content:
            chunks = _sized(content, READERS[reader].split(content, **groups))
            yield from chunks if piece.rows is None else _cut(content, chunks, *piece.rows)

    def _no_rows(self, why: str) -> str:
        names = [self._names[path] for path in self._files]
        slices = [part.slice for part in self._parts if part.slice is not None]
        if slices and (n_rows := sum(map(self._count, self._files))):
            return f"split selects none of the {n_rows:,} rows of {listed(names)}: use a larger slice"
        if len(names) == 1:
            return f"{names[0]}: {why}: remove the file, or add rows to it"
        return f"none of the {len(names):,} files has any rows ({listed(names)}): choose other files"


def _identity(reader: str, file: InputFile) -> list[Any]:
    """The parts of the fingerprint for a file. The size of a local file follows from its hash."""
    return [reader, file.digest, *([file.bytes] if isinstance(file.path, RemoteFile) else [])]


def _cut_file(number: int, path: InputPath, name: str, reader: str, size: int, n_bytes: int) -> Iterator[Piece]:
    """The pieces of a file, each with about `n_bytes` bytes. A compressed file is one piece."""
    n_pieces = max(size // n_bytes, 1)
    if n_pieces == 1 or reader not in (*_OF_LINES, "parquet") or is_compressed(path):
        yield Piece(file=number, size=size)
    elif reader == "parquet":
        yield from _cut_parquet(number, parquet.row_groups(path, name), size, n_bytes)
    else:
        ends = [size * piece // n_pieces for piece in range(n_pieces + 1)]
        for start, stop in itertools.pairwise(ends):
            yield Piece(file=number, size=stop - start, start=start, stop=stop)


def _cut_parquet(number: int, groups: list[int], size: int, n_bytes: int) -> Iterator[Piece]:
    """Pieces of consecutive row groups. `groups` are their sizes before compression."""
    total, first, held = max(sum(groups), 1), 0, 0
    for group, n_group in enumerate(groups):
        held += size * n_group // total
        if held >= n_bytes or group == len(groups) - 1:
            yield Piece(file=number, size=held, start=first, stop=group + 1)
            first, held = group + 1, 0


def read_rows(chunk: FileChunk) -> Iterator[tuple[Place, Any]]:
    """`(place, row)` pairs of a chunk. A row that cannot be read is a Problem."""
    if chunk.problem is not None:
        assert chunk.place is not None
        return iter([(chunk.place, chunk.problem)])
    rows = READERS[chunk.reader].rows(chunk)
    return rows if chunk.take is None else islice(rows, chunk.skip, chunk.skip + chunk.take)


def _sized(content: Content, chunks: Iterator[FileChunk]) -> Iterator[FileChunk]:
    """Set the size of each chunk of compressed content to its share of the file's bytes on disk.

    A large chunk keeps its decompressed size, because the total size of the chunks in flight is limited to save memory.
    The following chunks get smaller sizes, until the total size of all chunks equals the number of bytes on disk again.
    """
    done = 0
    for chunk in chunks:
        if content.raw.compression is not None and len(chunk.content) < LARGE:
            chunk = replace(chunk, size=max(content.raw.n_read - done, 0))
        done += chunk.size
        yield chunk


def _cut(content: Content, chunks: Iterator[FileChunk], start: int, end: int) -> Iterator[FileChunk]:
    """The chunks that contain the rows from `start` to `end - 1`. The chunks after these rows are not read."""
    row = 0
    for chunk in chunks:
        n_rows = _rows_in(chunk)
        first, last = max(start - row, 0), min(end - row, n_rows)
        if first < last:
            yield chunk if (first, last) == (0, n_rows) else replace(chunk, skip=first, take=last - first)
        row += n_rows
        if row >= end:
            content.check_unchanged()
            return


def _rows_in(chunk: FileChunk) -> int:
    if chunk.problem is not None:
        return 1
    return chunk.n_rows if chunk.n_rows is not None else lines.count(chunk)


@functools.cache
def _count_rows(reader: str, file: InputFile, name: str) -> int:
    """Number of rows, cached per process. Reads the whole file unless its format stores the number."""
    if reader in _WITH_ROW_COUNT:
        return _WITH_ROW_COUNT[reader].count(file.path, name)
    with Content(file, name) as content:
        return sum(map(_rows_in, READERS[reader].split(content)))


def _reader_of(path: InputPath, name: str, format: str) -> str | None:
    """The file's key in READERS; None if the file is empty. Raises DataError if the file cannot be read."""
    if format in _WITH_ROW_COUNT:
        with os_errors_named(name, as_error=DataError):
            return format if size_of(path) else None
    head = check_head(path, name)
    if not head:
        return None
    return format if format != "json" else "array" if head.lstrip().startswith(b"[") else "lines"
