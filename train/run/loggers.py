"""From config to loggers: one TensorBoard writer and one wandb run, both of rank 0, and a log file for each rank."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from composer.core import State
from composer.loggers import FileLogger, Logger, LoggerDestination, TensorboardLogger, WandBLogger
from composer.utils import dist

from data.base.errors import ConfigError, cannot_be
from data.base.paths import fill_placeholders, refuse_path
from data.base.redaction import redacted, without_secrets
from train.config.callbacks import LoggersConfig


class Tensorboard(TensorboardLogger):
    """Composer's, for rank 0 alone, with one event file for a start of the run, in LOG_DIR/RUN_NAME.

    Composer 0.32.1's makes a writer on every rank, and on each, at every evaluation, one more for a run inside the
    run: it calls add_hparams(run_name=...), for which torch opens the folder RUN_NAME/RUN_NAME. It also closes its
    file at every flush, to upload it, and begins another.
    """

    def eval_end(self, state: State, logger: Logger) -> None:
        self._flush(logger)

    def _flush(self, logger: Logger) -> None:
        if self.writer is not None:
            self.writer.flush()

    def close(self, state: State, logger: Logger) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None


class LogFile(FileLogger):
    """Composer's, which also copies stdout and stderr: until the file system refuses a line, which is raised once.
    Secrets are hidden."""

    def write(self, prefix: str, s: str) -> None:
        with self._closed_when_refused():
            super().write(prefix, redacted(s))

    def _flush_file(self, logger: Logger) -> None:
        with self._closed_when_refused():
            super()._flush_file(logger)

    @contextmanager
    def _closed_when_refused(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            # Else the message about it could not be printed: the copy of stderr would be refused as well.
            self._closed = True
            file, self.file = self.file, None
            with suppress(OSError):
                if file is not None:
                    file.close()
            raise


_FILE = "loggers.file.filename"


def build_loggers(config: LoggersConfig, run_name: str) -> list[LoggerDestination]:
    loggers: list[LoggerDestination] = []
    if config.file is not None:
        loggers.append(LogFile(_log_file(config.file.filename, run_name), log_traces=False))
    if config.tensorboard is not None and dist.get_global_rank() == 0:
        loggers.append(Tensorboard(log_dir=config.tensorboard.log_dir))
    if config.wandb is not None:
        wandb = config.wandb
        _check_wandb()
        loggers.append(
            WandBLogger(
                project=_sent(wandb.project),
                entity=_sent(wandb.entity),
                group=_sent(wandb.group),
                name=_sent(wandb.name or run_name),
                tags=[without_secrets(tag).text for tag in wandb.tags] or None,
            )
        )
    return loggers


def _sent(value: str | None) -> str | None:
    """As a run that is started with the saved config sends it."""
    return None if value is None else without_secrets(value).text


def _check_wandb() -> None:
    import wandb

    if os.environ.get("WANDB_MODE") not in ("offline", "disabled", "dryrun") and wandb.api.api_key is None:
        raise ConfigError(
            "is given, but wandb has no API key: run `wandb login`, set WANDB_API_KEY, or set "
            "WANDB_MODE=offline to keep the log here",
            key="loggers.wandb",
        )


def _log_file(filename: str, run_name: str) -> str:
    """This rank's file: run_name and rank are filled in, and each start of the run has its own: a resume erases no log.

    Nothing is left for Composer to fill in. Raises ConfigError when the file cannot be written.
    """
    rank = dist.get_global_rank()
    filled = fill_placeholders(filename, {"run_name": run_name, "rank": rank})
    path = Path(filled if "{rank}" in filename else f"{filled}-rank{rank}")
    refuse_path(_FILE, str(path))
    attempt, file = 1, path
    try:
        while file.exists():
            attempt += 1
            file = path.with_stem(f"{path.stem}-{attempt}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        file.unlink()
    except OSError as error:
        raise ConfigError(f"is {filename!r}, but {cannot_be('written', 'it', error)}", key=_FILE) from None
    return str(file)
