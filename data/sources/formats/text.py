"""Plain text files. Each file is a document, `{"text": ...}`. A file that is larger than a chunk is split at line ends
into several documents."""

from collections.abc import Iterator
from typing import Any

from data.base.problems import Place, Problem
from data.sources.formats import content as c
from data.sources.formats.lines import line_chunks, place_of
from data.sources.remote.remote_file import InputPath


def check(path: InputPath, name: str) -> None:
    """Accepts any text."""


def split(content: c.Content) -> Iterator[c.FileChunk]:
    """A line of more than MAX_ROW_BYTES is a Problem. Blocks of only white space are skipped."""
    yield from line_chunks(content, "text", "the line", n_rows=1)


def rows(chunk: c.FileChunk) -> Iterator[tuple[Place, Any]]:
    text = c.decode(chunk.content)
    if isinstance(text, Problem):
        yield _first_bad_line(chunk)
    else:
        yield place_of(chunk, chunk.line, chunk.offset), {"text": text}


def _first_bad_line(chunk: c.FileChunk) -> tuple[Place, Problem]:
    offset = chunk.offset
    for number, line in enumerate(chunk.content.split(b"\n"), start=chunk.line):
        problem = c.decode(line)
        if isinstance(problem, Problem):
            return place_of(chunk, number, offset), problem
        offset += len(line) + 1
    raise AssertionError("a newline is never part of another character")
