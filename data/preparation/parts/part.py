"""A part: the result of a slice. Its folder contains the shards, the documents of the rows, and part.json."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from data.base.errors import DataError
from data.base.problems import Place
from data.examples.examples import Reading
from data.mds.writer import PARTS, file_of
from data.preparation.packing.recipe import Converted, Tally

PART = "part.json"


class PartError(DataError):
    """A part is missing or damaged. The other parts can be used."""


@dataclass(kw_only=True)
class Part:
    """The content of part.json."""

    slice: int
    """Number of the slice."""
    size: int
    """Size of the slice in units of the source."""
    reading: Reading = field(default_factory=Reading)
    tally: Tally = field(default_factory=Tally)
    files: list[int] = field(default_factory=list)
    """Indices of the files in which rows were found, in the source's `inputs`, in the order in which they were read."""
    shards: list[dict[str, Any]] = field(default_factory=list)
    """The index entries of the shards."""
    documents: dict[str, Any] | None = None
    """The manifest's entry about the documents of the rows; None if there are no rows."""

    def add(self, converted: Converted, file: int) -> None:
        """Add the statistics of a chunk from the file with this index."""
        self.reading.merge(converted.reading)
        self.tally.merge(converted.tally)
        if self.files[-1:] != [file]:
            self.files.append(file)

    @property
    def basenames(self) -> dict[str, int]:
        """Name -> size in bytes of each file of the part."""
        files = [file_of(entry) for entry in self.shards]
        files += [self.documents] if self.documents is not None else []
        return {file["basename"]: file["bytes"] for file in files}

    def write(self, file: Path) -> None:
        """Write and sync the file, so that a full disk raises here and not later."""
        values = vars(self) | {"reading": vars(self.reading), "tally": vars(self.tally)}
        write_json(file, values)


def part_folder(folder: Path, number: int) -> Path:
    """The folder of the part of a slice, after the part is complete."""
    return folder / PARTS / f"{number:05}"


def read_part(folder: Path, number: int, *, check_files: bool = True) -> Part | None:
    """The part of the slice with this number; None if there is no part. Raises PartError if part.json is damaged, or if
    a file is missing or has another size than in part.json.

    With `check_files=False`, only part.json is read, because the files are in an object store.

    `folder` is the folder that is prepared. If merging was interrupted, some files are already in this folder.
    """
    place = part_folder(folder, number)
    if not place.is_dir():
        return None
    try:
        values = json.loads((place / PART).read_bytes())
        part = Part(**values | {"reading": _restored(Reading, values), "tally": _restored(Tally, values)})
        files = part.basenames if check_files else {}
        missing = next((name for name, size in files.items() if size not in _sizes(folder, place, name)), None)
        if part.slice != number:
            raise ValueError(f"it belongs to slice {part.slice}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise PartError(f"{place / PART} cannot be used ({error}): {_again(place)}") from None
    if missing is not None:
        raise PartError(f"{place / missing} is missing, or its size has changed: {_again(place)}")
    return part


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write the file atomically."""
    from data.mds.writer import write_text

    temporary = file.with_name(f"{file.name}.tmp")
    write_text(temporary, json.dumps(values))
    temporary.rename(file)


def _again(place: Path) -> str:
    return f"delete the folder {place} and start again, so that this slice is prepared again"


def _sizes(folder: Path, place: Path, name: str) -> set[int]:
    return {path.stat().st_size for path in (place / name, folder / name) if path.exists()}


def _restored(kind: Any, values: Mapping[str, Any]) -> Any:
    """An object of the class `kind` from plain JSON values."""
    saved = dict(values["reading" if kind is Reading else "tally"])
    for name, hint in get_type_hints(kind).items():
        if get_origin(hint) is Counter:
            saved[name] = Counter(saved[name])
    if "places" in saved:
        saved["places"] = {
            key: [Place(*place) if isinstance(place, list) else place for place in places]
            for key, places in saved["places"].items()
        }
    return kind(**saved)
