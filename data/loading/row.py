"""A row, and how a sample of each of the row formats becomes one."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.mds.columns import COLUMNS

NOT_TRAINED = -100
"""The label of a token or position that is not trained on."""


@dataclass(frozen=True, eq=False)
class Row:
    tokens: np.ndarray
    loss_mask: np.ndarray
    lengths: np.ndarray
    """Of the row's documents, in order; they add up to the tokens."""

    def documents(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Tokens and loss mask of each document."""
        ends = np.cumsum(self.lengths)
        for start, end in zip((ends - self.lengths).tolist(), ends.tolist(), strict=True):
            yield self.tokens[start:end], self.loss_mask[start:end]


def decoder(form: tuple[str, ...], eos_token_id: int) -> Callable[[Mapping[str, Any]], Row]:
    """What makes a row of a sample with these columns, one of ROW_FORMS; it raises ValueError. Can be pickled."""
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
            "data again: today both converters write them as turns"
        )
    trained = labels != NOT_TRAINED
    differ = np.flatnonzero(trained & (labels != tokens))
    if len(differ):
        at = int(differ[0])
        raise ValueError(
            f"labels[{at}] is {labels[at]}, but input_ids[{at}] is {tokens[at]}: labels are not shifted here, they "
            f"equal input_ids or are {NOT_TRAINED}"
        )
    return Row(tokens, trained.astype(np.uint8), np.array([len(tokens)], dtype=np.int32))


@dataclass(frozen=True)
class _DecodeTokens:
    """Tokens alone, in which each document ends with eos; the last one may continue in another row."""

    eos_token_id: int

    def __call__(self, sample: Mapping[str, Any]) -> Row:
        tokens = _ids(sample, "tokens")
        ends = np.flatnonzero(tokens == self.eos_token_id) + 1
        if len(tokens) and (not len(ends) or ends[-1] != len(tokens)):
            ends = np.append(ends, len(tokens))
        return Row(tokens, np.ones(len(tokens), dtype=np.uint8), np.diff(ends, prepend=0).astype(np.int32))


def _ids(sample: Mapping[str, Any], name: str) -> np.ndarray:
    value = sample[name]
    if isinstance(value, bytes):
        if len(value) % 8:
            raise ValueError(f"{name} has {len(value)} bytes, which are not int64")
        value = np.frombuffer(value, dtype=np.int64)
    if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype.kind not in "iu":
        seen = f"ndarray of {value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise ValueError(f"{name} is {seen}, but it must be integers in a row: an ndarray, or bytes of int64")
    return value.astype(np.int64, copy=False)
