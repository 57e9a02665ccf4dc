"""The two errors a user can cause. Both name the place, the value and the way out; neither is shown as a traceback."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP)
_NOT_WRITABLE = (
    errno.EACCES,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
)


class ConfigError(ValueError):
    """What was written in a config or on a command line cannot be."""


class DataError(ValueError):
    """What was fed cannot be used."""


class TemplateError(DataError):
    """A chat template does not fit the configuration: no matter of one row, which could be dropped."""


class RowError(DataError):
    """What a row holds cannot be tokenized: the text stands after the row's place."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        """What it is counted under."""


@contextmanager
def under(key: str) -> Iterator[None]:
    """Puts the key before a ConfigError whose text begins with a key below it: who checks need not know who holds."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{key}.{error}") from None


@contextmanager
def said_plainly(subject: str, way_out: str, *, needed_for: str | None = None) -> Iterator[None]:
    """Makes one clear error of what a file system refuses, which begins with the subject and ends with the way out."""
    try:
        yield
    except OSError as error:
        what = f" for {needed_for}" if needed_for else ""
        if error.errno in _FULL:
            raise DataError(
                f"{subject} has no space left{what}: free some and start again, which goes on from there, or {way_out}"
            ) from None
        if error.errno in _NO_LOCKS:
            raise ConfigError(
                f"{subject} is on a file system that has no locks, without which processes would write over one "
                f"another: {way_out}"
            ) from None
        if error.errno in _NOT_WRITABLE:
            raise ConfigError(f"{subject} cannot be written{what} ({error}): {way_out}") from None
        raise
