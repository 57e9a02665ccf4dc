"""JSONL: one JSON object a line. Blank lines are passed over; `path:LINE` is a row's place."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.problems import Problem, describe
from data.sources import content as c


def check(path: Path, name: str) -> None:
    """Any text may be JSONL until it is parsed."""


def split(content: c.Content) -> Iterator[c.FileChunk]:
    for line, block in c.whole_lines(content):
        if isinstance(block, int):
            place, problem = f"{content.name}:{line}", c.too_large(block)
            yield c.FileChunk("lines", content.name, b"", block, place=place, problem=problem)
        elif not block.isspace():
            yield c.FileChunk("lines", content.name, block, len(block), line=line)


def rows(chunk: c.FileChunk) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(io.BytesIO(chunk.content), start=chunk.line):
        if not line.isspace():
            yield f"{chunk.name}:{number}", parse_line(line)


def parse_line(line: bytes) -> Any:
    """The JSON value of the line, or the Problem with it."""
    text = c.row_text(line)
    if isinstance(text, Problem):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        why = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        return Problem("not JSON", f"is not JSON ({why}): {describe(text.strip())}: write one JSON object a line")
