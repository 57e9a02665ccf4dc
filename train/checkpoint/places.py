"""Which folder a path means: that of a whole run, such as runs/x for runs/x/checkpoints, is accepted as well."""

from collections.abc import Callable
from pathlib import Path

from data.base.errors import ConfigError, cannot_be
from train.checkpoint.save_folder import RUN, checkpoints, damaged, leftovers


def resolve_save_folder(path: Path) -> Path:
    """The save folder that a path means; any other path, such as that of a checkpoint, as it is.

    Raises ConfigError as resolve_folder.
    """
    return resolve_folder(path, is_save_folder)


def resolve_folder(path: Path, is_meant: Callable[[Path], bool]) -> Path:
    """The path where it is meant itself, else the one folder in it that is meant, else the path as it is.

    Raises ConfigError that names the folders when several in it are meant, or when the path cannot be read.
    """
    try:
        if is_meant(path) or not path.is_dir():
            return path
        below = sorted(each for each in path.iterdir() if not each.is_symlink() and each.is_dir() and is_meant(each))
    except OSError as error:
        raise ConfigError(cannot_be("read", error.filename or path, error)) from None
    if len(below) > 1:
        raise ConfigError(f"{path} holds {', '.join(map(str, below[:-1]))} and {below[-1]}: name one of them")
    return below[0] if below else path


def is_save_folder(path: Path) -> bool:
    """Whether a run has written checkpoints there, or begun to. A record and metrics may be in another log_folder."""
    return (path / RUN).is_file() or any(find(path) for find in (checkpoints, damaged, leftovers))
