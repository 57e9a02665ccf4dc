"""Plain text files. Each file is a document, `{"text": ...}`. A file that is larger than a chunk is split at line ends
into several documents."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.base.problems import Problem
from data.sources.formats import content as c


def check(path: Path, name: str) -> None:
    """Accepts any text."""


def split(content: c.Content) -> Iterator[c.FileChunk]:
    """A line of more than MAX_ROW_BYTES is a Problem. Blocks of only white space are skipped."""
    for line, block in c.whole_lines(content):
        if isinstance(block, int):
            place, problem = f"{content.name}:{line}", c.too_large(block, "the line")
            yield c.FileChunk("text", content.name, b"", block, place=place, problem=problem)
        elif not block.isspace():
            yield c.FileChunk("text", content.name, block, len(block), line=line, n_rows=1)


def rows(chunk: c.FileChunk) -> Iterator[tuple[str, Any]]:
    text = c.decode(chunk.content)
    if isinstance(text, Problem):
        yield _first_bad_line(chunk)
    else:
        yield f"{chunk.name}:{chunk.line}", {"text": text}


def _first_bad_line(chunk: c.FileChunk) -> tuple[str, Problem]:
    for number, line in enumerate(chunk.content.split(b"\n"), start=chunk.line):
        problem = c.decode(line)
        if isinstance(problem, Problem):
            return f"{chunk.name}:{number}", problem
    raise AssertionError("a newline is never part of another character")
