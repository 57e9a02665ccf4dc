"""Find the checkpoint or the save folder at a path. If there is none, report what the path is."""

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
    """The checkpoints that were found at a path."""

    folder: Path
    """The save folder, or the folder that contains the checkpoint."""
    checkpoints: list[Path]
    """The checkpoints, oldest first. In a save folder, checkpoints whose manifest is missing are included."""
    leftovers: list[Path]
    """Partial files of killed runs in the save folder."""


@contextmanager
def read_errors_named(path: Path) -> Iterator[None]:
    """Convert an OSError to a ConfigError. The message contains the file of the OSError or, if the OSError has no file,
    `path`."""
    try:
        yield
    except OSError as error:
        raise ConfigError(cannot_be("read", error.filename or path, error)) from None


def find_checkpoints(path: Path) -> Found:
    """Return the checkpoints of the save folder at `path`, or the single checkpoint at `path` (or at its target, if it
    is a link). Raises ConfigError if there is no checkpoint."""
    with read_errors_named(path):
        if _is_checkpoint(path):
            real = path.resolve()
            return Found(folder=real.parent, checkpoints=[real], leftovers=[])
        found = find_save_folder(path)
    path = found.folder
    if not found.checkpoints:
        raise ConfigError(f"{path} contains no committed checkpoint, only {_some(found.leftovers)}")
    return found


def find_save_folder(path: Path) -> Found:
    """Find the save folder at `path`. It may contain only partial files of killed runs. Raises ConfigError if the path
    is neither a save folder nor a folder that contains exactly one save folder."""
    path = resolve_save_folder(path)
    with read_errors_named(path):
        if path.is_dir() and not _is_checkpoint(path):
            there = sorted([*checkpoints(path), *damaged(path)], key=batch_of)
            found = Found(folder=path, checkpoints=there, leftovers=leftovers(path))
            if found.checkpoints or found.leftovers:
                return found
        if not path.exists():
            missing = f"does not exist{from_here(path)}"
            there = f"is a link to {path.readlink()}, which does not exist" if path.is_symlink() else missing
            raise ConfigError(f"{path} {there}")
        raise ConfigError(f"{path} is not a folder with checkpoints (such as ep0-ba100), but {_describe(path)}")


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint at the path, or the newest checkpoint if the path is a save folder. Raises the same errors
    as `find_checkpoints`."""
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
        return "a checkpoint: specify the folder that contains this checkpoint"
    exported = [name for name in ("config.json", "adapter_config.json") if (path / name).is_file()]
    if exported:
        return f"an exported folder (it contains {exported[0]}): specify the save folder of its run"
    entries = sorted(path.iterdir())
    if not entries:
        return "an empty folder"
    return f"a folder that contains {_some(entries)}"
