"""Lines that are printed once a process."""

from functools import cache


@cache
def say_once(message: str) -> None:
    print(message, flush=True)
