"""The differences between two texts, with a limited computing time."""

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

from data.curation.base.report import CUT

MOST_PAIRS = 1_000_000
"""Maximum number of pairs of words that are compared: words of one text times words of the other text, without their
common start and end. Beyond that, everything between the common start and end is a difference."""
_WORD = re.compile(r"\w+|\s+|[^\w\s]")


class Piece(NamedTuple):
    text: str
    differs: bool = False
    """Whether the other text does not contain this piece at this place."""


def differences(before: str, after: str) -> tuple[list[Piece], list[Piece]]:
    """The pieces of both texts. If a text is shortened, a difference at the end is not counted."""
    texts = before.removesuffix(CUT), after.removesuffix(CUT)
    is_cut = texts != (before, after)
    words = _WORD.findall(texts[0]), _WORD.findall(texts[1])
    pieces: tuple[list[Piece], list[Piece]] = [], []
    found = [*_opcodes(*words)]
    for number, (tag, *spans) in enumerate(found):
        is_end = is_cut and 0 < number == len(found) - 1
        for side, (start, end) in enumerate((spans[:2], spans[2:])):
            if start < end:
                pieces[side].append(Piece("".join(words[side][start:end]), tag != "equal" and not is_end))
    for side, text in enumerate((before, after)):
        if text != texts[side]:
            pieces[side].append(Piece(CUT))
    return pieces


def similarity(pieces: Sequence[Piece]) -> float:
    """The share of the characters that do not differ."""
    equal = sum(len(piece.text) for piece in pieces if not piece.differs)
    return equal / max(sum(len(piece.text) for piece in pieces), 1)


def _opcodes(one: Sequence[str], other: Sequence[str]) -> Iterator[tuple[str, int, int, int, int]]:
    """As SequenceMatcher.get_opcodes. The common start and the common end are found without it."""
    first = _common(one, other)
    last = _common(one[first:][::-1], other[first:][::-1])
    ends = len(one) - last, len(other) - last
    middles = one[first : ends[0]], other[first : ends[1]]
    if first:
        yield "equal", 0, first, 0, first
    if len(middles[0]) * len(middles[1]) > MOST_PAIRS:
        yield "replace", first, ends[0], first, ends[1]
    else:
        for tag, *place in SequenceMatcher(None, *middles, autojunk=False).get_opcodes():
            a, b, c, d = (each + first for each in place)
            yield tag, a, b, c, d
    if last:
        yield "equal", ends[0], len(one), ends[1], len(other)


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
