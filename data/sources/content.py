"""The bytes of a file on their way to workers."""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import xxhash

from data.errors import DataError
from data.problems import Problem

BLOCK_BYTES = 1 << 20
"""What is read at a time, and so about the size of a chunk."""
MAX_ROW_BYTES = 64 << 20
"""A larger row is a Problem; no more of it is ever held."""
CHUNK_ROWS = 1024
"""Rows of a table in a chunk, at most."""

_HEAD_BYTES = 4096
_BEGINNINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"PAR1": "Parquet",
}
"""How files begin that are not UTF-8 text. UTF-32's mark begins with UTF-16's, so it comes first."""


@dataclass(frozen=True)
class InputFile:
    path: Path
    bytes: int
    xxh3: str
    """Hash of the content (xxh3_128)."""
    state: tuple[int, ...]
    """Of the file when it was hashed: what `stat` says that a change changes."""


@dataclass(frozen=True)
class FileChunk:
    reader: str
    name: str
    """What a place begins with: the file."""
    content: bytes
    size: int
    """Bytes of the file that are dealt with once this chunk is."""
    line: int = 1
    """1-based, of the content's first byte."""
    column: int = 1
    """1-based, in characters, of the content's first byte."""
    row: int = 1
    """1-based, of the content's first row."""
    ends: tuple[int, ...] = ()
    """Of a JSON array: where each element ends."""
    header: tuple[str, ...] = ()
    """Of CSV: the columns."""
    place: str = ""
    """Of the problem."""
    problem: Problem | None = None
    """What is wrong with the one row that the chunk stands for."""


class Content:
    """Reads a file once, from its beginning to its end, and refuses it when it is not what was hashed."""

    def __init__(self, file: InputFile, name: str) -> None:
        self.file, self.name = file, name
        self._digest, self._seen = xxhash.xxh3_128(), 0
        try:
            self._open = file.path.open("rb")
        except OSError as error:
            raise DataError(why_unreadable(name, error)) from None

    def __enter__(self) -> "Content":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()

    def read(self) -> bytes:
        """The next block; b"" at the end. A file's first block comes without its byte order mark."""
        try:
            block = self._open.read(BLOCK_BYTES)
        except OSError as error:
            raise DataError(why_unreadable(self.name, error)) from None
        first = self._seen == 0
        self._digest.update(block)
        self._seen += len(block)
        if self._seen > self.file.bytes or (not block and self._digest.hexdigest() != self.file.xxh3):
            raise DataError(_changed(self.name))
        return block.removeprefix(codecs.BOM_UTF8) if first else block

    def check_unchanged(self) -> None:
        """For a reader that does not use read()."""
        try:
            same = state_of(self.file.path) == self.file.state
        except OSError as error:
            raise DataError(why_unreadable(self.name, error)) from None
        if not same:
            raise DataError(_changed(self.name))


def _changed(name: str) -> str:
    return f"{name} was changed while it was being read: start again when it is complete"


def state_of(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def why_unreadable(name: str | Path, error: OSError) -> str:
    return f"{name} cannot be read: {error.strerror or error}"


def check_head(path: Path, name: str, *, is_text: bool) -> bytes:
    """The file's beginning, without a byte order mark. Raises DataError when it can hold no rows."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise DataError(why_unreadable(name, error)) from None
    if not head:
        raise DataError(f"{name}: the file is empty: remove it, or put rows into it")
    if not is_text:
        return head
    kind = next((said for beginning, said in _BEGINNINGS.items() if head.startswith(beginning)), None)
    if kind is None and b"\0" in head[:4]:
        kind = "UTF-16"
    if kind is not None:
        raise DataError(f"{name} is not UTF-8 text but {kind}: {_way_out(kind)}")
    return head.removeprefix(codecs.BOM_UTF8)


def _way_out(kind: str) -> str:
    if kind.startswith("UTF"):
        return f"save it as UTF-8 (`iconv -f {kind} -t UTF-8 FILE > NEW_FILE`)"
    return "write `hf_name: parquet`" if kind == "Parquet" else "unpack it first"


def whole_lines(content: Content) -> Iterator[tuple[int, bytes | int]]:
    """`(number of the first line, lines)` in blocks that end with a line end, or with the file.

    For a line larger than MAX_ROW_BYTES its size comes instead of it.
    """
    number, held, n_held = 1, list[bytes](), 0
    while block := content.read():
        end = block.find(b"\n") + 1 if n_held > MAX_ROW_BYTES else block.rfind(b"\n") + 1
        if n_held > MAX_ROW_BYTES and end:
            yield number, n_held + end
            number, n_held = number + 1, 0
            block = block[end:]
            end = block.rfind(b"\n") + 1
        if end:
            held.append(block[:end])
            n_lines = sum(part.count(b"\n") for part in held)
            whole, held = [b"".join(held)], []
            yield number, whole.pop()  # nothing of it stays here while it is worked on
            number, n_held, block = number + n_lines, 0, block[end:]
        n_held += len(block)
        held = [] if n_held > MAX_ROW_BYTES else [*held, block]
    if n_held:
        yield number, n_held if n_held > MAX_ROW_BYTES else b"".join(held)


def too_large(n_bytes: int, what: str = "the row") -> Problem:
    size, most = _megabytes(n_bytes), _megabytes(MAX_ROW_BYTES)
    return Problem("larger than 64 MB", f"{what} is of {size}, but {most} are the most: split it, or remove it")


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / (1 << 20):,.0f} MB" if n_bytes >= 10 << 20 else f"{n_bytes:,} bytes"


def row_text(row: bytes) -> str | Problem:
    """The row's text, or why it is none: too large, or not UTF-8."""
    return too_large(len(row)) if len(row) > MAX_ROW_BYTES else decode(row)


def decode(value: bytes) -> str | Problem:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        byte = value[error.start]
        return Problem("not UTF-8", f"is not UTF-8 (byte 0x{byte:02x} at {error.start}): save the file as UTF-8")
