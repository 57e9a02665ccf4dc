"""Read the bytes of files in blocks, and define the chunks that are sent to workers."""

import codecs
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import xxhash

from data.base.errors import DataError, ReadError, cannot_be, os_errors_named, setting
from data.base.problems import Place, Problem, describe
from data.base.sizes import format_bytes
from data.sources.formats.compressed import PlainFile, RawFile
from data.sources.remote.remote_file import InputPath, RemoteFile, open_file

BLOCK_BYTES = 1 << 20
"""Number of bytes per read, which is also the approximate size of a chunk."""
MAX_ROW_BYTES = 64 << 20
"""A row with more bytes is a Problem. Such a row is never completely in memory."""
SCAN_BYTES = 1 << 16
"""Number of bytes per read when the next line end is searched."""
CHUNK_ROWS = 1024
"""Maximum number of table rows in a chunk."""

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
"""Magic bytes of files that are not UTF-8. UTF-32 comes first, because its byte order mark begins with the byte order
mark of UTF-16."""
_NUL_BYTES = (
    "contains NUL bytes (\\0), perhaps because a copy was interrupted or the file is sparse: copy the file again, or "
    "create it again"
)


@dataclass(frozen=True)
class InputFile:
    path: InputPath
    bytes: int
    digest: str
    """Hash of the content (xxh3_128); for a remote file, the identification of the content by the remote."""
    state: tuple[int, ...] = ()
    """The fields of `stat` that change when the file changes, taken when the file was hashed. Empty for a remote file,
    because each request verifies its version."""


@dataclass(frozen=True)
class FileChunk:
    reader: str
    name: str
    """The name of the file. Locations in error messages begin with it."""
    content: bytes
    size: int
    """Number of bytes of the file that this chunk covers, for the progress bar."""
    line: int = 1
    """Line number of the content's first byte, counted from 1."""
    column: int = 1
    """Column of the content's first byte in characters, counted from 1."""
    row: int = 1
    """Row number of the content's first row, counted from 1."""
    ends: tuple[int, ...] = ()
    """For a JSON array: the position of the end of each element."""
    n_rows: int | None = None
    """Number of rows in the content; None if the rows were not counted when the file was split."""
    skip: int = 0
    """Number of rows to skip at the start of the content."""
    take: int | None = None
    """Number of rows to read after the skipped rows; None: all."""
    header: tuple[str, ...] = ()
    """For CSV: the names of the columns. A column without a name is left out of the rows."""
    place: Place | None = None
    """The location of `problem`."""
    problem: Problem | None = None
    """The problem of a row that could not be read. The chunk then represents only this row."""
    file: int = 0
    """Index of the file in the source's `inputs`."""
    path: str = ""
    offset: int = 0
    """For lines and text: offset of the content's first byte in the decompressed file."""
    start: int = 0
    """Offset of the first byte that the task reads. The line at this offset has number 1."""


_Opened = TypeVar("_Opened", bound="Blocks")


class Blocks:
    """The decompressed content of a file in blocks, without its byte order mark."""

    def __init__(
        self,
        path: InputPath,
        name: str,
        seen: Callable[[bytes], None] | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        """Read only the bytes from `start` to `stop - 1`, which is only possible for files that are not compressed."""
        self.path, self.name, self.start = path, name, start
        with os_errors_named(name, as_error=DataError):
            self.raw = RawFile(path, seen, start, stop)
        self._plain, self._begun = PlainFile(self.raw), start > 0
        self.first = start
        """Offset of the first byte that read() returned, which follows the byte order mark."""

    def __enter__(self: _Opened) -> _Opened:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._plain.close()

    def read(self, size: int | None = None) -> bytes:
        """The next block, of BLOCK_BYTES unless a size is given; b"" at the end."""
        try:
            block = self._plain.read(BLOCK_BYTES if size is None else size)
        except OSError as error:
            kind = DataError if error.errno is None else ReadError
            raise kind(self._why_broken(error)) from None
        first, self._begun = not self._begun, True
        mark = block.startswith(codecs.BOM_UTF8) if first else False
        self.first += len(codecs.BOM_UTF8) if mark else 0
        # If a block contains only the byte order mark, removing the mark leaves an empty block, which would look like
        # the end of the file.
        return (block.removeprefix(codecs.BOM_UTF8) or self.read(size)) if mark else block

    def _why_broken(self, error: OSError) -> str:
        if error.errno is not None or self.raw.compression is None:
            return cannot_be("read", self.name, error)
        return (
            f"{self.name} is not a complete {self.raw.compression} file ({error}), perhaps because of an interrupted "
            "copy: copy or write it again"
        )


class Content(Blocks):
    """Reads a file, or a range of its lines, from start to end. Raises DataError if the file is not the same as when it
    was hashed.

    The content of a whole file is compared with its hash. For a range, the state of the file is compared before and
    after the range is read.
    """

    def __init__(self, file: InputFile, name: str, number: int = 0, *, start: int = 0, stop: int | None = None) -> None:
        """`number` is the index of the file in the source's `inputs`. With `start` or `stop`, only the lines that begin
        at an offset from `start` to `stop - 1` are read."""
        self.file, self.number = file, number
        self._digest = xxhash.xxh3_128()
        self._is_range = start > 0 or stop is not None
        self._is_hashed = isinstance(file.path, Path) and not self._is_range
        if self._is_range:
            check_unchanged(file, name)
            last = file.bytes if stop is None else stop
            start = next_line(file.path, name, start, last)
            # If no line begins in the range, the end of the line that contains the range is not searched.
            stop = next_line(file.path, name, last) if start < last else start
        super().__init__(file.path, name, self._digest.update if self._is_hashed else None, start, stop)

    def read(self, size: int | None = None) -> bytes:
        block = super().read(size)
        if self._is_range:
            if not block:
                self.check_unchanged()
            return block
        if not block:
            # Also read any bytes after the compressed content, because they are part of the hash.
            while self.raw.read(BLOCK_BYTES):
                pass
        is_other = not block and self._is_hashed and self._digest.hexdigest() != self.file.digest
        if self.raw.n_read > self.file.bytes or is_other:
            raise DataError(changed(self.name))
        return block

    def check_unchanged(self) -> None:
        """Check that the file is unchanged. Readers that do not read the whole file with read() call this method."""
        check_unchanged(self.file, self.name)

    def place(self, text: str, position: int) -> Place:
        """The location of a record in this file."""
        return Place(self.number, position, text)

    def _why_broken(self, error: OSError) -> str:
        self.check_unchanged()
        return super()._why_broken(error)


def check_unchanged(file: InputFile, name: str) -> None:
    """Raises DataError if a local file is not the same as when it was hashed."""
    if isinstance(file.path, RemoteFile):
        return
    with os_errors_named(name, as_error=DataError):
        now = state_of(file.path)
        # A new hard link and changed permissions change only ctime. Another content could have the old times, too.
        same = _is_same(now, file.state) or (now[:4] == file.state[:4] and _hash(file.path, now) == file.digest)
    if not same:
        raise DataError(changed(name))


@cache
def _hash(path: Path, state: tuple[int, ...]) -> str:
    """The hash of a file with this state."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _is_same(now: tuple[int, ...], before: tuple[int, ...]) -> bool:
    """Whether two states belong to the same content. On another node, which has another device number, only size and
    modification time are compared."""
    return now == before if now[0] == before[0] else now[2:4] == before[2:4]


def next_line(path: InputPath, name: str, offset: int, limit: int | None = None) -> int:
    """Offset of the first line that begins at `offset` or later; the size of the file if there is none. With `limit`,
    the search ends there, and the result is `limit` or more if no line begins before it."""
    if offset == 0:
        return 0
    with os_errors_named(name, as_error=DataError), open_file(path, exact=True) as file:
        file.seek(offset - 1)
        while (limit is None or offset < limit) and (block := file.read(SCAN_BYTES)):
            if (end := block.find(b"\n")) >= 0:
                return offset + end
            offset += len(block)
        return file.tell() if limit is None else limit


def changed(name: str) -> str:
    hint = "start again when the file is complete (use --rehash if its modification time did not change)"
    return f"{name} changed while it was being read: {hint}"


def state_of(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def check_head(path: InputPath, name: str) -> bytes:
    """The beginning of a text file; b"" if the file is empty. Raises DataError if the file is not UTF-8 text."""
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
    """UTF-16 or UTF-32, if the first four bytes show that the text has this encoding; NUL if all four are NUL bytes."""
    n_others = len(head[:4].replace(b"\0", b""))
    text = head.rstrip(b"\0")
    # The second condition is true for a short text in another encoding that is followed only by NUL bytes.
    if b"\0" not in head[:4] or (len(text) > 2 and b"\0" not in text):
        return None
    return "NUL" if n_others == 0 else "UTF-32" if n_others == 1 and len(head) >= 4 else "UTF-16"


def _hint(kind: str) -> str:
    if kind.startswith("UTF"):
        return f"save the file as UTF-8 (`iconv -f {kind} -t UTF-8 FILE > NEW_FILE`)"
    return f"set `{setting('hf_name', 'parquet')}`" if kind == "Parquet" else "decompress the file first"


def whole_lines(content: Blocks, line_end: bytes = b"\n") -> Iterator[tuple[int, int, bytes | int]]:
    """Yield `(number of the first line, its offset, lines)` for blocks that end at a line end (one byte) or at the end
    of the content.

    For a line larger than MAX_ROW_BYTES, the third item is the line's size.
    """
    number, offset, held, n_held = 1, 0, list[bytes](), 0
    while block := content.read():
        end = block.find(line_end) + 1 if n_held > MAX_ROW_BYTES else block.rfind(line_end) + 1
        if n_held > MAX_ROW_BYTES and end:
            yield number, content.first + offset, n_held + end
            number, offset, n_held = number + 1, offset + n_held + end, 0
            block = block[end:]
            end = block.rfind(line_end) + 1
        if end:
            held.append(block[:end])
            n_lines, n_bytes = sum(part.count(line_end) for part in held), sum(map(len, held))
            whole, held = [b"".join(held)], []
            # pop() removes this generator's reference to the block while the caller processes the lines.
            yield number, content.first + offset, whole.pop()
            number, offset, n_held, block = number + n_lines, offset + n_bytes, 0, block[end:]
        n_held += len(block)
        held = [] if n_held > MAX_ROW_BYTES else [*held, block]
    if n_held:
        yield number, content.first + offset, n_held if n_held > MAX_ROW_BYTES else b"".join(held)


def too_large(n_bytes: int, what: str = "the row") -> Problem:
    size, most = format_bytes(n_bytes), format_bytes(MAX_ROW_BYTES)
    return Problem(
        f"larger than {most}", f"{what} has a size of {size}, but the maximum is {most}: split {what}, or remove it"
    )


def parse_json(text: str) -> Any:
    """The parsed value, or a Problem if an object has a duplicate key, because it is unknown which value was intended.

    Raises the same errors as `json.loads`.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except _DuplicateKey as error:
        return Problem("duplicate key", str(error))


class _DuplicateKey(Exception):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        key = next(key for key in keys if keys.count(key) > 1)
        raise _DuplicateKey(f"has the duplicate key {describe(key)} in an object: remove one of the duplicates")
    return made


def row_text(row: bytes) -> str | Problem:
    """The text of the row, or a Problem if the row is too large or not UTF-8."""
    return too_large(len(row)) if len(row) > MAX_ROW_BYTES else decode(row)


def decode(value: bytes) -> str | Problem:
    """The text, or a Problem if the bytes are not UTF-8 or contain a run of NUL bytes. (NUL bytes are valid UTF-8, but
    not text.)"""
    if b"\0\0\0\0" in value:
        return Problem("NUL bytes", _NUL_BYTES)
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        byte = value[error.start]
        return Problem(
            "not UTF-8", f"is not UTF-8 (byte 0x{byte:02x} at position {error.start}): save the file as UTF-8"
        )
