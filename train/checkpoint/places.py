"""Resolve the path of a save folder: the folder of a run, such as runs/x, is resolved to runs/x/checkpoints."""

from collections.abc import Callable
from pathlib import Path

from data.base.errors import ConfigError, cannot_be
from train.checkpoint.save_folder import RUN, checkpoints, damaged, leftovers


def resolve_save_folder(path: Path) -> Path:
    """Return the save folder that a path refers to. A path that does not refer to a save folder, such as that of a
    checkpoint, is returned unchanged.

    Raises the same errors as `resolve_folder`.
    """
    return resolve_folder(path, is_save_folder)


def resolve_folder(path: Path, is_meant: Callable[[Path], bool]) -> Path:
    """Return the only subfolder that `is_meant` accepts, or the path unchanged if `is_meant` accepts the path itself or
    no subfolder.

    Raises ConfigError if `is_meant` accepts several subfolders, or if the path cannot be read.
    """
    try:
        if is_meant(path) or not path.is_dir():
            return path
        below = sorted(each for each in path.iterdir() if not each.is_symlink() and each.is_dir() and is_meant(each))
    except OSError as error:
        raise ConfigError(cannot_be("read", error.filename or path, error)) from None
    if len(below) > 1:
        raise ConfigError(f"{path} contains {', '.join(map(str, below[:-1]))} and {below[-1]}: specify one of them")
    return below[0] if below else path


def is_save_folder(path: Path) -> bool:
    """Whether a run has written, or started to write, checkpoints to the folder. The logs of the run may be in a
    different folder."""
    return (path / RUN).is_file() or any(find(path) for find in (checkpoints, damaged, leftovers))
