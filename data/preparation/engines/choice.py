"""The choice of the engine that prepares the slices of a source."""

import re
from dataclasses import dataclass

from data.base.errors import ConfigError

ENGINES = ("local", "spark")


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Where slices are prepared. The bytes of the result are the same for each engine."""

    name: str = "local"
    """One of ENGINES."""
    master: str | None = None
    """The URL of Spark's master, such as local[2]; None: the active session, or Spark's configuration."""
    remote: str | None = None
    """URL of the folder in an object store to which Spark's tasks upload their parts; None: they write the parts into
    the folder that is prepared."""
    share: tuple[int, int] | None = None
    """(I, N): prepare only every N-th slice, beginning with slice I, and do not merge the parts. 0 <= I < N."""
    merge_only: bool = False
    """Whether to merge parts that other jobs have prepared, and prepare nothing."""


LOCAL = Engine()


def parse_share(text: str) -> tuple[int, int]:
    """(I, N) of `I/N`, where I counts from 0. Raises ConfigError if the text is not a valid share."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or not int(found[1]) < int(found[2]):
        raise ConfigError(f"is {text!r}, but it must be I/N with 0 <= I < N, such as 0/4", key="part")
    return int(found[1]), int(found[2])
