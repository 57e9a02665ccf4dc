"""The folder of a run's logs: metrics.jsonl, record.jsonl and report.html.

The key log_folder sets the folder. By default, it is the save folder, so that logs are stored with the checkpoints. If
the run has no save folder, the default is runs/RUN_NAME.
"""

from pathlib import Path

from data.base.console import logger
from data.base.errors import ConfigError, os_errors_named, plain_os_errors
from train.checkpoint.save_folder import LOGS, check_writable, fill_in, local_folder
from train.config.schema import TrainConfig

DEFAULT = "runs/{run_name}"
"""The log folder of a run without a save_folder."""


def log_folder_of(config: TrainConfig, run_name: str, *, check: bool) -> Path | None:
    """Return the log folder on this machine, without creating it.

    check: whether to check that the folder is writable, which is needed only on the rank that writes to the folder. If
    the check fails and log_folder is set, ConfigError is raised. If the check fails and log_folder is not set, a
    warning is logged and None is returned.
    """
    if config.log_folder is None and config.save_folder is not None:
        return local_folder(config, run_name)  # check_save_folder checks that the save folder is writable
    folder = fill_in(config.log_folder or DEFAULT, run_name, "log_folder", "")
    try:
        if check:
            check_writable(folder, "log_folder")
    except ConfigError as error:
        if config.log_folder is not None:
            raise
        logger.warning(f"{error}. The run continues without metrics.jsonl, record.jsonl and report.html")
        return None
    return folder


def begin_log(folder: Path, save_folder: Path | None, *, resuming: bool) -> None:
    """Create the folder. If it contains logs of an earlier run, and this run does not resume that run, these logs get
    the suffix .old. Must be called on one rank only, after furnish_save_folder."""
    with plain_os_errors(f"log_folder {folder}", "specify another log_folder", again="start again"):
        folder.mkdir(parents=True, exist_ok=True)
        if resuming or folder == save_folder:
            return
        for name in LOGS:
            if (folder / name).exists():
                with os_errors_named(folder / name, "written"):
                    (folder / name).replace(folder / f"{name}.old")
