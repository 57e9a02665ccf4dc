"""Repeated pieces of a text, such as lines."""

from collections.abc import Iterable


def repeated(pieces: Iterable[str]) -> tuple[int, int]:
    """Number of pieces that are equal to an earlier piece, and the number of their characters."""
    seen: set[str] = set()
    n_repeated = n_chars = 0
    for piece in pieces:
        if piece in seen:
            n_repeated += 1
            n_chars += len(piece)
        else:
            seen.add(piece)
    return n_repeated, n_chars
