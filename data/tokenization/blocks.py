"""Encode a text of any size with tiktoken in blocks. The ids are the same as when the whole text is encoded in one
call, but only the memory for one block is needed.

tiktoken splits a text into pieces by a pattern, and merges the bytes of each piece. This needs 35 bytes of memory per
byte of the longest piece, and tiktoken's regex engine fails on a million characters of whitespace.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from data.base.errors import RowError

if TYPE_CHECKING:
    import regex
    import tiktoken

Encode = Callable[[str], np.ndarray]
"""Returns the ids of a block of text. Special tokens in the block are encoded as text."""

BLOCK = 400_000
"""Number of characters of a text, or bytes of a piece, that are passed to tiktoken in one call. No token is longer."""
OVERLAP = 64
"""Number of tokens at the end of a block of a long piece that are merged again, together with the next block."""

# In all of tiktoken's patterns, a piece that has reached a non-whitespace character ends before the next space, and no
# pattern looks further ahead than that. (tiktoken and Python have the same definition of whitespace.)
_CUT = re.compile(r"\S(?= )")
_LAST_CUT = re.compile(r".*\S(?= )", re.DOTALL)


def encode_blocks(encoding: "tiktoken.Encoding", text: str, *, special: bool, encode: Encode) -> np.ndarray:
    """The ids as int32. Special tokens written in the text are encoded as special tokens if `special` is set, and as
    text otherwise. Raises the same errors as `check_known`."""
    ids = bytearray()  # a bytearray grows in place, so no second copy is needed
    for part in (_between_special if special else _blocks)(encoding, text, 0, len(text), encode):
        ids += np.asarray(part, dtype=np.int32).data
    return np.frombuffer(ids, dtype=np.int32)


def _between_special(
    encoding: "tiktoken.Encoding", text: str, start: int, end: int, encode: Encode
) -> Iterator[Iterable[int]]:
    for found in re.finditer("|".join(map(re.escape, encoding._special_tokens)), text):
        yield from _blocks(encoding, text, start, found.start(), encode)
        yield [encoding._special_tokens[found[0]]]
        start = found.end()
    yield from _blocks(encoding, text, start, end, encode)


def _blocks(encoding: "tiktoken.Encoding", text: str, start: int, end: int, encode: Encode) -> Iterator[Iterable[int]]:
    while end - start > BLOCK:
        cut = _LAST_CUT.match(text, start, start + BLOCK)
        if cut is not None:
            yield encode(text[start : cut.end()])
        else:
            cut = _CUT.search(text, start + BLOCK - 1, end)
            yield from _pieces(encoding, text, start, end if cut is None else cut.end())
        start = end if cut is None else cut.end()
    yield encode(text[start:end])


def _pieces(encoding: "tiktoken.Encoding", text: str, start: int, end: int) -> Iterator[list[int]]:
    """The ids of a part of the text in which no safe position for a split was found. The pieces of this part are found
    with the pattern."""
    check_known(text[start:end])
    ids: list[int] = []
    for found in _compile(encoding._pat_str).finditer(text, start, end):
        piece = found[0].encode()
        if len(piece) <= BLOCK:
            ids += encoding._encode_single_piece(piece)
        else:
            yield ids
            ids = []
            yield from merge_long(encoding._encode_single_piece, encoding.decode_single_token_bytes, piece)
        if len(ids) > BLOCK:
            yield ids
            ids = []
    yield ids


@lru_cache
def _compile(pattern: str) -> "regex.Pattern[str]":
    import regex

    return regex.compile(pattern)


def check_known(stretch: str) -> None:
    """Raises RowError for a character that is newer than Python's Unicode version, because Python's regex engine and
    tiktoken's may classify such a character differently."""
    if stretch.isascii():
        return
    unknown = sorted(c for c in set(stretch) if unicodedata.category(c) == "Cn")
    if unknown:
        raise RowError(
            "a long run with an unknown character",
            f"has {len(stretch):,} characters without a space, including U+{ord(unknown[0]):04X}, which is not in "
            f"Unicode {unicodedata.unidata_version}: split the row, or remove the character",
        )


def merge_long(
    merge: Callable[[bytes], list[int]], bytes_of: Callable[[int], bytes], piece: bytes
) -> Iterator[list[int]]:
    """The ids of `merge(piece)` for a piece that is longer than any token, computed in blocks.

    A sequence of tokens is the merge of its bytes if and only if every pair of adjacent tokens is the merge of its own
    bytes, because the first merge across a border between two tokens would also happen if there were only these two
    tokens. Adjacent tokens in one block meet this condition. The next block may therefore begin at any border between
    tokens, if its first token is the same as the token at this position in the current block.
    """
    start, size = 0, BLOCK
    ids = merge(piece[:size])
    while start + size < len(piece):
        border = _border(merge, bytes_of, piece, start + size, ids)
        if border is None:  # there is no border in this block, so a larger block is needed
            size *= 2
            ids = merge(piece[start : start + size])
            continue
        kept, start, following = border
        yield ids[:kept]
        size, ids = BLOCK, following
    yield ids


def _border(
    merge: Callable[[bytes], list[int]], bytes_of: Callable[[int], bytes], piece: bytes, end: int, ids: list[int]
) -> tuple[int, int, list[int]] | None:
    """For a block that ends at `end`, return the number of its ids that are kept, the start of the next block, and the
    ids of the next block."""
    overlap = OVERLAP
    while overlap < len(ids):
        start = end - sum(len(bytes_of(token)) for token in ids[-overlap:])
        following = merge(piece[start : start + BLOCK])
        if following[0] == ids[-overlap]:
            return len(ids) - overlap, start, following
        overlap *= 2
    return None
