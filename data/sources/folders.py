"""Find the files in a folder and its subfolders, and the files of each split. Links are followed.

Folders written by `save_to_disk` of the `datasets` library contain Arrow streams, and JSON files that list the streams.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, TypeVar

from data.base.console import notice
from data.base.errors import ConfigError, DataError, setting
from data.base.problems import listed
from data.sources.formats.names import (
    TEXT_SUFFIXES,
    either,
    is_metadata,
    looks_like_data,
    named_format,
    suffix_of,
)
from data.sources.remote.remote_file import InputPath, RemoteFile

Name = TypeVar("Name", bound=PurePath)

_STATE, _INFO, _DICT = "state.json", "dataset_info.json", "dataset_dict.json"
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Maps each split to the words in the names of its files and folders, as in the `datasets` library."""


def files_below(folder: Path) -> list[Path]:
    """The files below a folder, sorted, without hidden files and metadata. Links are followed, unless a link leads to a
    folder that contains the link.

    Broken links are included. Raises OSError for a folder that cannot be read.
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
    """Whether a path that is not a folder is a file or a broken link. False for pipes and devices. Broken links are
    included so that `without_duplicates` can report them."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def names_of_split(key: str, folder: str, names: list[Name], split: str, suffixes: tuple[str, ...]) -> list[Name]:
    """The files that have the split's name in their file or folder name; all files if no file has the name of any
    split. `names` are the files in the folder, relative to it."""
    every = [name for name in names if suffix_of(name) in suffixes and named_format(name) is not None]
    if not every:
        others = [str(name) for name in names if looks_like_data(name)]
        there = f" (it contains {listed(others)})" if others else ""
        if any(suffix_of(other) in TEXT_SUFFIXES for other in others):
            there += f": specify text files in {setting('text', folder)}"
        raise ConfigError(f"is {folder!r}, but it contains no {either(suffixes)} file{there}", key=key)
    taken = _of_this_split(folder, split, every)
    notice_unread_in(key, folder, names, split, taken)
    return taken


def _of_this_split(folder: str, split: str, every: list[Name]) -> list[Name]:
    splits = {name: _with_word(every, name) for name in dict.fromkeys((split, *SPLIT_WORDS))}
    if splits[split]:
        return splits[split]
    there = [name for name, files in splits.items() if files]
    if split == "train" and not there:
        return every
    hint = f"set {setting('split')} to {' or '.join(there)}" if there else f"add the word {split} to a file name"
    names = listed([name.name for name in every], 5)
    raise ConfigError(
        f"is {split!r}, but no file in {folder!r} has this name (found {names}): {hint}, or specify the files "
        f"in {setting('hf_kwargs.data_files')}",
        key="split",
    )


def _with_word(names: list[Name], split: str) -> list[Name]:
    """The files that have a word for the split in their name, or in the name of one of their folders."""
    words = "|".join(re.escape(word) for word in SPLIT_WORDS.get(split, (split,)))
    word = re.compile(rf"(?:^|[-._ /0-9])(?:{words})(?:[-._ /0-9]|$)")
    return [name for name in names if word.search(name.as_posix())]


def without_duplicates(files: list[InputPath]) -> list[InputPath]:
    """The paths, except those that lead to the same file as an earlier path in the list. One message lists the removed
    paths.

    Raises ConfigError for a link to a missing file.
    """
    by_place: dict[InputPath, InputPath] = {}
    again: list[str] = []
    for path in dict.fromkeys(files):
        if isinstance(path, RemoteFile):
            by_place[path] = path
            continue
        if not path.exists():
            raise ConfigError(
                f"{str(path)!r} is a link to {str(path.readlink())!r}, which does not exist: restore the file, or "
                "remove the link"
            )
        first = by_place.setdefault(path.resolve(), path)
        if first is not path:
            again.append(f"{path} (same as {first})")
    if again:
        count = "1 path to a file that is" if len(again) == 1 else f"{len(again):,} paths to files that are"
        notice(f"skipped {count} already included: {listed(again)}")
    return list(by_place.values())


def notice_unread_in(key: str, folder: str, names: list[Name], split: str | None, taken: list[Name]) -> None:
    """Log one message that lists the files that look like data, do not belong to another split, and are not among
    `taken`. `names` are the files in the folder, relative to it."""
    left = set(names) - set(taken)
    if split is not None:
        own = set(_with_word(names, split))
        left -= {name for word in SPLIT_WORDS if word != split for name in _with_word(names, word)} - own
    unread = [str(name) for name in names if name in left and looks_like_data(name)]
    in_split = f" and {setting('split')} {split!r}" if split is not None else ""
    notice_unread(f"{setting(key)} is {folder!r}{in_split}", unread)


def notice_unread(where: str, unread: list[str]) -> None:
    """Log one message that lists files that look like data but are not read, if there are any."""
    if unread:
        count = "1 file looks like data and is" if len(unread) == 1 else f"{len(unread):,} files look like data and are"
        notice(f"{where}, but {count} not read: {listed(unread)}")


def is_saved(folder: Path) -> bool:
    """Whether the folder was written by Dataset.save_to_disk or DatasetDict.save_to_disk."""
    return (folder / _DICT).is_file() or _is_dataset(folder)


def refuse_saved_below(key: str, folder: Path, files: list[Path]) -> None:
    """Raises ConfigError if a file belongs to a folder written by save_to_disk, because the config must specify that
    folder itself."""
    for path in files:
        if path.name == _STATE and _is_dataset(path.parent):
            where = path.parent.parent if (path.parent.parent / _DICT).is_file() else path.parent
            raise ConfigError(
                f"is {str(folder)!r}, but {str(where)!r} was written by save_to_disk of the `datasets` library: "
                f"specify that folder instead ({setting('hf_name', str(where))})",
                key=key,
            )


def saved_files(key: str, folder: Path, split: str) -> list[Path]:
    """The Arrow files of the split, in order.

    The list may be empty. If the folder contains a single dataset, its split is `train`, or the name in its state file.
    Raises ConfigError for a split that does not exist, and DataError if the folder is incomplete, or if an index file
    in it selects which rows to use.
    """
    if not _is_dataset(folder):
        splits = _read_object(folder / _DICT).get("splits")
        splits = [name for name in splits if isinstance(name, str)] if isinstance(splits, list) else []
        if split not in splits:
            raise ConfigError(
                f"is {split!r}, but the splits saved in {str(folder)!r} are {listed(splits)}", key="split"
            )
        folder = folder / PurePath(split).name
        if not _is_dataset(folder):
            raise DataError(f"{folder} must contain {_STATE} and {_INFO}: copy or save the dataset again")
        return _saved_files(folder, _read_object(folder / _STATE))
    state = _read_object(folder / _STATE)
    own = state.get("_split") if isinstance(state.get("_split"), str) else None
    if split not in ("train", own):
        raise ConfigError(
            f"is {split!r}, but {setting(key)} is {str(folder)!r}, where save_to_disk wrote only the split "
            f"{own or 'train'}: remove {setting('split')}",
            key="split",
        )
    return _saved_files(folder, state)


def _is_dataset(folder: Path) -> bool:
    return (folder / _STATE).is_file() and (folder / _INFO).is_file()


def _saved_files(folder: Path, state: dict[str, Any]) -> list[Path]:
    if any(value for key, value in state.items() if key.startswith("_indices")):
        raise DataError(
            f"{folder}: its rows are selected by an index file (from select, shuffle or filter), as written by older "
            "versions of `datasets`: save the dataset again with "
            "load_from_disk(...).flatten_indices().save_to_disk(...)"
        )
    files = state.get("_data_files")
    items = files if isinstance(files, list) else []
    names = [str(item.get("filename")) if isinstance(item, dict) else "" for item in items]
    # No file name may point outside the folder.
    if not names or any(PurePath(name).name != name for name in names):
        raise DataError(f"{folder / _STATE} does not list its data files in `_data_files`: save the dataset again")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder}: files listed in {_STATE} are missing ({listed(missing)}): copy the folder again")
    return [folder / name for name in names]


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): copy or save the dataset again") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} does not contain a JSON object: copy or save the dataset again")
    return value
