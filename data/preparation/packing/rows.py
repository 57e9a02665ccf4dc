"""Convert a window of documents to rows."""

from collections.abc import Iterator

import numpy as np

from data.config.dataset import DatasetConfig
from data.mds.row import DTYPES, Row
from data.preparation.packing.documents import Documents
from data.preparation.packing.packers import CUTTERS, PACKERS
from data.preparation.packing.recipe import Tally


def rows_of(window: list[Documents], config: DatasetConfig, tally: Tally) -> Iterator[tuple[Row, np.ndarray]]:
    """The rows of the window, each with at most max_seq_len tokens, and the numbers of the documents in each row. The
    documents are numbered from 0, in the order of the window."""
    lengths = np.concatenate([documents.lengths for documents in window])
    rows = _cut_rows if window[0].are_texts else _whole_rows
    for row, numbers in rows(window, lengths, config, tally):
        tally.rows += 1
        tally.padding += config.max_seq_len - len(row.tokens)
        yield row, numbers


def _whole_rows(
    window: list[Documents], lengths: np.ndarray, config: DatasetConfig, tally: Tally
) -> Iterator[tuple[Row, np.ndarray]]:
    """Rows of complete documents. Every document fits into a row, which limits the size of the window, so all documents
    of the window are concatenated in memory."""
    tokens = np.concatenate([documents.tokens[:] for documents in window])
    loss_mask = np.concatenate([documents.loss_mask for documents in window])
    ends = np.cumsum(lengths, dtype=np.int64)
    starts = ends - lengths
    tally.trained_tokens += int(np.count_nonzero(loss_mask)) - int(np.count_nonzero(loss_mask[starts]))
    places = [slice(*place) for place in zip(starts.tolist(), ends.tolist(), strict=True)]
    for numbers in PACKERS[config.packing](lengths, config.max_seq_len):
        mine = [places[index] for index in numbers.tolist()]
        row = Row(
            np.concatenate([tokens[place] for place in mine]),
            np.concatenate([loss_mask[place] for place in mine]),
            lengths[numbers],
        )
        yield row, numbers


def _cut_rows(
    window: list[Documents], lengths: np.ndarray, config: DatasetConfig, tally: Tally
) -> Iterator[tuple[Row, np.ndarray]]:
    """Rows of texts, which may be split. Rows are created one at a time, so that a large text is never copied as a
    whole."""
    every_token = np.ones(config.max_seq_len, dtype=DTYPES["loss_mask"])
    rest = iter([documents.tokens for documents in window])
    tokens = next(rest)
    start = done = 0
    ends = np.cumsum(lengths, dtype=np.int64)
    for pieces in CUTTERS[config.packing](lengths, config.max_seq_len):
        n_tokens = missing = sum(pieces)
        parts = []
        while missing > len(tokens) - start:
            parts.append(tokens[start:])
            missing -= len(tokens) - start
            tokens, start = next(rest), 0
        parts.append(tokens[start : start + missing])
        start += missing
        row = parts[0] if len(parts) == 1 else np.concatenate(parts)
        tally.trained_tokens += len(row) - len(pieces)
        # The row begins in the first document that ends after its first token.
        first = int(np.searchsorted(ends, done, side="right"))
        done += n_tokens
        yield (
            Row(row, every_token[: len(row)], np.array(pieces, dtype=DTYPES["lengths"])),
            np.arange(first, first + len(pieces)),
        )
