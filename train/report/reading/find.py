"""Find the log folder of a run from a path, or raise an error that contains the name of the missing file."""

from dataclasses import dataclass
from pathlib import Path

from data.base.errors import ConfigError, os_errors_named
from data.base.paths import refuse_path
from train.checkpoint.places import resolve_folder
from train.checkpoint.save_folder import METRICS, RECORD


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """The files that a run has written."""

    folder: Path
    metrics: Path
    record: Path | None
    config: Path | None
    """The resolved config, if the folder is a save folder."""


def find_run(path: Path) -> RunFiles:
    """Return the files of a run. path: the log folder of the run, a parent folder of the log folder, or a file in the
    log folder. Raises ConfigError if no run, or more than one, is found."""
    refuse_path("RUN", str(path))
    with os_errors_named(path):
        if not path.exists():
            raise ConfigError(f"{path} does not exist: specify the save_folder or log_folder of a run")
        if not path.is_dir() and path.name not in (METRICS, RECORD):
            raise ConfigError(f"{path} is not the log of a run: specify the log folder of a run, or its {METRICS}")
        folder = resolve_folder(path, _has_metrics) if path.is_dir() else path.parent
        if not _has_metrics(folder):
            runs = sorted(each.parent for each in path.glob(f"*/*/{METRICS}")) if path.is_dir() else []
            found = f"; it contains the runs {', '.join(map(str, runs[:3]))}" if runs else ""
            raise ConfigError(f"{path} has no {METRICS}, which a run creates at its first step{found}")
        return RunFiles(
            folder=folder,
            metrics=folder / METRICS,
            record=_existing(folder / RECORD),
            config=_existing(folder / "config.yaml"),
        )


def _has_metrics(folder: Path) -> bool:
    return (folder / METRICS).is_file()


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None
