"""The log file of each rank, a copy of its console output."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from composer.loggers import FileLogger, Logger
from composer.utils import dist

from data.base.errors import ConfigError, cannot_be
from data.base.paths import fill_placeholders, refuse_path
from data.secrets.redaction import redacted

_FILE = "loggers.file.filename"


class LogFile(FileLogger):
    """Composer's FileLogger, which also copies stdout and stderr to its file. Secrets are hidden. If a line cannot be
    written, the error is raised once and the file is closed."""

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
            # Close the file before the error is printed. Otherwise the copy of stderr to this file would fail again.
            self._closed = True
            file, self.file = self.file, None
            with suppress(OSError):
                if file is not None:
                    file.close()
            raise


def log_file(filename: str, run_name: str) -> str:
    """Return the name of this rank's log file, with run_name and rank filled in. Each start of the run has its own
    file, so that resuming does not overwrite an earlier log.

    The result has no placeholders for Composer to fill in. Raises ConfigError if the file cannot be written.
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
