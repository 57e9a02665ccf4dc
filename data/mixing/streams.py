"""The streams of a plan, with their numbers of rows and their mean tokens per row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from data.config.dataset import DatasetConfig, StreamConfig
from data.mixing.stream_order import StreamOrder


class StreamShape(Protocol):
    """The properties of a stream that are needed to make a plan."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def n_rows(self) -> int: ...
    @property
    def tokens(self) -> int | None: ...
    @property
    def shard_sizes(self) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class Streams:
    """The streams of a run, in the order of their numbers in the plan."""

    shapes: Mapping[str, StreamShape]
    max_seq_len: int

    @cached_property
    def names(self) -> list[str]:
        return list(self.shapes)

    @cached_property
    def tokens_per_row(self) -> tuple[float, ...]:
        """[S] mean tokens per row of each stream. If the number of tokens is unknown, all rows are assumed to be
        full."""
        full = float(self.max_seq_len)
        shapes = self.shapes.values()
        return tuple(full if shape.tokens is None else shape.tokens / shape.n_rows for shape in shapes)

    def row_shares(self, mix: Mapping[str, float]) -> tuple[float, ...]:
        """[S] shares of rows from shares of tokens. A stream with fewer tokens per row contributes more rows."""
        means = zip(self.names, self.tokens_per_row, strict=True)
        per_token = [mix.get(name, 0.0) / mean for name, mean in means]
        return tuple(share / sum(per_token) for share in per_token)

    def token_shares(self, rows: np.ndarray) -> np.ndarray:
        """[S] shares of the tokens for these numbers (or shares) of rows, given each stream's mean tokens per row."""
        tokens_S = rows * self.tokens_per_row
        return tokens_S / tokens_S.sum()

    def continuing(self, names: Sequence[str]) -> "Streams":
        """The streams in a new order: the streams with these names first, then all other streams. A stream's number in
        this order is part of its shuffle key."""
        ordered = [*names, *(name for name in self.names if name not in names)]
        return replace(self, shapes={name: self.shapes[name] for name in ordered})

    def orders(self, seed: int, *, shuffle: bool) -> list[StreamOrder]:
        return [
            StreamOrder(shape.shard_sizes, seed, number, shuffle=shuffle)
            for number, shape in enumerate(self.shapes.values())
        ]


def epoch_rows(dataset: DatasetConfig, streams: Mapping[str, StreamShape]) -> dict[str, float]:
    """Number of rows of each stream in one epoch over all streams: `choose`, or `repeat` times its number of rows, or
    its number of rows."""
    configs: Mapping[str, StreamConfig] = dataset.streams or {}
    out = {}
    for name, stream in streams.items():
        config = configs.get(name, dataset)
        out[name] = (1.0 if config.repeat is None else config.repeat) * stream.n_rows
        if config.choose is not None:
            out[name] = float(config.choose)
    return out
