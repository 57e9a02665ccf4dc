"""Why a remote's file could not be fetched, whichever library raised the error, and whether to try again."""

from collections.abc import Mapping
from typing import Any

from data.base.errors import is_full


class FetchError(Exception):
    """A file that could not be fetched: the text is the cause."""

    def __init__(self, cause: str, *, absent: bool = False, denied: bool = False) -> None:
        super().__init__(cause)
        self.absent, self.denied = absent, denied
        """What the remote answered: that there is no such file, or that we may not read it."""


def fetch_error(error: Exception) -> FetchError:
    status = status_of(error)
    if status == 404:
        return FetchError("there is no such file", absent=True)
    if status in (401, 403):
        return FetchError("permission denied", denied=True)
    lines = str(error).strip().splitlines()
    return FetchError(f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)


def is_worth_a_try(error: Exception) -> bool:
    status = status_of(error)
    return status is None or status >= 500 or status in (408, 429)


def raise_if_full(error: BaseException) -> None:
    """Raises the OSError of a full disk, also one that the error was raised from."""
    if isinstance(error, OSError) and is_full(error):
        raise error
    if error.__cause__ is not None:
        raise_if_full(error.__cause__)


def status_of(error: Exception) -> int | None:
    """What the remote answered, in HTTP's numbers: each library has it elsewhere."""
    # Not their subclasses: huggingface_hub has one that says that the network is down.
    if type(error) in (FileNotFoundError, NotADirectoryError):
        return 404
    if isinstance(error, PermissionError):
        return 403
    response: Any = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    status = getattr(response, "status_code", None) or getattr(error, "code", None)  # huggingface_hub, google
    return int(status) if isinstance(status, int) else None
