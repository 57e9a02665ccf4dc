"""The files in a folder and below it, behind links too, and which of them belong to a split."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from data.base.console import notice
from data.base.errors import ConfigError, setting
from data.base.problems import listed
from data.sources.formats.names import is_metadata, looks_like_data

SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""What files and folders of a split are called, as in the `datasets` library."""


def files_below(folder: Path) -> list[Path]:
    """Sorted, without hidden ones and metadata. Links are followed, but not into a folder that they lie in themselves.

    A link that leads nowhere is among them. Raises OSError for what cannot be looked at.
    """
    return [path for path in _walk(folder, frozenset()) if not is_metadata(path)]


def _walk(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(folder / entry.name, above | {here})
        elif is_file_or_broken_link(folder / entry.name):
            yield folder / entry.name


def is_file_or_broken_link(path: Path) -> bool:
    """Of what is not a folder: false for pipes and the like. A broken link is not skipped: each_once refuses it."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def of_split(files: list[Path], folder: Path, split: str) -> list[Path]:
    """Those whose name, or whose folder's below `folder`, has the split's word."""
    words = "|".join(re.escape(word) for word in SPLIT_WORDS.get(split, (split,)))
    word = re.compile(rf"(?:^|[-._ /0-9])(?:{words})(?:[-._ /0-9]|$)")
    return [path for path in files if word.search(path.relative_to(folder).as_posix())]


def each_once(files: list[Path]) -> list[Path]:
    """Without those that are an earlier one by another name, which are named in one line.

    Raises ConfigError for a link to a file that is not there.
    """
    by_place: dict[Path, Path] = {}
    again: list[str] = []
    for path in dict.fromkeys(files):
        if not path.exists():
            raise ConfigError(
                f"{str(path)!r} is a link to {str(path.readlink())!r}, which is not there: bring the file there, or "
                "remove the link"
            )
        first = by_place.setdefault(path.resolve(), path)
        if first is not path:
            again.append(f"{path} (is {first})")
    if again:
        count = "1 file has" if len(again) == 1 else f"{len(again):,} files have"
        notice(f"{count} another name that is read already, and is not read twice: {listed(again)}")
    return list(by_place.values())


def name_unread(key: str, folder: Path, files: list[Path], split: str | None, taken: list[Path]) -> None:
    """Names in one line what looks like data, is of this split or of none, and is not among the files taken."""
    left = set(files) - set(taken)
    if split is not None:
        own = set(of_split(files, folder, split))
        left -= {path for word in SPLIT_WORDS if word != split for path in of_split(files, folder, word)} - own
    unread = [str(path.relative_to(folder)) for path in files if path in left and looks_like_data(path)]
    in_split = f" and {setting('split')} {split!r}" if split is not None else ""
    say_unread(f"{setting(key)} is {str(folder)!r}{in_split}", unread)


def say_unread(where: str, unread: list[str]) -> None:
    """One line with the files that look like data and are not read, if there are any."""
    if unread:
        count = "1 file looks like data and is" if len(unread) == 1 else f"{len(unread):,} files look like data and are"
        notice(f"{where}, but {count} not read: {listed(unread)}")
