"""Folders written by `save_to_disk` of the `datasets` library. They contain Arrow streams, and JSON files that list the
streams."""

import json
from pathlib import Path, PurePath
from typing import Any

from data.base.errors import ConfigError, DataError, setting
from data.base.problems import listed

_STATE, _INFO, _DICT = "state.json", "dataset_info.json", "dataset_dict.json"


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
        splits = _read(folder / _DICT).get("splits")
        splits = [name for name in splits if isinstance(name, str)] if isinstance(splits, list) else []
        if split not in splits:
            raise ConfigError(
                f"is {split!r}, but the splits saved in {str(folder)!r} are {listed(splits)}", key="split"
            )
        folder = folder / PurePath(split).name
        if not _is_dataset(folder):
            raise DataError(f"{folder} must contain {_STATE} and {_INFO}: copy or save the dataset again")
        return _files(folder, _read(folder / _STATE))
    state = _read(folder / _STATE)
    own = state.get("_split") if isinstance(state.get("_split"), str) else None
    if split not in ("train", own):
        raise ConfigError(
            f"is {split!r}, but {setting(key)} is {str(folder)!r}, where save_to_disk wrote only the split "
            f"{own or 'train'}: remove {setting('split')}",
            key="split",
        )
    return _files(folder, state)


def _is_dataset(folder: Path) -> bool:
    return (folder / _STATE).is_file() and (folder / _INFO).is_file()


def _files(folder: Path, state: dict[str, Any]) -> list[Path]:
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


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): copy or save the dataset again") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} does not contain a JSON object: copy or save the dataset again")
    return value
