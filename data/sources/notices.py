"""Lines that say, once a process, what of the input is not read or read otherwise than it looks."""

import functools

from data.base.locks import is_first


def notice(text: str) -> None:
    """Prints the line on the node's first rank, unless this process has printed it already."""
    if is_first():
        _print_once(text)


@functools.cache
def _print_once(text: str) -> None:
    print(text, flush=True)
