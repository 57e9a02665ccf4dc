"""The definition of a row, the encoding of its columns in MDS folders, and decoders for the supported row formats."""

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

DTYPES = {"tokens": np.dtype(np.int32), "loss_mask": np.dtype(np.uint8), "lengths": np.dtype(np.int32)}
"""The dtype of each column that we write, in the order of Row's fields."""
COLUMNS = {name: f"ndarray:{dtype}" for name, dtype in DTYPES.items()}
"""The MDS encoding of each of these columns."""
ROW_FORMS = (tuple(COLUMNS), ("input_ids", "labels"), ("tokens",))
"""The sets of columns that identify samples as prepared rows."""
IGNORED = -100
"""The label of a position that is not trained on."""


@dataclass(frozen=True, eq=False)
class Row:
    tokens: np.ndarray
    loss_mask: np.ndarray
    """1 for tokens that are trained on, 0 for others."""
    lengths: np.ndarray
    """Number of tokens of each document in the row, in order."""

    def documents(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The tokens and the loss mask of each document."""
        ends = np.cumsum(self.lengths)
        for start, end in zip((ends - self.lengths).tolist(), ends.tolist(), strict=True):
            yield self.tokens[start:end], self.loss_mask[start:end]

    def encode(self) -> bytes:
        """The row as an encoded MDS sample.

        The bytes are the same as those that MDSWriter writes, but the values are copied once instead of six times. A
        sample begins with the sizes of all columns, in the order of the column names. Then, for each column, it
        contains the width of the length field, the length, and the values.
        """
        arrays = [getattr(self, name).astype(DTYPES[name], copy=False) for name in sorted(DTYPES)]
        heads = [_head(len(array)) for array in arrays]
        sizes = [len(head) + array.nbytes for head, array in zip(heads, arrays, strict=True)]
        parts: Any = [part for pair in zip(heads, arrays, strict=True) for part in pair]
        return b"".join([struct.pack(f"<{len(sizes)}I", *sizes), *parts])


@cache
def _head(n: int) -> bytes:
    """The header of a one-dimensional array: a byte that is 4 + log2 of the width of the length field, then the
    length."""
    if n < 1 << 8:
        return struct.pack("<BB", 4, n)
    return struct.pack("<BH", 5, n) if n < 1 << 16 else struct.pack("<BI", 6, n)


def decoder(form: tuple[str, ...], eos_token_id: int) -> Callable[[Mapping[str, Any]], Row]:
    """A function that converts samples with these columns (one of ROW_FORMS) to rows. The function can be pickled, and
    raises ValueError for an invalid sample."""
    decoders: dict[tuple[str, ...], Callable[[Mapping[str, Any]], Row]] = {
        tuple(COLUMNS): _decode_ours,
        ("input_ids", "labels"): _decode_labels,
        ("tokens",): _DecodeTokens(eos_token_id),
    }
    return decoders[form]


def _decode_ours(sample: Mapping[str, Any]) -> Row:
    return Row(*(sample[name] for name in COLUMNS))


def _decode_labels(sample: Mapping[str, Any]) -> Row:
    tokens, labels = _ids(sample, "input_ids"), _ids(sample, "labels")
    if len(tokens) != len(labels):
        raise ValueError(
            f"{len(tokens)} input_ids, but {len(labels)} labels; if they are a prompt and its response, convert the "
            "data again: current converters write a prompt and its response as turns"
        )
    trained = labels != IGNORED
    differ = np.flatnonzero(trained & (labels != tokens))
    if len(differ):
        at = int(differ[0])
        raise ValueError(
            f"labels[{at}] is {labels[at]}, but input_ids[{at}] is {tokens[at]}: labels must not be shifted; each "
            f"label must equal its input_id or be {IGNORED}"
        )
    return _row(tokens, trained, [len(tokens)])


@dataclass(frozen=True)
class _DecodeTokens:
    """Decodes samples that contain only tokens. Each document ends with the eos token; the last document of a row may
    continue in the next row."""

    eos_token_id: int

    def __call__(self, sample: Mapping[str, Any]) -> Row:
        tokens = _ids(sample, "tokens")
        ends = np.flatnonzero(tokens == self.eos_token_id) + 1
        if len(tokens) and (not len(ends) or ends[-1] != len(tokens)):
            ends = np.append(ends, len(tokens))
        return _row(tokens, np.ones(len(tokens)), np.diff(ends, prepend=0))


def _row(tokens: np.ndarray, loss_mask: np.ndarray, lengths: ArrayLike) -> Row:
    """Tokens keep their dtype. The range of the tokens is checked in loading/rows.py, where the size of the vocabulary
    is known."""
    return Row(tokens, loss_mask.astype(DTYPES["loss_mask"]), np.asarray(lengths, dtype=DTYPES["lengths"]))


def _ids(sample: Mapping[str, Any], name: str) -> np.ndarray:
    value = sample[name]
    if isinstance(value, bytes):
        if len(value) % 8:
            raise ValueError(f"{name} has {len(value)} bytes, which is not a multiple of 8 (int64)")
        value = np.frombuffer(value, dtype=np.int64)
    if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype.kind not in "iu":
        seen = (
            f"an ndarray of {value.dtype} with shape {value.shape}"
            if isinstance(value, np.ndarray)
            else type(value).__name__
        )
        raise ValueError(f"{name} is {seen}, but it must be a 1-D integer ndarray, or bytes of int64")
    return value.astype(np.int64, copy=False)
