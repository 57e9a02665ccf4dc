"""The text of each token of a row, with marks for special tokens and for the tokens that are trained on."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from data.base.console import printable
from data.inspection.documents import continues
from data.loading.rows import Rows
from data.mds.row import Row
from data.tokenization.tokenizer import Tokenizer

SHOWN_TOKENS = 1500
"""Maximum number of tokens of a row that are shown."""
_REPLACEMENT = "\ufffd"
_LONGEST_CHARACTER = 4
"""Maximum number of tokens that form a character together."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A token, or several tokens that form a character together."""

    ids: str
    text: str
    is_special: bool
    is_trained: bool


@dataclass(frozen=True, kw_only=True)
class ShownDocument:
    title: str
    pieces: list[Piece]


@dataclass(frozen=True, kw_only=True)
class ShownRow:
    title: str
    documents: list[ShownDocument]
    ids: list[str]
    """The ids of each document."""
    hidden: str
    """States how many tokens are not shown; "" if all are shown."""


def show_row(number: int, rows: Rows, tokenizer: Tokenizer, special: Mapping[int, str]) -> ShownRow:
    row = rows.read(number)
    starts = np.cumsum(row.lengths) - row.lengths
    trained = row.loss_mask != 0
    trained[starts] = False  # the first token of a document is never a label
    n, n_trained = len(row.tokens), int(np.count_nonzero(trained))
    padding = rows.max_seq_len - n
    n_documents = f"{len(row.lengths):,} document{'' if len(row.lengths) == 1 else 's'}"
    title = f"row {number:,}: {n_documents}, {n:,} tokens, {n_trained:,} trained, {padding:,} positions of padding"
    documents, ids = list[ShownDocument](), list[str]()
    for place, (start, length) in enumerate(zip(starts.tolist(), row.lengths.tolist(), strict=True)):
        if start >= SHOWN_TOKENS:
            break
        shown = slice(start, min(start + length, SHOWN_TOKENS))
        documents.append(
            ShownDocument(
                title=_title(place, row, trained[start : start + length], rows, number),
                pieces=[*_pieces(row.tokens[shown], trained[shown], tokenizer, special)],
            )
        )
        ids.append(" ".join(map(str, row.tokens[shown].tolist())))
    hidden = f"{n - SHOWN_TOKENS:,} more tokens of this row are not shown" if n > SHOWN_TOKENS else ""
    return ShownRow(title=title, documents=documents, ids=ids, hidden=hidden)


def _title(place: int, row: Row, trained: np.ndarray, rows: Rows, number: int) -> str:
    counts = f"{len(trained):,} tokens, {int(np.count_nonzero(trained)):,} trained"
    if place == 0 and number and continues(rows, rows.read(number - 1)):
        counts += ", continued from the previous row"
    if place == len(row.lengths) - 1 and continues(rows, row):
        counts += ", continues in the next row"
    return f"document {place + 1} of {len(row.lengths):,}: {counts}"


def _pieces(ids: np.ndarray, trained: np.ndarray, tokenizer: Tokenizer, special: Mapping[int, str]) -> Iterator[Piece]:
    for start, stop, text in texts_of_tokens(ids.tolist(), tokenizer, special):
        yield Piece(
            ids=" ".join(map(str, ids[start:stop].tolist())),
            text=printable(text),
            is_special=int(ids[start]) in special,
            is_trained=bool(trained[start:stop].any()),
        )


def texts_of_tokens(ids: list[int], tokenizer: Tokenizer, special: Mapping[int, str]) -> Iterator[tuple[int, int, str]]:
    """The start, the end and the text of each token. Consecutive tokens are yielded together if they form a character
    only together.

    The text of a token is the text that it adds to the tokens before it, because some tokenizers add or remove a space
    at the start of a text.
    """
    before = start = 0  # the previous token, and the next one
    while start < len(ids):
        stop = start + 1
        if ids[start] in special:
            yield start, stop, special[ids[start]]
            before = start = stop
            continue
        context = tokenizer.decode(ids[before:start]) if before < start else ""
        text = tokenizer.decode(ids[before:stop])
        most = min(start + _LONGEST_CHARACTER, len(ids))
        while text.endswith(_REPLACEMENT) and stop < most and ids[stop] not in special:
            stop += 1
            text = tokenizer.decode(ids[before:stop])
        yield start, stop, text.removeprefix(context) if text.startswith(context) else tokenizer.decode(ids[start:stop])
        before, start = start, stop
