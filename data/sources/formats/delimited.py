"""CSV and TSV files (RFC 4180): a header, then rows whose cells are always text. TSV files are recognized by their
suffix.

The end of a row can only be found by parsing, so rows are parsed when the file is split into chunks, and workers
receive the cells. The location of a row in messages is `path row N (line L)`, where N does not count the header.
"""

import csv
import io
import marshal
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

from data.base.errors import DataError
from data.base.problems import Place, Problem, describe
from data.sources.formats import content as c
from data.sources.formats.names import suffix_of
from data.sources.remote.remote_file import InputPath

_UNNAMED = "the first column, which has no name (such as the index that pandas writes)"
_HEAD_BYTES = 1 << 16
"""Number of bytes at the start of the file that are searched for the end of the first line, to detect CR line ends."""
_FIRST_LINE = re.compile(rb'(?:"[^"]*"|[^"\r\n])*(\r\n|\r(?!\n|\Z)|\n)')


def check(path: InputPath, name: str) -> str | None:
    """A description of the part of every row that is skipped, or None. Raises DataError if the first row is not a valid
    header."""
    with c.Blocks(path, name) as blocks:
        header = _header(_reader(_Lines(blocks)), name)
    return _UNNAMED if header and not header[0].strip() else None


def split(content: c.Content) -> Iterator[c.FileChunk]:
    """Raises DataError if a quote is not closed or a row is too large."""
    lines = _Lines(content)
    reader = _reader(lines)
    header = _header(reader, content.name)
    row, held, lines.size = 1, list[bytes](), 0
    while header:
        lines.row_line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if lines.ended:
                raise DataError(_not_closed(content.name, row + len(held), lines.row_line)) from None
            cells = str(error)
        if cells:
            # Serialized rows need far less memory than lists of cells, and the garbage collector does not have to scan
            # serialized rows.
            held.append(marshal.dumps((lines.row_line, cells)))
        if lines.size >= c.BLOCK_BYTES or cells is None:
            if held:
                packed = marshal.dumps(held)
                yield c.FileChunk(
                    "csv",
                    content.name,
                    packed,
                    lines.size,
                    row=row,
                    header=header,
                    n_rows=len(held),
                    file=content.number,
                )
            row, held, lines.size = row + len(held), [], 0
        if cells is None:
            return


def rows(chunk: c.FileChunk) -> Iterator[tuple[Place, Any]]:
    """A row is `{column: text}`."""
    for row, packed in enumerate(marshal.loads(chunk.content), start=chunk.row):
        line, cells = marshal.loads(packed)
        yield Place(chunk.file, row - 1, f"{chunk.name} row {row} (line {line})"), _row(cells, chunk.header)


class _Lines:
    """The lines of the file. Invalid UTF-8 is escaped, so that it is reported with its row."""

    def __init__(self, content: c.Blocks) -> None:
        self.content = content
        self.size = 0
        """Number of bytes in the lines that were read since the beginning of the current chunk."""
        self.row_line = 1
        """Number of the line at which the current row begins."""
        self.ended = False

    def __iter__(self) -> Iterator[str]:
        row_line, row_size = self.row_line, 0
        line_end = _line_end(self.content.path, self.content.name)
        for number, _, block in c.whole_lines(self.content, line_end):
            if isinstance(block, int):
                raise DataError(f"{self.content.name}:{number}: {c.too_large(block, 'the line').text}")
            for line in _lines_of(block, line_end):
                row_size = row_size + len(line) if self.row_line == row_line else len(line)
                row_line = self.row_line
                if row_size > c.MAX_ROW_BYTES:
                    raise DataError(
                        f"{self.content.name}:{row_line}: {c.too_large(row_size).text} (perhaps a quote in it is not "
                        "closed)"
                    )
                self.size += len(line)
                yield line.decode(errors="surrogateescape")
        self.ended = True


def _line_end(path: InputPath, name: str) -> bytes:
    """CR if the first line ends with CR but not with LF, as in files from old spreadsheets; otherwise LF."""
    with c.Blocks(path, name) as blocks:
        found = _FIRST_LINE.match(blocks.read(_HEAD_BYTES))
    return b"\r" if found is not None and found[1] == b"\r" else b"\n"


def _lines_of(content: bytes, line_end: bytes) -> Iterator[bytes]:
    if line_end == b"\n":
        return iter(io.BytesIO(content))
    *lines, last = content.split(line_end)
    return chain((line + line_end for line in lines), [last] if last else [])


def _reader(lines: _Lines) -> Any:
    csv.field_size_limit(c.MAX_ROW_BYTES)  # no cell reaches this limit, because rows are limited to fewer bytes
    delimiter = "\t" if suffix_of(lines.content.path.name) == ".tsv" else ","
    return csv.reader(lines, delimiter=delimiter, strict=True)


def _header(reader: Any, name: str) -> tuple[str, ...]:
    """The names of the columns. The first name may be empty. The list is empty for a file without rows."""
    try:
        header = next((cells for cells in reader if cells), [])
        "".join(header).encode()
    except csv.Error as error:
        raise DataError(f"{name}:1: the header is not CSV ({error})") from None
    except UnicodeEncodeError:
        raise DataError(f"{name}:1: the header is not UTF-8: save the file as UTF-8") from None
    if not header:
        return ()
    if re.fullmatch(r"sep=.?", ",".join(header).strip()):
        raise DataError(
            f"{name}:1: the first line is {','.join(header)!r}, which Excel reads as a setting: remove this line"
        )
    other = next((mark for mark in (";", "\t", "|") if mark in header[0]), None)
    if len(header) == 1 and other is not None:
        raise DataError(f"{name}:1: the header is {describe(header[0])}: separate columns by commas, not by {other!r}")
    for number, column in enumerate(header, start=1):
        if not column.strip() and (number > 1 or len(header) == 1):
            raise DataError(f"{name}:1: column {number} of the header has no name: add a name for each column")
        if header.index(column) != number - 1:
            raise DataError(f"{name}:1: two columns of the header are named {column!r}: rename one of the columns")
    return tuple(header)


def _row(cells: list[str] | str, header: tuple[str, ...]) -> dict[str, str] | Problem:
    """The row, or a Problem. For a row that could not be parsed, `cells` is the parser's error message."""
    if isinstance(cells, str):
        fix = "quote every cell that contains a comma, a quote or a line end, and double the quotes in the cell"
        return Problem("not CSV", f"is not CSV ({cells}): {fix}")
    if len(cells) != len(header):
        if not any(cell.strip() for cell in cells):
            return Problem("an empty row", f"has {len(cells)} cells, all of them empty: remove the line")
        more = "more" if len(cells) > len(header) else "fewer"
        cell = "cell" if len(cells) == 1 else "cells"
        text = f"has {len(cells)} {cell}, but the header has {len(header)} ({', '.join(header)})"
        return Problem(f"{more} cells than columns", f"{text}: quote cells that contain a comma")
    text = ",".join(cells)
    if (not text.isascii() or "\0" in text) and isinstance(_decode(text), Problem):
        return next(problem for cell in cells if isinstance(problem := _decode(cell), Problem))
    row = dict(zip(header, cells, strict=True))
    if not header[0].strip():
        del row[header[0]]
    return row


def _decode(text: str) -> str | Problem:
    return c.decode(text.encode(errors="surrogateescape"))


def _not_closed(name: str, row: int, line: int) -> str:
    return f"{name} row {row} (line {line}): a quote that opens here is never closed: close the quote, or double it"
