"""The bytes of a file on their way to workers."""

import codecs
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import xxhash

from data.base.errors import DataError, cannot_be, os_errors_named, setting
from data.base.problems import Problem, describe
from data.base.sizes import format_bytes
from data.sources.formats.compressed import PlainFile, RawFile

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
_NUL_BYTES = (
    "is of NUL bytes (\\0), which is what a copy that stopped or a sparse file has in place of its content: copy the "
    "file again, or write it again"
)


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
    n_rows: int | None = None
    """Rows in the content, where cutting it tells."""
    skip: int = 0
    """Rows of the content that are not wanted, before those that are."""
    take: int | None = None
    """Rows that are wanted; null: all."""
    header: tuple[str, ...] = ()
    """Of CSV: the columns; one without a name is left out of the rows."""
    place: str = ""
    """Of the problem."""
    problem: Problem | None = None
    """What is wrong with the one row that the chunk stands for."""


_Opened = TypeVar("_Opened", bound="Blocks")


class Blocks:
    """The content of a file, decompressed, from its beginning to its end; without its byte order mark."""

    def __init__(self, path: Path, name: str, seen: Callable[[bytes], None] | None = None) -> None:
        self.path, self.name = path, name
        with os_errors_named(name, as_error=DataError):
            self.raw = RawFile(path, seen)
        self._plain, self._begun = PlainFile(self.raw), False

    def __enter__(self: _Opened) -> _Opened:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._plain.close()

    def read(self, size: int | None = None) -> bytes:
        """The next block, of BLOCK_BYTES if no size is given; b"" at the end."""
        try:
            block = self._plain.read(BLOCK_BYTES if size is None else size)
        except OSError as error:
            raise DataError(self._why_broken(error)) from None
        first, self._begun = not self._begun, True
        mark = block.startswith(codecs.BOM_UTF8) if first else False
        # What is left of a block that is only the mark would look like the end.
        return (block.removeprefix(codecs.BOM_UTF8) or self.read(size)) if mark else block

    def _why_broken(self, error: OSError) -> str:
        if error.errno is not None or self.raw.compression is None:
            return cannot_be("read", self.name, error)
        return (
            f"{self.name} is no whole {self.raw.compression} file ({error}): it was copied or written in part: copy or "
            "write it again"
        )


class Content(Blocks):
    """Reads a file once, from its beginning to its end, and refuses it when it is not what was hashed."""

    def __init__(self, file: InputFile, name: str) -> None:
        self.file = file
        self._digest = xxhash.xxh3_128()
        super().__init__(file.path, name, self._digest.update)

    def read(self, size: int | None = None) -> bytes:
        block = super().read(size)
        if not block:
            while self.raw.read(BLOCK_BYTES):  # what follows the compressed content, if anything does
                pass
        if self.raw.n_read > self.file.bytes or (not block and self._digest.hexdigest() != self.file.xxh3):
            raise DataError(changed(self.name))
        return block

    def check_unchanged(self) -> None:
        """For a reader that does not use read(), or not to the end."""
        with os_errors_named(self.name, as_error=DataError):
            same = state_of(self.file.path) == self.file.state
        if not same:
            raise DataError(changed(self.name))

    def _why_broken(self, error: OSError) -> str:
        self.check_unchanged()
        return super()._why_broken(error)


def changed(name: str) -> str:
    hint = "start again when it is complete (with --rehash if it has kept its time of change)"
    return f"{name} was changed while it was being read: {hint}"


def state_of(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def check_head(path: Path, name: str) -> bytes:
    """The beginning of a file of text; b"" when it is empty. Raises DataError when it is no UTF-8 text."""
    with Blocks(path, name) as blocks:
        head = blocks.read(_HEAD_BYTES)
    kind = next((message for beginning, message in _BEGINNINGS.items() if head.startswith(beginning)), None)
    kind = kind or _kind_by_nul(head)
    if kind == "NUL":
        raise DataError(f"{name} {_NUL_BYTES}")
    if kind is not None:
        raise DataError(f"{name} is not UTF-8 text but {kind}: {_hint(kind)}")
    return head


def _kind_by_nul(head: bytes) -> str | None:
    """What NUL bytes among the first four tell: which of them belong to the first characters, or that all are."""
    n_others = len(head[:4].replace(b"\0", b""))
    text = head.rstrip(b"\0")
    if b"\0" not in head[:4] or (len(text) > 2 and b"\0" not in text):  # a short text, then NUL bytes to the end
        return None
    return "NUL" if n_others == 0 else "UTF-32" if n_others == 1 and len(head) >= 4 else "UTF-16"


def _hint(kind: str) -> str:
    if kind.startswith("UTF"):
        return f"save it as UTF-8 (`iconv -f {kind} -t UTF-8 FILE > NEW_FILE`)"
    return f"write `{setting('hf_name', 'parquet')}`" if kind == "Parquet" else "unpack it first"


def whole_lines(content: Blocks, line_end: bytes = b"\n") -> Iterator[tuple[int, bytes | int]]:
    """`(number of the first line, lines)` in blocks that end with a line end (one byte), or with the file.

    For a line larger than MAX_ROW_BYTES its size comes instead of it.
    """
    number, held, n_held = 1, list[bytes](), 0
    while block := content.read():
        end = block.find(line_end) + 1 if n_held > MAX_ROW_BYTES else block.rfind(line_end) + 1
        if n_held > MAX_ROW_BYTES and end:
            yield number, n_held + end
            number, n_held = number + 1, 0
            block = block[end:]
            end = block.rfind(line_end) + 1
        if end:
            held.append(block[:end])
            n_lines = sum(part.count(line_end) for part in held)
            whole, held = [b"".join(held)], []
            yield number, whole.pop()  # nothing of it stays here while it is worked on
            number, n_held, block = number + n_lines, 0, block[end:]
        n_held += len(block)
        held = [] if n_held > MAX_ROW_BYTES else [*held, block]
    if n_held:
        yield number, n_held if n_held > MAX_ROW_BYTES else b"".join(held)


def too_large(n_bytes: int, what: str = "the row") -> Problem:
    size, most = format_bytes(n_bytes), format_bytes(MAX_ROW_BYTES)
    return Problem(f"larger than {most}", f"{what} is of {size}, but {most} are the most: split it, or remove it")


def parse_json(text: str) -> Any:
    """The value, or a Problem when an object has a key twice: which of the two is meant is not known.

    Raises what json.loads does.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except _DuplicateKey as error:
        return Problem("a key is there twice", str(error))


class _DuplicateKey(Exception):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        key = next(key for key in keys if keys.count(key) > 1)
        raise _DuplicateKey(f"has the key {describe(key)} twice in an object: leave one")
    return made


def row_text(row: bytes) -> str | Problem:
    """The row's text, or why it is none: too large, or not UTF-8."""
    return too_large(len(row)) if len(row) > MAX_ROW_BYTES else decode(row)


def decode(value: bytes) -> str | Problem:
    """The text, or why it is none: not UTF-8, or a stretch of NUL bytes, which UTF-8 allows and no text has."""
    if b"\0\0\0\0" in value:
        return Problem("NUL bytes", _NUL_BYTES)
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        byte = value[error.start]
        return Problem("not UTF-8", f"is not UTF-8 (byte 0x{byte:02x} at {error.start}): save the file as UTF-8")
