"""A path -> the checkpoint that it means, or those of the save folder; or an error that says what it is instead."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data.base.errors import ConfigError, cannot_be, from_here
from train.checkpoint.places import resolve_save_folder
from train.checkpoint.save_folder import PART, batch_of, checkpoints, damaged, is_complete, leftovers
from train.checkpoint.storage.manifest import METADATA, STATE


@dataclass(frozen=True, kw_only=True)
class Found:
    """Checkpoints at a path."""

    folder: Path
    """The save folder, or the folder that the one checkpoint is in."""
    checkpoints: list[Path]
    """Oldest first. One of a save folder without a manifest that ought to have one is in it as well."""
    leftovers: list[Path]
    """What killed runs have left in the save folder."""


@contextmanager
def read_errors_named(path: Path) -> Iterator[None]:
    """Makes a ConfigError of every OSError, which names the file that the system names, or the path."""
    try:
        yield
    except OSError as error:
        raise ConfigError(cannot_be("read", error.filename or path, error)) from None


def find_checkpoints(path: Path) -> Found:
    """Those of a save folder, or the one that the path is, or links to. Raises ConfigError when there is none."""
    with read_errors_named(path):
        if _is_checkpoint(path):
            real = path.resolve()
            return Found(folder=real.parent, checkpoints=[real], leftovers=[])
        found = find_save_folder(path)
    path = found.folder
    if not found.checkpoints:
        raise ConfigError(f"{path} holds no checkpoint, only {_some(found.leftovers)}: not committed")
    return found


def find_save_folder(path: Path) -> Found:
    """It may hold nothing but leftovers. Raises ConfigError for what is no save folder, nor holds one alone."""
    path = resolve_save_folder(path)
    with read_errors_named(path):
        if path.is_dir() and not _is_checkpoint(path):
            there = sorted([*checkpoints(path), *damaged(path)], key=batch_of)
            found = Found(folder=path, checkpoints=there, leftovers=leftovers(path))
            if found.checkpoints or found.leftovers:
                return found
        if not path.exists():
            missing = f"does not exist{from_here(path)}"
            there = f"is a link to {path.readlink()}, which is not there" if path.is_symlink() else missing
            raise ConfigError(f"{path} {there}")
        raise ConfigError(f"{path} is not a folder with checkpoints (such as ep0-ba100), but {_describe(path)}")


def find_checkpoint(path: Path) -> Path:
    """The one that the path is, or the newest of a save folder. Raises ConfigError as find_checkpoints."""
    return find_checkpoints(path).checkpoints[-1]


def _is_checkpoint(path: Path) -> bool:
    if path.name.startswith(PART):
        return False
    if not path.is_dir():
        return path.suffix == ".pt" and is_complete(path)
    return is_complete(path) or ((path / STATE).exists() and (path / METADATA).exists())


def _some(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def _describe(path: Path) -> str:
    if not path.is_dir():
        return "a file"
    if _is_checkpoint(path):
        return "a checkpoint itself: name the folder that it is in"
    exported = [name for name in ("config.json", "adapter_config.json") if (path / name).is_file()]
    if exported:
        return f"an exported folder ({exported[0]} is in it): name the save folder of the run that it came from"
    entries = sorted(path.iterdir())
    if not entries:
        return "an empty folder"
    return f"a folder that holds {_some(entries)}"
