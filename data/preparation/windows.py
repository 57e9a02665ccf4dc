"""Chunks become documents in the workers, and a window of documents becomes rows in the parent."""

import os
import struct
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from data.base.errors import TemplateError
from data.config.dataset import DatasetConfig
from data.examples.examples import Conversation, Example, Problem, Reading, TokenTurns, read_examples
from data.mds.columns import COLUMNS
from data.preparation.packing import CUTTERS, PACKERS
from data.sources.source import Source
from data.tokenization.chat import Document, fit, tokenize
from data.tokenization.tokenizer import MOST_BYTES, Tokenizer

SPOOLED_BYTES = 8 << 20
"""A chunk's tokens that take more than this come to the parent through a file: a pipe would need them whole."""


@dataclass
class Tally:
    """What became of examples and tokens. Can be pickled; tallies add up in any order."""

    examples_kept: int = 0
    examples_truncated: int = 0
    """Of the kept ones: they lost their end."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Reason -> examples that were read, but do not fit."""
    tokens_in: int = 0
    tokens_kept: int = 0
    tokens_truncated: int = 0
    tokens_dropped: int = 0
    trained_tokens: int = 0
    """Tokens of rows that some position predicts: the first of a document, or of its piece, is nobody's label."""
    rows: int = 0
    padding: int = 0
    document_lengths: Counter[str] = field(default_factory=Counter)
    """n, a power of two -> documents of n to 2n - 1 tokens, before any is cut."""

    def merge(self, other: "Tally") -> None:
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(value, Counter):
                mine.update(value)
            else:
                setattr(self, name, mine + value)


class SpooledTokens:
    """An array in a file, of which a slice is read when it is asked for: mapped, all of it would come into memory."""

    def __init__(self, file: Path, dtype: np.dtype) -> None:
        """Removes the file, which stays readable here."""
        self._dtype, self._descriptor = dtype, os.open(file, os.O_RDONLY)
        self._length = file.stat().st_size // dtype.itemsize
        weakref.finalize(self, os.close, self._descriptor)
        file.unlink()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, where: slice) -> np.ndarray:
        start, stop, _ = where.indices(len(self))
        width = self._dtype.itemsize
        return np.frombuffer(os.pread(self._descriptor, (stop - start) * width, start * width), dtype=self._dtype)


@dataclass(frozen=True, eq=False)
class Documents:
    """Documents end to end."""

    tokens: np.ndarray | SpooledTokens
    """Unsigned."""
    loss_mask: np.ndarray
    """uint8, as long as tokens; empty for texts, of which every token is trained on."""
    lengths: np.ndarray
    """Of each document, int32."""
    are_texts: bool

    @property
    def weight(self) -> int:
        """Tokens."""
        return len(self.tokens)

    def received(self) -> "Documents":
        return self


@dataclass(frozen=True, eq=False)
class Spooled:
    """Documents whose tokens came to the parent through a file."""

    file: Path
    dtype: np.dtype
    rest: Documents

    def received(self) -> Documents:
        return replace(self.rest, tokens=SpooledTokens(self.file, self.dtype))


@dataclass(frozen=True, kw_only=True)
class Task:
    """A chunk with what is known when it is given out."""

    chunk: Any
    form: str | None
    first_place: str
    """Of the source's first valid row, whose form it is."""
    check_only: bool = False
    """Bad rows were found: only look for more."""


@dataclass(kw_only=True)
class Part:
    """What a chunk gave."""

    size: int
    """The chunk's, in the source's unit."""
    reading: Reading
    tally: Tally
    content: Any = None
    """What a window is made of once it is `received()`, with its `weight`; None: nothing."""


@dataclass(frozen=True, kw_only=True)
class Tokenizing:
    """The way of a chunk to rows of tokens."""

    source: Source
    preprocess: Callable[[Any], Any] | None
    tokenizer: Tokenizer
    config: DatasetConfig
    spool: Path
    """A folder for what is too large for a pipe."""

    def columns(self, form: str) -> dict[str, str]:
        """Of MDS, for rows of that form."""
        return COLUMNS

    def read(self, task: Task) -> Part:
        """Runs in a worker. Raises what the source and the tokenizer raise."""
        part = Part(size=task.chunk.size, reading=Reading(form=task.form, first_place=task.first_place), tally=Tally())
        fitted: list[Document] = []
        for example in read_examples(self.source.rows(task.chunk), self.preprocess, part.reading):
            if task.check_only and not self._can_refuse(example):
                continue
            try:
                result = self._fit(example, part.tally)
            except TemplateError as error:
                raise TemplateError(f"{part.reading.place}: {error}") from None
            if isinstance(result, Problem):
                part.reading.n_valid -= 1
                part.reading.add(part.reading.place, [result])
            elif isinstance(result, Document):
                fitted.append(result)
        if fitted and not task.check_only:
            part.content = self._join(fitted)
        return part

    def _can_refuse(self, example: Example) -> bool:
        """Whether a bad row may show only when it is tokenized."""
        if isinstance(example, Conversation | TokenTurns) or self.config.excess_length == "error":
            return True
        return any(len(text) > MOST_BYTES // 4 for text in vars(example).values())  # too large for its tokenizer

    def _fit(self, example: Example, tally: Tally) -> Document | Problem | None:
        document = tokenize(example, self.tokenizer, self.config)
        result = document if isinstance(document, Problem) else fit(document, self.config)
        if isinstance(document, Problem) or isinstance(result, Problem):
            return result if isinstance(result, Problem) else None
        n_tokens = len(document.tokens)
        tally.tokens_in += n_tokens
        tally.document_lengths[str(1 << (n_tokens.bit_length() - 1))] += 1
        if isinstance(result, str):
            tally.dropped[result] += 1
            tally.tokens_dropped += n_tokens
            return None
        tally.examples_kept += 1
        tally.tokens_kept += len(result.tokens)
        tally.examples_truncated += len(result.tokens) < n_tokens
        tally.tokens_truncated += n_tokens - len(result.tokens)
        return result

    def _join(self, documents: list[Document]) -> Documents | Spooled:
        are_texts = documents[0].is_text
        tokens = np.concatenate([document.tokens for document in documents])
        # The way to the parent, and the window there, take half as much where ids fit into 16 bits.
        tokens = tokens.astype(np.min_scalar_type(self.tokenizer.vocab_size - 1), copy=False)
        nothing = np.empty(0, dtype=np.uint8)
        joined = Documents(
            tokens=tokens,
            loss_mask=nothing if are_texts else np.concatenate([document.loss_mask for document in documents]),
            lengths=np.array([len(document.tokens) for document in documents], dtype=np.int32),
            are_texts=are_texts,
        )
        if tokens.nbytes <= SPOOLED_BYTES:
            return joined
        return Spooled(_spool(tokens, self.spool), tokens.dtype, replace(joined, tokens=np.empty(0)))

    def samples(self, window: list[Documents], tally: Tally) -> Iterator[bytes]:
        """The window's rows, each of at most max_seq_len tokens."""
        lengths = np.concatenate([documents.lengths for documents in window])
        rows = _cut_rows if window[0].are_texts else _whole_rows
        for tokens, loss_mask, row_lengths in rows(window, lengths, self.config, tally):
            tally.rows += 1
            tally.padding += self.config.max_seq_len - len(tokens)
            yield encode_row(tokens.astype(np.int32, copy=False), loss_mask, row_lengths)


def encode_row(tokens: np.ndarray, loss_mask: np.ndarray, lengths: np.ndarray) -> bytes:
    """The MDS sample of the COLUMNS, as MDSWriter encodes it, with one copy for its six.

    The size of each column in the order of their names, then of each the width of its length, the length, the values.
    """
    n_head, lengths_head = _head(len(tokens)), _head(len(lengths))
    sizes = struct.pack(
        "<3I", len(lengths_head) + lengths.nbytes, len(n_head) + loss_mask.nbytes, len(n_head) + tokens.nbytes
    )
    parts: Any = (sizes, lengths_head, lengths, n_head, loss_mask, n_head, tokens)
    return b"".join(parts)


@cache
def _head(n: int) -> bytes:
    """Of an array with one dimension: 4 + the width's logarithm, and the length."""
    if n < 1 << 8:
        return struct.pack("<BB", 4, n)
    return struct.pack("<BH", 5, n) if n < 1 << 16 else struct.pack("<BI", 6, n)


Row = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Tokens, their loss mask (uint8), and the lengths of the documents in them (int32)."""


def _whole_rows(window: list[Documents], lengths: np.ndarray, config: DatasetConfig, tally: Tally) -> Iterator[Row]:
    """Rows of whole documents. Each fits into a row, so that a window of them is small enough to be joined."""
    tokens = np.concatenate([documents.tokens[:] for documents in window])
    loss_mask = np.concatenate([documents.loss_mask for documents in window])
    ends = np.cumsum(lengths, dtype=np.int64)
    starts = ends - lengths
    tally.trained_tokens += int(np.count_nonzero(loss_mask)) - int(np.count_nonzero(loss_mask[starts]))
    places = [slice(*place) for place in zip(starts.tolist(), ends.tolist(), strict=True)]
    for row in PACKERS[config.packing](lengths, config.max_seq_len):
        mine = [places[index] for index in row.tolist()]
        yield (
            np.concatenate([tokens[place] for place in mine]),
            np.concatenate([loss_mask[place] for place in mine]),
            lengths[row],
        )


def _cut_rows(window: list[Documents], lengths: np.ndarray, config: DatasetConfig, tally: Tally) -> Iterator[Row]:
    """Rows of texts, one after the other: a text of any size is never held a second time."""
    every_token = np.ones(config.max_seq_len, dtype=np.uint8)
    rest = iter([documents.tokens for documents in window])
    tokens = next(rest)
    start = 0
    for pieces in CUTTERS[config.packing](lengths, config.max_seq_len):
        missing, parts = sum(pieces), []
        while missing > len(tokens) - start:
            parts.append(tokens[start:])
            missing -= len(tokens) - start
            tokens, start = next(rest), 0
        parts.append(tokens[start : start + missing])
        start += missing
        row = parts[0] if len(parts) == 1 else np.concatenate(parts)
        tally.trained_tokens += len(row) - len(pieces)
        yield row, every_token[: len(row)], np.array(pieces, dtype=np.int32)


def _spool(tokens: np.ndarray, folder: Path) -> Path:
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".tokens", delete=False) as file:
        tokens.tofile(file)
    return Path(file.name)
