"""The two errors a user can cause. Both name the place, the value and the way out; neither is shown as a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager


class ConfigError(ValueError):
    """What was written in a config or on a command line cannot be."""


class DataError(ValueError):
    """What was fed cannot be used."""


@contextmanager
def under(key: str) -> Iterator[None]:
    """Puts the key before a ConfigError whose text begins with a key below it: who checks need not know who holds."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{key}.{error}") from None
