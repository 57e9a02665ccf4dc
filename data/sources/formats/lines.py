"""JSONL: one JSON object per line. Blank lines are skipped. The location of a row in messages is `path:LINE`."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.base.problems import Problem, describe
from data.sources.formats import content as c
from data.sources.formats.objects import refuse_objects


def check(path: Path, name: str) -> None:
    """Raises DataError if the file contains JSON objects that span several lines, or one object that contains all rows
    in a list."""
    refuse_objects(path, name)


def split(content: c.Content) -> Iterator[c.FileChunk]:
    for line, block in c.whole_lines(content):
        if isinstance(block, int):
            place, problem = f"{content.name}:{line}", c.too_large(block)
            yield c.FileChunk("lines", content.name, b"", block, place=place, problem=problem)
        elif not block.isspace():
            yield c.FileChunk("lines", content.name, block, len(block), line=line)


def count(chunk: c.FileChunk) -> int:
    """Number of rows in the chunk. The rows are counted without parsing."""
    return sum(not line.isspace() for line in io.BytesIO(chunk.content))


def rows(chunk: c.FileChunk) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(io.BytesIO(chunk.content), start=chunk.line):
        if not line.isspace():
            yield f"{chunk.name}:{number}", parse_line(line)


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
