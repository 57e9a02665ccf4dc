"""A path -> the log folder of the run that it means, or an error that says what is missing."""

from dataclasses import dataclass
from pathlib import Path

from data.base.errors import ConfigError, os_errors_named
from data.base.paths import refuse_path
from train.checkpoint.save_folder import RECORD

METRICS = "metrics.jsonl"
REPORT = "report.html"
_BELOW = "checkpoints"
"""The save folder in the run's folder, as the YAMLs of this repository name it."""


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """What a run has written."""

    folder: Path
    metrics: Path
    record: Path | None
    config: Path | None
    """The resolved config that a save folder holds."""


def find_run(path: Path) -> RunFiles:
    """`path` is the log folder, a run's folder whose `checkpoints` is meant, or one of the files.

    Raises ConfigError.
    """
    refuse_path("RUN", str(path))
    with os_errors_named(path):
        if not path.exists():
            raise ConfigError(f"{path} does not exist: name the save_folder or log_folder of a run")
        folder = path if path.is_dir() else path.parent
        if path.is_file() and path.name not in (METRICS, RECORD):
            raise ConfigError(f"{path} is not the log of a run: name its folder, or its {METRICS}")
        tried = [folder, folder / _BELOW] if path.is_dir() else [folder]
        for each in tried:
            if (each / METRICS).is_file():
                return RunFiles(
                    folder=each,
                    metrics=each / METRICS,
                    record=_existing(each / RECORD),
                    config=_existing(each / "config.yaml"),
                )
        runs = [] if path.is_file() else sorted(each.parent for each in folder.glob(f"*/**/{METRICS}"))
    found = f"; there are runs below it: {', '.join(map(str, runs[:3]))}" if runs else ""
    raise ConfigError(f"{path} has no {METRICS}, which a run writes with its first step{found}")


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None
