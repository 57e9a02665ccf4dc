"""Determine why access to a remote file failed, whichever library raised the error, and whether to retry."""

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from data.base.errors import is_full

WAITS = (1, 4)
"""Seconds between retries. The clients of the stores have their own retries in addition."""

T = TypeVar("T")


class FetchError(Exception):
    """A file could not be fetched. The text describes the cause."""

    def __init__(self, cause: str, *, absent: bool = False, denied: bool = False) -> None:
        super().__init__(cause)
        self.absent, self.denied = absent, denied
        """Whether the remote has reported that the file does not exist (`absent`), or that access to the file is denied
        (`denied`)."""


def fetch_error(error: Exception) -> FetchError:
    status = status_of(error)
    if status == 404:
        return FetchError("no such file exists", absent=True)
    if status in (401, 403):
        return FetchError("permission denied", denied=True)
    lines = str(error).strip().splitlines()
    return FetchError(f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)


def is_worth_a_retry(error: Exception) -> bool:
    status = status_of(error)
    return status is None or status >= 500 or status in (408, 429)


def retried(call: Callable[[], T]) -> T:
    """The result of call(). A failed call is retried, unless the remote's answer is final. Raises FetchError if the
    call fails, and OSError if the error is about a local file."""
    for wait in (*WAITS, None):
        try:
            return call()
        except Exception as error:
            raise_if_full(error)
            if isinstance(error, OSError) and error.filename is not None:
                raise  # the error is about a local file
            if wait is None or not is_worth_a_retry(error):
                raise fetch_error(error) from None
        time.sleep(wait)
    raise AssertionError


def raise_if_full(error: BaseException) -> None:
    """If the error is an OSError about a full disk, or was raised from one, raises that OSError."""
    if isinstance(error, OSError) and is_full(error):
        raise error
    if error.__cause__ is not None:
        raise_if_full(error.__cause__)


def status_of(error: Exception) -> int | None:
    """The HTTP status code of the response. Each library stores the status code in a different attribute."""
    # Subclasses are excluded, because huggingface_hub raises a subclass if there is no network.
    if type(error) in (FileNotFoundError, NotADirectoryError):
        return 404
    if isinstance(error, PermissionError):
        return 403
    response: Any = getattr(error, "response", None)
    if isinstance(response, Mapping):  # an error of botocore
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    status = getattr(response, "status_code", None) or getattr(error, "code", None)  # huggingface_hub, google.cloud
    return int(status) if isinstance(status, int) else None
