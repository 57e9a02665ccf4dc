"""Lines that are printed once a process."""

from functools import cache

from data.base.locks import is_first


@cache
def say_once(message: str) -> None:
    print(message, flush=True)


def notice(text: str) -> None:
    """Prints the line on the node's first rank, unless this process has printed it already."""
    if is_first():
        say_once(text)
