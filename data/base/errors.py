"""The two kinds of errors that a user can cause. Their messages contain the location of the error (a config key, or a
position in a file), the value and a fix, and are shown without a traceback."""

import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from data.secrets.redaction import redacted

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
    """The key in YAML syntax, such as `split`. If `value` is not None, the value follows the key:
    `tokenizer.chat_template_drops: [tools]`."""
    return key if value is None else f"{key}: {yaml_of(value)}"


def yaml_of(value: Any) -> str:
    """The value as YAML on one line."""
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False)
    return text.removesuffix("...\n").strip()


_written: ContextVar[Callable[[str, Any], str]] = ContextVar("written", default=in_yaml)


def setting(key: str, value: Any = None) -> str:
    """The text that error messages show for a key, or for a key with a suggested value. The format is YAML, unless
    `settings_written` sets another format."""
    return _written.get()(key, value)


@contextmanager
def settings_written(write: Callable[[str, Any], str]) -> Iterator[None]:
    """Within the block, `setting(key, value)` returns `write(key, value)`, also in forked processes."""
    token = _written.set(write)
    try:
        yield
    finally:
        _written.reset(token)


def settings_writer() -> Callable[[str, Any], str]:
    """The function that `settings_written` has set, for a process on another machine."""
    return _written.get()


class _Redacted(ValueError):
    """An error whose text contains no secrets, so that it can be shown, logged or sent."""

    def __str__(self) -> str:
        return redacted(super().__str__())


class ConfigError(_Redacted):
    """A configuration error: something in a YAML file or on a command line is invalid."""

    def __init__(self, text: str, *, key: str | None = None) -> None:
        """`key` is the invalid YAML key. `text` follows the key in the message: `is -1, but it must be above 0`."""
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
    """A data error: something in the data is invalid."""


class ReadError(DataError):
    """A file cannot be read at the moment, for example because a network is interrupted. Work that is already complete
    remains valid."""


class EngineError(DataError):
    """An engine, such as Spark, cannot be used, or it has ended before its work was complete. Completed work is
    kept."""


class WaitInterrupted(BaseException):
    """A signal arrived while the training process waited for a batch. The batch is no longer needed."""


class TemplateError(DataError):
    """The chat template is not compatible with the configuration. The error affects all rows, so dropping a row would
    not help."""


class RowError(DataError):
    """The content of a row cannot be tokenized. In messages, the text is appended to the location of the row."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        """The name under which the problem is counted."""

    def __reduce__(self) -> tuple[Any, ...]:
        return RowError, (self.kind, str(self))


@contextmanager
def under(key: str) -> Iterator[None]:
    """Prepend `key` to the key of any ConfigError raised in the block, so that a check does not have to include the
    name of its section in the key."""
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
    """Collects independent errors, so that all of them are reported together."""

    def __init__(self, *consequences: type[Exception]) -> None:
        """`consequences` are the types of errors that are raised only as a result of a problem that was collected
        earlier. In the block of `collect`, such an error is caught, but not reported."""
        self._consequences = consequences
        self._errors: list[ConfigError | DataError] = []

    def __bool__(self) -> bool:
        return bool(self._errors)

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Collect a ConfigError or DataError that is raised in the block."""
        try:
            yield
        except ConfigErrors as several:
            self._errors += several.errors
        except (ConfigError, DataError) as error:
            self._errors.append(error)
        except self._consequences:
            assert self._errors, "a consequence without a problem that causes it"

    def raise_if_any(self) -> None:
        """Raise the collected errors, as described in `raise_together`."""
        raise_together(self._errors)


def raise_together(errors: Sequence[ConfigError | DataError]) -> None:
    """If there is one error, raise it unchanged. If there are several, remove duplicates and raise them together as
    ConfigErrors."""
    errors = list({str(error): error for error in errors}.values())
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ConfigErrors([_within(error) for error in errors])


def _within(error: ConfigError | DataError) -> ConfigError:
    """The error as an item in a list of errors. All lines after the first are indented, to separate the items."""
    if isinstance(error, ConfigError) and "\n" not in str(error):
        return error
    return ConfigError(str(error).replace("\n", "\n  "))


def os_error(error: BaseException) -> OSError | None:
    """The OSError that caused a library's error; None if the error has another cause.

    torch's zip writer raises a RuntimeError (`unexpected pos`) while it handles the OSError. tokenizers and safetensors
    raise a plain Exception with Rust's message, such as `No space left on device (os error 28)`.
    """
    cause: BaseException | None = error
    while isinstance(cause, RuntimeError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, OSError):
        return cause
    number = _RUST.search(str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None


def is_full(error: OSError) -> bool:
    """Whether there is no space left, on the disk or in the user's quota."""
    return error.errno in _FULL


def reason(error: OSError) -> str:
    """Return only the operating system's message, such as `No such file or directory`."""
    return error.strerror or str(error)


def cannot_be(done: str, subject: object, error: OSError) -> str:
    """A message such as `SUBJECT cannot be read: No such file or directory`, in which `done` is the participle
    `read`."""
    missing = error.filename if isinstance(error, FileNotFoundError) else None
    return f"{subject} cannot be {done}: {reason(error)}{from_here(missing) if missing else ''}"


def from_here(path: str | Path) -> str:
    """A note for error messages that contains the folder in which a relative path is looked up; empty for an absolute
    path."""
    if Path(path).is_absolute() or str(path).startswith("~"):
        return ""
    try:
        return f" (relative to the working directory, {Path.cwd()})"
    except OSError:
        return " (relative to the working directory, which no longer exists)"


@contextmanager
def os_errors_named(
    subject: object,
    done: str = "read",
    *,
    hint: str | None = None,
    key: str | None = None,
    as_error: type[ConfigError | DataError] = ConfigError,
) -> Iterator[None]:
    """Convert an OSError raised in the block to a ConfigError or DataError whose text comes from `cannot_be`. A
    DataError about reading is a ReadError. For large writes, use plain_os_errors instead."""
    try:
        yield
    except OSError as error:
        text = cannot_be(done, subject, error) + (f": {hint}" if hint else "")
        if key is not None:
            raise ConfigError(text, key=key) from None
        raise (ReadError if (done, as_error) == ("read", DataError) else as_error)(text) from None


@contextmanager
def plain_os_errors(
    subject: str,
    hint: str,
    *,
    needed_for: str | None = None,
    again: str = "start again to resume",
) -> Iterator[None]:
    """Convert file system errors, including those wrapped in errors of libraries, to a single error whose message
    contains the subject and a fix."""
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
            raise DataError(f"{subject} has no space left{what}: free some space and {again}, or {hint}") from None
        if error.errno == errno.EFBIG:
            raise DataError(
                f"{subject} cannot store a file of this size{what}: raise the limit (`ulimit -f` shows the shell's "
                f"limit) and {again}, or {hint}"
            ) from None
        if error.errno in _NO_LOCKS:
            raise ConfigError(
                f"{subject} is on a file system without file locks, which prevent processes from overwriting "
                f"each other's files: {hint}"
            ) from None
        if error.errno in _NOT_WRITABLE:
            raise ConfigError(f"{subject} cannot be written{what} ({error}): {hint}") from None
        raise


def note_shown_elsewhere(error: BaseException) -> None:
    """Mark the error as already shown by another rank, so that this rank does not show it again."""
    error.shown_elsewhere = True  # pyright: ignore[reportAttributeAccessIssue]


def shown_elsewhere(error: BaseException) -> bool:
    """Whether the error or its cause was marked by note_shown_elsewhere."""
    return any(getattr(each, "shown_elsewhere", False) for each in (error, error.__cause__))
