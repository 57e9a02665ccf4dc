"""A JSON array of rows, with line breaks anywhere. The location of a row in messages is `path row N`.

The parent process only searches for the ends of elements, so that no process ever needs the whole array in memory.
ijson (3.6) is not used because it replaces lone surrogates (such as \\ud800) with `?`, and stops at the first invalid
row.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.base.errors import DataError
from data.base.problems import Place, Problem, describe
from data.sources.formats import content as c

_COMMA = ord(",")
# How much each byte outside of strings changes the nesting depth. A comma does not change the depth, but its position
# is needed too.
_DEPTH = np.zeros(256, dtype=np.int8)
_DEPTH[[ord("["), ord("{")]], _DEPTH[[ord("]"), ord("}")]] = 1, -1
_MARKS = _DEPTH != 0
_MARKS[_COMMA] = True


def check(path: Path, name: str) -> None:
    """Accepts any array. The rows are checked when they are parsed."""


class _Scanner:
    """Finds the commas between elements and the bracket that closes the array, block by block."""

    def __init__(self) -> None:
        self._depth, self._in_string, self._escaped = 0, 0, False

    def scan(self, block: bytes) -> tuple[np.ndarray, int | None]:
        """The positions of the commas between elements, and the position of the array's end, if it ends in this
        block."""
        # Replace escapes with text of the same length, so that every remaining quote starts or ends a string.
        text = (b"_" + block[1:] if self._escaped else block).replace(b"\\\\", b"__").replace(b'\\"', b"__")
        self._escaped = text.endswith(b"\\")
        codes = np.frombuffer(text, dtype=np.uint8)
        quotes = np.flatnonzero(codes == ord('"'))
        marks = np.flatnonzero(_MARKS[codes])
        marks = marks[(np.searchsorted(quotes, marks) + self._in_string) % 2 == 0]
        self._in_string = (self._in_string + len(quotes)) % 2
        depth = self._depth + np.cumsum(_DEPTH[codes[marks]], dtype=np.int64)
        if len(depth):
            self._depth = int(depth[-1])
        ends = np.flatnonzero(depth < 0)
        end = int(marks[ends[0]]) if len(ends) else None
        commas = marks[(depth == 0) & (codes[marks] == _COMMA)]
        return (commas if end is None else commas[commas < end]), end


def split(content: c.Content) -> Iterator[c.FileChunk]:
    """Raises DataError if the array ends before the end of the file."""
    cutter = _Cutter(content)
    scanner = _Scanner()
    while block := content.read():
        if not cutter.begun:
            block = cutter.begin(block)
        commas, end = scanner.scan(block)
        if len(commas):
            cut = int(commas[-1]) + 1
            yield from cutter.elements(block[:cut], commas)
            block, end = block[cut:], end and end - cut
        if end is None:
            cutter.hold(block)
            continue
        yield from cutter.last(block[:end])
        cutter.check_end(block[end:])
        while block := content.read():
            cutter.check_nothing(block)
        return
    yield from cutter.last(b"", closed=False)


class _Cutter:
    """Splits the file into chunks of complete elements, and tracks the position in the file."""

    def __init__(self, content: c.Content) -> None:
        self.content, self.name, self.begun = content, content.name, False
        self._line, self._column, self._row = 1, 1, 1
        self._held: list[bytes] = []
        self._n_held = 0

    def begin(self, block: bytes) -> bytes:
        """Return the part of the block that follows the array's opening bracket; empty if the block has no such
        bracket."""
        start = block.find(b"[") + 1
        self.begun = start > 0
        self._advance(block[:start] if start else block)
        return block[start:] if start else b""

    def hold(self, block: bytes) -> None:
        """Buffer a part of an element. If the element is too large, only its size and position are kept."""
        self._n_held += len(block)
        self._held.append(block)
        if self._n_held > c.MAX_ROW_BYTES:
            for part in self._held:
                self._advance(part)
            self._held = []

    def elements(self, block: bytes, commas: np.ndarray) -> Iterator[c.FileChunk]:
        """Yield the chunks of the buffered bytes and `block`. `commas` contains the offsets of the commas between
        elements; the block ends with the last of these commas."""
        ends = commas
        if self._n_held > c.MAX_ROW_BYTES:
            first = int(commas[0]) + 1
            yield self._too_large(self._n_held + first - 1)
            self._advance(block[:first])
            block, ends = block[first:], commas[1:] - first
            self._n_held = 0
        if not len(ends):
            return
        whole = b"".join((*self._held, block))
        yield self._chunk(whole, tuple((ends + self._n_held).tolist()))
        self._advance(whole)
        self._row += len(ends)
        self._held, self._n_held = [], 0

    def last(self, block: bytes, *, closed: bool = True) -> Iterator[c.FileChunk]:
        """The chunks between the last comma and the end of the array, or of the file if the array is not closed."""
        if self._n_held > c.MAX_ROW_BYTES:
            yield self._too_large(self._n_held + len(block))
            self._advance(block)
        else:
            whole = b"".join((*self._held, block))
            # If there is only white space here, either the array is empty, or a comma comes right before the closing
            # bracket, which is an error.
            if whole.strip() or (closed and self._row > 1):
                yield self._chunk(whole, (len(whole),))
            self._advance(whole)
        if not closed:
            yield self._problem("array not closed", f"the array is not closed at the end of the file ({self._here()})")
        self._n_held = 0

    def check_end(self, rest: bytes) -> None:
        """Check the rest of the file, which begins with the bracket that closes the array."""
        if not rest.startswith(b"]"):
            raise DataError(f"{self.name}: unmatched }} in the array ({self._here()}): fix the file")
        self._advance(rest[:1])
        self.check_nothing(rest[1:])

    def check_nothing(self, block: bytes) -> None:
        extra = block.lstrip()
        self._advance(block[: len(block) - len(extra)])
        if extra:
            seen = describe(extra[:60].decode(errors="replace"))
            fix = "write all rows in a single array, or write one object per line"
            if extra.startswith(b"["):
                fix += ', such as {"messages": [...]} for a list of messages'
            raise DataError(f"{self.name}: unexpected {seen} after the end of the array ({self._here()}): {fix}")

    def _chunk(self, content: bytes, ends: tuple[int, ...]) -> c.FileChunk:
        return c.FileChunk(
            "array",
            self.name,
            content,
            len(content),
            self._line,
            self._column,
            self._row,
            ends=ends,
            n_rows=len(ends),
            file=self.content.number,
        )

    def _too_large(self, size: int) -> c.FileChunk:
        place = self.content.place(f"{self.name} row {self._row}", self._row - 1)
        self._row += 1
        return c.FileChunk("array", self.name, b"", size, place=place, problem=c.too_large(size))

    def _problem(self, kind: str, text: str) -> c.FileChunk:
        problem = Problem(kind, f"{text}: the file is truncated, or an earlier quote or bracket is not closed")
        place = self.content.place(self.name, self._row - 1)
        return c.FileChunk("array", self.name, b"", 0, place=place, problem=problem)

    def _advance(self, content: bytes) -> None:
        self._line, self._column = _after(content, self._line, self._column)

    def _here(self) -> str:
        return f"line {self._line}, column {self._column}"


def rows(chunk: c.FileChunk) -> Iterator[tuple[Place, Any]]:
    start = 0
    for row, end in enumerate(chunk.ends, start=chunk.row):
        yield Place(chunk.file, row - 1, f"{chunk.name} row {row}"), _parse(chunk, start, end)
        start = end + 1


def _parse(chunk: c.FileChunk, start: int, end: int) -> Any:
    """The value of an element, or a Problem."""
    text = c.row_text(chunk.content[start:end])
    if isinstance(text, Problem):
        return text
    try:
        return c.parse_json(text)
    except json.JSONDecodeError as error:
        before = chunk.content[:start] + text[: error.pos].encode()
        line, column = _after(before, chunk.line, chunk.column)
        where = f"line {line}, column {column}"
        if not text.strip():
            return Problem("not JSON", f"there is no row after the comma ({where}): remove the comma")
        return Problem("not JSON", f"is not JSON ({error.msg}, {where}): {describe(text.strip())}: fix it")
    except (ValueError, RecursionError) as error:
        return Problem("not JSON", f"is not JSON ({error}): {describe(text.strip())}: fix it")


def _after(content: bytes, line: int, column: int) -> tuple[int, int]:
    """The line and column of the content's end, computed from the line and column of its beginning."""
    last = content.rfind(b"\n") + 1
    length = len(content[last:].decode(errors="replace"))
    return line + content.count(b"\n"), length + 1 if last else column + length
