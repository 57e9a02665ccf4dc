"""References to documents, as users write them: `PATH:POSITION`, `PATH:L120` or `PATH`."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from data.base.errors import ConfigError, from_here, os_errors_named, raise_together
from data.lineage.folder_documents import Document, FolderDocuments
from data.sources.formats.compressed import PlainFile, RawFile
from data.sources.formats.names import named_format

_PLACE = re.compile(r"(?P<path>.+):(?:(?P<position>\d+)|L(?P<line>\d+))", re.DOTALL)
_BLOCK = 1 << 20
_END = 2**62
"""A position after the end of any file."""
_SHOWN = 3
"""Maximum number of similar names in a message."""
_MOST_ERRORS = 10
"""Maximum number of invalid references in a message."""


@dataclass(frozen=True)
class Reference:
    """A reference to one document, or to all documents of a file."""

    text: str
    path: str
    position: int | None = None
    line: int | None = None
    """Line number from 1. If neither a position nor a line is given, all documents of the file are meant."""
    origin: str = ""
    """`FILE:LINE: ` for a reference in a list; the beginning of its error messages."""


@dataclass(frozen=True)
class Wanted:
    """The documents of a stream that a reference refers to: those between `first` and `last`, inclusive."""

    number: int
    """Index of the reference in the list."""
    stream: str
    first: Document
    last: Document


def parse_reference(text: str, origin: str = "") -> Reference:
    """Raises ConfigError for a line number of 0 and for an empty text."""
    match = _PLACE.fullmatch(text)
    if not text or (match is not None and match["line"] is not None and int(match["line"]) < 1):
        raise ConfigError(
            f"{origin}{text!r} is not a document: write PATH:POSITION, PATH:L120 (line 120 of a JSONL file) or PATH"
        )
    if match is None:
        return Reference(text, text, origin=origin)
    if match["line"] is not None:
        return Reference(text, match["path"], line=int(match["line"]), origin=origin)
    return Reference(text, match["path"], position=int(match["position"]), origin=origin)


def read_references(path: Path) -> list[Reference]:
    """Read a text file with one reference per line. Blank lines and lines that begin with `#` are ignored. Raises
    ConfigError if the file cannot be read, if it contains no references, and with all invalid references."""
    with os_errors_named(path):
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    found, errors = list[Reference](), list[ConfigError]()
    for number, line in enumerate(lines, start=1):
        if line and not line.startswith("#"):
            try:
                found.append(parse_reference(line, f"{path}:{number}: "))
            except ConfigError as error:
                errors.append(error)
    _raise(errors)
    if not found:
        raise ConfigError(f"{path} contains no documents: write one PATH:POSITION per line")
    return found


def find_documents(references: Sequence[Reference], folders: Mapping[str, FolderDocuments]) -> list[Wanted]:
    """The places that the references refer to, in every stream that contains the file. folders: the documents of each
    stream. Raises ConfigError with all unknown files, and for a line number if the file cannot be read."""
    files, errors = dict[str, list[tuple[str, int]]](), list[ConfigError]()
    for path, reference in {each.path: each for each in reversed(references)}.items():
        try:
            files[path] = _files(path, folders)
        except ConfigError as error:
            errors.append(ConfigError(f"{reference.origin}{error}"))
    _raise(errors[::-1])
    lines = _line_starts(references, files, folders)
    found = []
    for number, reference in enumerate(references):
        for stream, file in files[reference.path]:
            first, last = _positions(reference, folders[stream].names[file], lines)
            found.append(Wanted(number, stream, Document(file, first), Document(file, last)))
    return found


def _raise(errors: Sequence[ConfigError]) -> None:
    """Raise the first errors together, and report the number of the remaining errors."""
    shown = [*errors[:_MOST_ERRORS]]
    if len(errors) > _MOST_ERRORS:
        shown.append(ConfigError(f"... and {len(errors) - _MOST_ERRORS:,} more"))
    raise_together(shown)


def _positions(reference: Reference, name: str, lines: Mapping[tuple[str, int], tuple[int, int]]) -> tuple[int, int]:
    if reference.position is not None:
        return reference.position, reference.position
    return (0, _END) if reference.line is None else lines[name, reference.line]


def _files(path: str, folders: Mapping[str, FolderDocuments]) -> list[tuple[str, int]]:
    """The stream and the index of each input with this path, or else with a path that ends with it."""
    every = [(stream, file, name) for stream, folder in folders.items() for file, name in enumerate(folder.names)]
    exact = [(stream, file) for stream, file, name in every if name == path or _same_file(name, path)]
    if exact:
        return exact
    ending = [(stream, file, name) for stream, file, name in every if name.endswith(f"/{path}")]
    names = {name for _, _, name in ending}
    if len(names) > 1:
        some = ", ".join(sorted(names)[:_SHOWN])
        raise ConfigError(f"{path!r} matches {len(names)} files of the run ({some}): write more of the path")
    if not ending:
        head, _, tail = path.rpartition(":")
        if head and any(name == head or name.endswith(f"/{head}") for *_, name in every):
            raise ConfigError(f"{path!r} ends with {tail!r}, which is not a position: write {head}:0 or {head}:L1")
        raise ConfigError(
            f"{path!r} is not an input file of the run's data{_similar(path, (name for *_, name in every))}"
        )
    return [(stream, file) for stream, file, _ in ending]


def _same_file(name: str, path: str) -> bool:
    return Path(name).name == Path(path).name and os.path.realpath(name) == os.path.realpath(path)


def _similar(path: str, names: Iterable[str]) -> str:
    """A note that lists the most similar file names."""
    by_name: dict[str, str] = {}
    for name in names:
        by_name.setdefault(name, name)
        by_name.setdefault(Path(name).name, name)
    close = get_close_matches(path, by_name, n=_SHOWN) or get_close_matches(Path(path).name, by_name, n=_SHOWN)
    if close:
        return f": did you mean {' or '.join(dict.fromkeys(by_name[each] for each in close))}?"
    every = list(dict.fromkeys(by_name.values()))
    return f", whose files are: {', '.join(every[:_SHOWN])}{', ...' if len(every) > _SHOWN else ''}"


def _line_starts(
    references: Sequence[Reference],
    files: Mapping[str, Sequence[tuple[str, int]]],
    folders: Mapping[str, FolderDocuments],
) -> dict[tuple[str, int], tuple[int, int]]:
    """The first and the last byte of each wanted line, by the name of the input file and the line number. Each file is
    read once."""
    wanted: dict[str, set[int]] = {}
    sizes: dict[str, int | None] = {}
    for reference in references:
        if reference.line is not None:
            for stream, file in files[reference.path]:
                name = folders[stream].names[file]
                wanted.setdefault(name, set()).add(reference.line)
                sizes[name] = folders[stream].inputs[file].get("bytes")
    return {
        (name, line): place
        for name, lines in wanted.items()
        for line, place in _places_of_lines(name, lines, sizes[name]).items()
    }


def _places_of_lines(path: str, lines: set[int], n_bytes: int | None) -> dict[int, tuple[int, int]]:
    """n_bytes: size of the file when its rows were prepared."""
    if named_format(path) != "json":
        raise ConfigError(f"{path}:L{min(lines)}: only JSONL files have line numbers: write {path}:POSITION")
    if not Path(path).is_file():
        raise ConfigError(
            f"{path}:L{min(lines)} needs the file to convert the line to a byte offset, but the file is not on this "
            f"machine{from_here(path)}: write {path}:BYTE_OFFSET"
        )
    if n_bytes is not None and Path(path).stat().st_size != n_bytes:
        raise ConfigError(
            f"{path}:L{min(lines)} needs the file to convert the line to a byte offset, but the file has changed since "
            f"its rows were prepared: write {path}:BYTE_OFFSET"
        )
    found: dict[int, tuple[int, int]] = {}
    line, start, offset = 1, 0, 0
    with os_errors_named(path):
        file = PlainFile(RawFile(Path(path)))
        try:
            while len(found) < len(lines) and (block := file.read(_BLOCK)):
                n_ends = block.count(b"\n")
                if not any(line <= each <= line + n_ends for each in lines):
                    line, start = line + n_ends, offset + block.rfind(b"\n") + 1 if n_ends else start
                    offset += len(block)
                    continue
                for end in re.finditer(b"\n", block):
                    stop = offset + end.end()
                    if line in lines:
                        found[line] = (start, stop - 1)
                    line, start = line + 1, stop
                offset += len(block)
        finally:
            file.close()
    if line in lines and line not in found and offset > start:
        found[line] = (start, offset - 1)
    if missing := sorted(lines - found.keys()):
        raise ConfigError(f"{path}:L{missing[0]} does not exist: the file has {line - (offset == start)} lines")
    return found
