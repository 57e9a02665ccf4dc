"""CSV, and TSV by its name: a header, then rows whose cells are text, whatever they look like (RFC 4180).

`path row N (line L)` is a row's place, the header not counted.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.problems import Problem, describe
from data.sources import content as c


def check(path: Path, name: str) -> None:
    """Raises DataError when the first row cannot be a header."""
    with path.open("rb") as file:
        lines = (line.removeprefix(b"\xef\xbb\xbf") for line in iter(lambda: file.readline(c.MAX_ROW_BYTES), b""))
        _header(_reader(lines, path.name), name)


def split(content: c.Content) -> Iterator[c.FileChunk]:
    """Parses the rows too, for only a parser knows where one ends. A quote that is not closed is a DataError."""
    lines = _Lines(content)
    reader = _reader(iter(lines), content.file.path.name)
    header = _header(reader, content.name)
    lines.taken()
    lines.row_line = reader.line_num + 1
    row, first_row, first_line = 1, 1, reader.line_num + 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if lines.ended or "field limit" in str(error):
                raise DataError(_not_closed(content.name, row, lines.row_line)) from None
            cells = [str(error)]  # the worker comes to the same error, and reports it
        if cells is not None:
            row += bool(cells)
            lines.row_line = reader.line_num + 1
        if lines.size >= c.BLOCK_BYTES or cells is None:
            held = lines.taken()
            if row > first_row:
                yield c.FileChunk("csv", content.name, held, len(held), line=first_line, row=first_row, header=header)
            first_row, first_line = row, reader.line_num + 1
        if cells is None:
            return


def rows(chunk: c.FileChunk) -> Iterator[tuple[str, Any]]:
    """A row is `{column: text}`."""
    is_utf8 = not isinstance(c.decode(chunk.content), Problem)
    reader = _reader(io.BytesIO(chunk.content), chunk.name, "utf-8" if is_utf8 else "latin-1")
    row = chunk.row
    while True:
        place = f"{chunk.name} row {row} (line {chunk.line + reader.line_num})"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            text = (
                f"is not CSV ({error}): quote a cell with a comma, a quote or a line end in it, and double its quotes"
            )
            yield place, Problem("not CSV", text)
            row += 1
            continue
        if cells is None:
            return
        if cells:
            yield place, _row(cells, chunk.header, is_utf8)
            row += 1


class _Lines:
    """The file's lines, kept until they are taken for a chunk."""

    def __init__(self, content: c.Content) -> None:
        self._content = content
        self._held: list[bytes] = []
        self.size = 0
        self.row_line = 1
        """Number of the line at which the row that is being read began."""
        self.ended = False

    def __iter__(self) -> Iterator[bytes]:
        row_line, row_size = self.row_line, 0
        for number, block in c.whole_lines(self._content):
            if isinstance(block, int):
                raise DataError(f"{self._content.name}:{number}: {c.too_large(block, 'the line').text}")
            for line in io.BytesIO(block):
                row_size = row_size + len(line) if self.row_line == row_line else len(line)
                row_line = self.row_line
                if row_size > c.MAX_ROW_BYTES:
                    raise DataError(
                        f"{self._content.name}:{row_line}: {c.too_large(row_size).text} (perhaps a quote in it is not "
                        "closed)"
                    )
                self._held.append(line)
                self.size += len(line)
                yield line
        self.ended = True

    def taken(self) -> bytes:
        held = b"".join(self._held)
        self._held, self.size = [], 0
        return held


def _reader(lines: Iterator[bytes] | io.BytesIO, name: str, encoding: str = "latin-1") -> Any:
    """Latin-1 takes any bytes, and has quotes, delimiters and line ends where UTF-8 has them."""
    csv.field_size_limit(c.MAX_ROW_BYTES)
    delimiter = "\t" if name.endswith(".tsv") else ","
    return csv.reader((line.decode(encoding) for line in lines), delimiter=delimiter, strict=True)


def _header(reader: Any, name: str) -> tuple[str, ...]:
    try:
        cells = next((cells for cells in reader if cells), [])
    except csv.Error as error:
        raise DataError(f"{name}:1: the header is not CSV ({error})") from None
    try:
        header = [cell.encode("latin-1").decode() for cell in cells]
    except UnicodeDecodeError:
        raise DataError(f"{name}:1: the header is not UTF-8: save the file as UTF-8") from None
    if not header:
        raise DataError(f"{name}: there are no rows in the file: remove it, or put rows into it")
    other = next((mark for mark in (";", "\t", "|") if mark in header[0]), None)
    if len(header) == 1 and other is not None:
        raise DataError(f"{name}:1: the header is {describe(header[0])}: separate columns by commas, not by {other!r}")
    for number, column in enumerate(header, start=1):
        if not column.strip():
            raise DataError(f"{name}:1: column {number} of the header has no name: give each column one")
        if header.index(column) != number - 1:
            raise DataError(f"{name}:1: two columns of the header are named {column!r}: rename one")
    return tuple(header)


def _row(cells: list[str], header: tuple[str, ...], is_utf8: bool) -> dict[str, str] | Problem:
    if len(cells) != len(header):
        more = "more" if len(cells) > len(header) else "fewer"
        cell = "cell" if len(cells) == 1 else "cells"
        text = f"has {len(cells)} {cell}, but the header has {len(header)} ({', '.join(header)})"
        return Problem(f"{more} cells than columns", f"{text}: quote a cell that has a comma in it")
    if not is_utf8:
        values = [c.decode(cell.encode("latin-1")) for cell in cells]
        problem = next((value for value in values if isinstance(value, Problem)), None)
        if problem is not None:
            return problem
        cells = [str(value) for value in values]
    return dict(zip(header, cells, strict=True))


def _not_closed(name: str, row: int, line: int) -> str:
    return f"{name} row {row} (line {line}): a quote is opened here that is never closed: close it, or double it"
