"""CSV, and TSV by its name: a header, then rows whose cells are text, whatever they look like (RFC 4180).

`path row N (line L)` is a row's place, the header not counted.
"""

import csv
import io
import re
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from data.base.errors import DataError
from data.base.problems import Problem, describe
from data.sources.formats import content as c
from data.sources.formats.names import suffix_of

_UNNAMED = "the first column, which has no name (such as the index that pandas writes)"
_HEAD_BYTES = 1 << 16
"""In which the first line ends, if it ends with CR."""
_FIRST_LINE = re.compile(rb'(?:"[^"]*"|[^"\r\n])*(\r\n|\r(?!\n|\Z)|\n)')


def check(path: Path, name: str) -> str | None:
    """What of every row is left out, if anything. Raises DataError when the first row cannot be a header."""
    with c.Blocks(path, name) as blocks:
        lines = _Lines(blocks, _line_end(path, name))
        header = _header(_reader(iter(lines), path.name), name)
    return _UNNAMED if header and not header[0].strip() else None


def split(content: c.Content) -> Iterator[c.FileChunk]:
    """Parses the rows too, for only a parser knows where one ends. A quote that is not closed is a DataError."""
    line_end = _line_end(content.path, content.name)
    lines = _Lines(content, line_end)
    reader = _reader(iter(lines), content.path.name)
    header = _header(reader, content.name)
    make = partial(c.FileChunk, "csv", content.name, header=header, line_end=line_end)
    lines.taken()
    lines.row_line = reader.line_num + 1
    row, first_row, first_line = 1, 1, reader.line_num + 1
    while header:
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
                yield make(held, len(held), line=first_line, row=first_row, n_rows=row - first_row)
            first_row, first_line = row, reader.line_num + 1
        if cells is None:
            return


def rows(chunk: c.FileChunk) -> Iterator[tuple[str, Any]]:
    """A row is `{column: text}`."""
    is_utf8 = not isinstance(c.decode(chunk.content), Problem)
    lines = _lines_of(chunk.content, chunk.line_end)
    reader = _reader(lines, chunk.name, "utf-8" if is_utf8 else "latin-1")
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

    def __init__(self, content: c.Blocks, line_end: bytes) -> None:
        self._content, self._line_end = content, line_end
        self._held: list[bytes] = []
        self.size = 0
        self.row_line = 1
        """Number of the line at which the row that is being read began."""
        self.ended = False

    def __iter__(self) -> Iterator[bytes]:
        row_line, row_size = self.row_line, 0
        for number, block in c.whole_lines(self._content, self._line_end):
            if isinstance(block, int):
                raise DataError(f"{self._content.name}:{number}: {c.too_large(block, 'the line').text}")
            for line in _lines_of(block, self._line_end):
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


def _line_end(path: Path, name: str) -> bytes:
    """CR where the first line ends with it alone, as in files of old spreadsheets; LF ends lines otherwise."""
    with c.Blocks(path, name) as blocks:
        found = _FIRST_LINE.match(blocks.read(_HEAD_BYTES))
    return b"\r" if found is not None and found[1] == b"\r" else b"\n"


def _lines_of(content: bytes, line_end: bytes) -> Iterator[bytes]:
    if line_end == b"\n":
        return iter(io.BytesIO(content))
    *lines, last = content.split(line_end)
    return chain((line + line_end for line in lines), [last] if last else [])


def _reader(lines: Iterator[bytes], name: str, encoding: str = "latin-1") -> Any:
    """Latin-1 takes any bytes, and has quotes, delimiters and line ends where UTF-8 has them."""
    csv.field_size_limit(c.MAX_ROW_BYTES)
    delimiter = "\t" if suffix_of(name) == ".tsv" else ","
    return csv.reader((line.decode(encoding) for line in lines), delimiter=delimiter, strict=True)


def _header(reader: Any, name: str) -> tuple[str, ...]:
    """The columns' names, of which the first may be empty; none in a file without rows."""
    try:
        cells = next((cells for cells in reader if cells), [])
    except csv.Error as error:
        raise DataError(f"{name}:1: the header is not CSV ({error})") from None
    try:
        header = [cell.encode("latin-1").decode() for cell in cells]
    except UnicodeDecodeError:
        raise DataError(f"{name}:1: the header is not UTF-8: save the file as UTF-8") from None
    if not header:
        return ()
    if re.fullmatch(r"sep=.?", ",".join(header).strip()):
        raise DataError(f"{name}:1: the first line is {','.join(header)!r}, which Excel reads as a setting: remove it")
    other = next((mark for mark in (";", "\t", "|") if mark in header[0]), None)
    if len(header) == 1 and other is not None:
        raise DataError(f"{name}:1: the header is {describe(header[0])}: separate columns by commas, not by {other!r}")
    for number, column in enumerate(header, start=1):
        if not column.strip() and (number > 1 or len(header) == 1):
            raise DataError(f"{name}:1: column {number} of the header has no name: give each column one")
        if header.index(column) != number - 1:
            raise DataError(f"{name}:1: two columns of the header are named {column!r}: rename one")
    return tuple(header)


def _row(cells: list[str], header: tuple[str, ...], is_utf8: bool) -> dict[str, str] | Problem:
    if len(cells) != len(header):
        if not any(cell.strip() for cell in cells):
            return Problem("an empty row", f"has {len(cells)} cells, all of them empty: remove the line")
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
    row = dict(zip(header, cells, strict=True))
    if not header[0].strip():
        del row[header[0]]
    return row


def _not_closed(name: str, row: int, line: int) -> str:
    return f"{name} row {row} (line {line}): a quote is opened here that is never closed: close it, or double it"
