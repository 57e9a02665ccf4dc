"""The failure that ends a run. The rank that fails shares the failure with the other ranks through the store. If
several ranks fail, the failure that was shared first is used.

This module requires neither Composer nor a process group, so that ranks can share failures before the process group
exists.
"""

import json
import traceback
from dataclasses import asdict, dataclass

from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]

from data.base.errors import ConfigError, DataError
from data.secrets.redaction import redacted

_FAILURE, _SHOWN = "failure", "failure shown"


@dataclass(frozen=True, kw_only=True)
class Failure:
    rank: int
    """The rank that shared the failure."""
    code: int
    """The exit code with which all ranks end."""
    text: str
    """The message for the user, or the traceback if the error is a bug."""
    kind: str = "failed"
    """`failed`: the rank raised an error with this text. `hung` or `lost`: some ranks hang or have ended unexpectedly,
    and the text names these ranks."""
    lost: tuple[int, ...] = ()
    """Ranks that have already ended, or that cannot end themselves."""
    shown_by: int = 0
    """The rank that shows the failure to the user."""

    @property
    def message(self) -> str:
        if self.kind != "failed":
            return self.text
        space = "\n" if self.code == 1 else " "
        return f"rank {self.rank} failed:{space}{self.text}"


def failure_of(error: BaseException, rank: int) -> Failure:
    """Convert an error to a Failure, with the exit code that train.py returns for this error."""
    if isinstance(error, ConfigError | DataError):
        return Failure(rank=rank, code=2, text=str(error) or type(error).__name__)
    return Failure(rank=rank, code=1, text=redacted("".join(traceback.format_exception(error)).rstrip()))


def share(store: Store, failure: Failure) -> Failure:
    """Share a failure. Returns the failure that was shared first, which may be from another rank."""
    return _parsed(store.compare_set(_FAILURE, "", json.dumps(asdict(failure))))


def shared(store: Store) -> Failure | None:
    return _parsed(store.get(_FAILURE)) if store.check([_FAILURE]) else None


def note_shown(store: Store) -> None:
    """Record that the shared failure is shown to the user, or is about to be shown."""
    store.set(_SHOWN, "")


def is_shown(store: Store) -> bool:
    return store.check([_SHOWN])


def _parsed(text: bytes | str) -> Failure:
    fields = json.loads(text)
    return Failure(**{**fields, "lost": tuple(fields["lost"])})
