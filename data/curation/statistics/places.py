"""The locations of documents, as messages and samples show them."""

from contextlib import closing
from functools import lru_cache
from pathlib import Path

from data.sources.formats.compressed import PlainFile, RawFile
from data.sources.formats.names import TEXT_SUFFIXES, named_format, suffix_of

COUNTED = 64 << 20
"""Lines are counted up to this byte. For records behind it, the byte is shown, because counting would take long."""
_BLOCK = 1 << 20
_SPACE = b" \t\r\n\xef\xbb\xbf"


def place_text(source: str, file: str, position: int) -> str:
    """The location of a record, such as `web: a.jsonl:12` for a line, or `web: a.parquet row 3`. `position` is the
    position in `Document`."""
    return f"{source}: {_in_file(file, position)}"


def _in_file(file: str, position: int) -> str:
    format = named_format(file)
    if format == "json" and _is_lines(file):
        line = _line(file, position) if position <= COUNTED else None
        return f"{file}:{line}" if line is not None else f"{file} (line at byte {position})"
    if format is not None:
        return f"{file} row {position + 1}"
    return file if position == 0 and suffix_of(file) in TEXT_SUFFIXES else f"{file}:{position}"


@lru_cache(maxsize=64)
def _is_lines(file: str) -> bool:
    """Whether the JSON file has one object per line. A file that cannot be read here is assumed to have lines."""
    try:
        with closing(PlainFile(RawFile(Path(file)))) as opened:
            return not opened.read(_BLOCK).lstrip(_SPACE).startswith(b"[")
    except OSError:
        return True


@lru_cache(maxsize=4096)
def _line(file: str, position: int) -> int | None:
    """The number of the line at this byte of the decompressed file; None if the file cannot be read here."""
    count, left = 1, position
    try:
        with closing(PlainFile(RawFile(Path(file)))) as opened:
            while left > 0 and (block := opened.read(_BLOCK)):
                count += block[:left].count(b"\n")
                left -= len(block)
    except OSError:
        return None
    return count if left <= 0 else None
