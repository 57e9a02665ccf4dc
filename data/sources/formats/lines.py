"""JSONL: one JSON object per line. Blank lines are skipped. The location of a row in messages is `path:LINE`."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.base.problems import Place, Problem, describe
from data.sources.formats import content as c
from data.sources.formats.objects import refuse_objects
from data.sources.remote.remote_file import InputPath


def check(path: InputPath, name: str) -> None:
    """Raises DataError if the file contains JSON objects that span several lines, or one object that contains all rows
    in a list."""
    refuse_objects(path, name)


def split(content: c.Content) -> Iterator[c.FileChunk]:
    yield from line_chunks(content, "lines", "the row")


def line_chunks(content: c.Content, reader: str, what: str, n_rows: int | None = None) -> Iterator[c.FileChunk]:
    """Chunks of complete lines. A line that is too large is a Problem, in which it is called `what`."""
    path = str(content.path) if isinstance(content.path, Path) else ""
    about: dict[str, Any] = {"file": content.number, "path": path, "start": content.start}
    for line, offset, block in c.whole_lines(content):
        if isinstance(block, int):
            place = Place(content.number, offset, content.name, line, content.start, path)
            problem = c.too_large(block, what)
            yield c.FileChunk(reader, content.name, b"", block, place=place, problem=problem, **about)
        elif not block.isspace():
            yield c.FileChunk(reader, content.name, block, len(block), line, offset=offset, n_rows=n_rows, **about)


def place_of(chunk: c.FileChunk, line: int, position: int) -> Place:
    """The location of a line of the chunk."""
    return Place(chunk.file, position, chunk.name, line, chunk.start, chunk.path)


def count(chunk: c.FileChunk) -> int:
    """Number of rows in the chunk. The rows are counted without parsing."""
    return sum(not line.isspace() for line in io.BytesIO(chunk.content))


def rows(chunk: c.FileChunk) -> Iterator[tuple[Place, Any]]:
    offset = chunk.offset
    for number, line in enumerate(io.BytesIO(chunk.content), start=chunk.line):
        if not line.isspace():
            yield place_of(chunk, number, offset), parse_line(line)
        offset += len(line)


def parse_line(line: bytes) -> Any:
    """The value of the line, or a Problem."""
    text = c.row_text(line)
    if isinstance(text, Problem):
        return text
    try:
        # The line end is removed, so that the column of an error at the end of the line is in this line, and not column
        # 1 of the next line.
        return c.parse_json(text.rstrip(" \t\r\n"))
    except (ValueError, RecursionError) as error:
        why = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        fix = "write one JSON object per line"
        if "\r" in text.strip():
            fix += " (its lines end with CR: `tr '\\r' '\\n' < FILE > NEW_FILE` converts them to LF)"
        return Problem("not JSON", f"is not JSON ({why}): {describe(text.strip())}: {fix}")
