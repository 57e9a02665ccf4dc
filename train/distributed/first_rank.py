"""Work that one rank does for all ranks, such as writing a shared file."""

import time
from collections.abc import Callable

from composer.utils import dist
from torch.distributed.distributed_c10d import _get_default_store

from data.base.errors import ConfigError, DataError

_POLL_SECONDS, _SLOWEST_POLL_SECONDS = 0.002, 0.5


def on_first_rank(write: Callable[[], None], *, slow: str | None = None) -> None:
    """Run `write` on global rank 0. If `write` raises ConfigError, DataError or OSError, the error is raised on every
    rank.
    An OSError is converted to a ConfigError. Every rank must call this.

    slow: a key of the store. It is required if `write` may take longer than the timeout of a collective. The other
    ranks then poll the store for this key, as in from_first_rank.
    """
    errors: list[ConfigError | DataError | None] = [None]
    if dist.get_global_rank() == 0:
        try:
            write()
        except (ConfigError, DataError) as error:
            errors = [error]
        except OSError as error:
            errors = [ConfigError(str(error))]
        finally:
            if slow is not None:
                from_first_rank(slow, "")
    elif slow is not None:
        from_first_rank(slow, "")
    dist.broadcast_object_list(errors, src=0)
    if errors[0] is not None:
        raise errors[0]


def from_first_rank(key: str, value: str) -> str:
    """Return the value that rank 0 passes for the key. The other ranks poll the store for the value instead of waiting
    in a collective, which could time out. Every rank must call this."""
    if dist.get_world_size() == 1:
        return value
    store = _get_default_store()
    if dist.get_global_rank() == 0:
        store.set(key, value)
        return value
    seconds = _POLL_SECONDS
    while not store.check([key]):  # pyright: ignore[reportAttributeAccessIssue]: torch's stubs lack it
        time.sleep(seconds)
        seconds = min(1.5 * seconds, _SLOWEST_POLL_SECONDS)
    return store.get(key).decode()
