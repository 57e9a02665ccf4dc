"""The two errors a user can cause. Both name the place, the value and a fix; neither is shown as a traceback."""

import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from data.base.redaction import redacted

_FULL = (errno.ENOSPC, errno.EDQUOT)
_RUST = re.compile(r"\(os error (\d+)\)")
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


def in_yaml(key: str, value: Any = None) -> str:
    """The key, or the key with a value that is suggested for it: `split`, `tokenizer.chat_template_drops: [tools]`."""
    return key if value is None else f"{key}: {yaml_of(value)}"


def yaml_of(value: Any) -> str:
    """On one line."""
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False)
    return text.removesuffix("...\n").strip()


_written: ContextVar[Callable[[str, Any], str]] = ContextVar("written", default=in_yaml)


def setting(key: str, value: Any = None) -> str:
    """A key, or a key with a value that is suggested for it, in an error's text: as the user writes them.

    That is YAML, unless `settings_written` says otherwise.
    """
    return _written.get()(key, value)


@contextmanager
def settings_written(write: Callable[[str, Any], str]) -> Iterator[None]:
    """`setting(key, value)` is `write(key, value)` meanwhile, also in processes that are forked."""
    token = _written.set(write)
    try:
        yield
    finally:
        _written.reset(token)


class _Redacted(ValueError):
    """Its text is without secrets, wherever it is shown, logged or sent to."""

    def __str__(self) -> str:
        return redacted(super().__str__())


class ConfigError(_Redacted):
    """A configuration error: what a YAML or a command line says is invalid."""

    def __init__(self, text: str, *, key: str | None = None) -> None:
        """`key` is the YAML key that is wrong, and `text` what follows it: `is -1, but it must be above 0`."""
        super().__init__(text if key is None else f"{setting(key)} {text}")
        self.key = key
        self.text = text


class ConfigErrors(ConfigError):
    """Several configuration errors, reported together."""

    def __init__(self, errors: Sequence[ConfigError]) -> None:
        super().__init__("\n  ".join([f"{len(errors)} problems", *map(str, errors)]))
        self.errors = tuple(errors)

    def __reduce__(self) -> tuple[Any, ...]:
        return ConfigErrors, (self.errors,)


class DataError(_Redacted):
    """A data error: what is in the data cannot be used."""


class WaitInterrupted(BaseException):
    """A signal came while the training process waited for a batch, which will not be needed any more."""


class TemplateError(DataError):
    """A chat template does not fit the configuration: no matter of one row, which could be dropped."""


class RowError(DataError):
    """What a row holds cannot be tokenized: the text stands after the row's place."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        """What it is counted under."""

    def __reduce__(self) -> tuple[Any, ...]:
        return RowError, (self.kind, str(self))


@contextmanager
def under(key: str) -> Iterator[None]:
    """Puts the key before a ConfigError whose text begins with a key below it: who checks need not know who holds."""
    try:
        yield
    except ConfigErrors as several:
        raise ConfigErrors([_below(key, error) for error in several.errors]) from None
    except ConfigError as error:
        raise _below(key, error) from None


def _below(key: str, error: ConfigError) -> ConfigError:
    if error.key is not None:
        return ConfigError(error.text, key=f"{key}.{error.key}")
    return ConfigError(f"{key}.{error}")


class Problems:
    """Errors that do not follow from one another, collected so that all of them are reported together."""

    def __init__(self, *consequences: type[Exception]) -> None:
        """`consequences` end a block as errors do, but are not reported: they follow from another problem."""
        self._consequences = consequences
        self._errors: list[ConfigError | DataError] = []

    def __bool__(self) -> bool:
        return bool(self._errors)

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Keeps the block's ConfigError or DataError for the report."""
        try:
            yield
        except ConfigErrors as several:
            self._errors += several.errors
        except (ConfigError, DataError) as error:
            self._errors.append(error)
        except self._consequences:
            assert self._errors, "nothing that it follows from"

    def raise_if_any(self) -> None:
        """As raise_together."""
        raise_together(self._errors)


def raise_together(errors: Sequence[ConfigError | DataError]) -> None:
    """Raises a single error as it is, and several as ConfigErrors; what was found twice, once."""
    errors = list({str(error): error for error in errors}.values())
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ConfigErrors([_within(error) for error in errors])


def _within(error: ConfigError | DataError) -> ConfigError:
    """As one of several, which are told apart by how far their lines are indented."""
    if isinstance(error, ConfigError) and "\n" not in str(error):
        return error
    return ConfigError(str(error).replace("\n", "\n  "))


def os_error(error: BaseException) -> OSError | None:
    """What a file system refused, behind an error of a library; None when it is about something else.

    torch's zip writer raises a RuntimeError (`unexpected pos`) while it handles the OSError; tokenizers and safetensors
    raise a plain Exception with Rust's words, such as `No space left on device (os error 28)`.
    """
    cause: BaseException | None = error
    while isinstance(cause, RuntimeError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, OSError):
        return cause
    number = _RUST.search(str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None


def is_full(error: OSError) -> bool:
    """Whether no space was left, on the disk or in the user's quota."""
    return error.errno in _FULL


def reason(error: OSError) -> str:
    """The system's words alone, such as `No such file or directory`."""
    return error.strerror or str(error)


def cannot_be(done: str, subject: object, error: OSError) -> str:
    """`SUBJECT cannot be read: No such file or directory`; `done` is read or written."""
    missing = error.filename if isinstance(error, FileNotFoundError) else None
    return f"{subject} cannot be {done}: {reason(error)}{from_here(missing) if missing else ''}"


def from_here(path: str | Path) -> str:
    """What a relative path is relative to, to stand after it in an error; empty for an absolute one."""
    if Path(path).is_absolute() or str(path).startswith("~"):
        return ""
    try:
        return f" (relative to the working directory, {Path.cwd()})"
    except OSError:
        return " (relative to the working directory, which is gone)"


@contextmanager
def os_errors_named(
    subject: object,
    done: str = "read",
    *,
    hint: str | None = None,
    key: str | None = None,
    as_error: type[ConfigError | DataError] = ConfigError,
) -> Iterator[None]:
    """Makes an error of ours of every OSError, in the words of `cannot_be`; of writing much, see plain_os_errors."""
    try:
        yield
    except OSError as error:
        text = cannot_be(done, subject, error) + (f": {hint}" if hint else "")
        raise (ConfigError(text, key=key) if key is not None else as_error(text)) from None


@contextmanager
def plain_os_errors(
    subject: str,
    hint: str,
    *,
    needed_for: str | None = None,
    again: str = "start again, which goes on from there",
) -> Iterator[None]:
    """Makes one clear error of what a file system refuses, which begins with the subject and ends with a fix."""
    try:
        yield
    except (ConfigError, DataError):
        raise
    except Exception as raised:
        error = os_error(raised)
        what = f" for {needed_for}" if needed_for else ""
        if error is None:
            raise
        if is_full(error):
            raise DataError(f"{subject} has no space left{what}: free some and {again}, or {hint}") from None
        if error.errno == errno.EFBIG:
            raise DataError(
                f"{subject} cannot take so large a file{what}: raise the limit (`ulimit -f` shows that of the shell) "
                f"and {again}, or {hint}"
            ) from None
        if error.errno in _NO_LOCKS:
            raise ConfigError(
                f"{subject} is on a file system that has no locks, without which processes would write over one "
                f"another: {hint}"
            ) from None
        if error.errno in _NOT_WRITABLE:
            raise ConfigError(f"{subject} cannot be written{what} ({error}): {hint}") from None
        raise


def note_shown_elsewhere(error: BaseException) -> None:
    """Another rank shows the error to the user, so that this one need not."""
    error.shown_elsewhere = True  # pyright: ignore[reportAttributeAccessIssue]


def shown_elsewhere(error: BaseException) -> bool:
    """Whether that was noted of the error, or of the one that it was raised from."""
    return any(getattr(each, "shown_elsewhere", False) for each in (error, error.__cause__))
