"""The first batch of a run: every rank reads its own rows, and rank 0 shows them as text."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from composer.utils import dist
from rich.text import Text

from data.base.errors import ConfigError, DataError
from data.inspection.row_text import show_row
from data.loading.collate import collate
from data.mds.row import IGNORED, Row
from train.config.schema import TrainConfig
from train.run.inputs import Inputs

_SHOWN_ROWS, _SHOWN_CHARACTERS = 2, 3000
"""Maximum number of rows that are shown, and of characters per row."""


@dataclass(frozen=True, kw_only=True)
class FirstBatch:
    number: int
    """The number of the batch, counted from 0."""
    rank_shape: tuple[int, int]
    """The shape of a rank's input_ids: rows, max_seq_len."""
    n_rows: int
    tokens: int
    """Number of tokens on all ranks, without padding."""
    trained_tokens: int
    """Number of labels, on all ranks, for which the loss is computed."""
    rows: list[tuple[str, int, Row]]
    """The first rows of this rank, each with the name of its stream and its id in that stream."""

    def __str__(self) -> str:
        positions = self.n_rows * self.rank_shape[1]
        return (
            f"batch {self.number}: {self.n_rows} rows of {self.rank_shape[1]:,} positions, {self.tokens:,} tokens "
            f"({self.tokens / positions:.1%} of the positions), {self.trained_tokens:,} of them trained on; a rank's "
            f"input_ids: int64 {list(self.rank_shape)}"
        )


def read_first_batch(config: TrainConfig, inputs: Inputs) -> FirstBatch:
    """Read the first batch. Every rank must call this. If a rank cannot read its rows, its error is raised on every
    rank."""
    counts: tuple[int, int, int] | ConfigError | DataError
    rows, shape = [], (0, config.max_seq_len)
    try:
        rows = _rows_of_rank(inputs)
        batch = collate([row for *_, row in rows], config.max_seq_len, inputs.tokenizer.pad_token_id)
        shape = (batch["input_ids"].shape[0], batch["input_ids"].shape[1])
        counts = len(rows), sum(len(row.tokens) for *_, row in rows), int((batch["labels"] != IGNORED).sum())
    except (ConfigError, DataError) as error:
        counts = error
    n_rows = tokens = trained = 0
    for of_rank in dist.all_gather_object(counts):
        if isinstance(of_rank, ConfigError | DataError):
            raise of_rank
        n_rows, tokens, trained = np.add((n_rows, tokens, trained), of_rank).tolist()
    return FirstBatch(
        number=inputs.first_batch,
        rank_shape=shape,
        n_rows=n_rows,
        tokens=tokens,
        trained_tokens=trained,
        rows=rows[:_SHOWN_ROWS],
    )


def _rows_of_rank(inputs: Inputs) -> list[tuple[str, int, Row]]:
    """The rows of this rank, with their streams and ids. TrainBatches is not used, because it would also fetch the
    shards of later batches."""
    plan, streams = inputs.data.plan, inputs.data.streams
    size = plan.global_batch_size // dist.get_world_size()
    start = dist.get_global_rank() * size
    s_N, id_N = plan.rows(inputs.first_batch, start, start + size)
    names = [plan.names[number] for number in s_N.tolist()]
    return [(name, row_id, streams[name].read(row_id)) for name, row_id in zip(names, id_N.tolist(), strict=True)]


def texts_of(batch: FirstBatch, inputs: Inputs, *, marks: bool) -> Iterator[Text]:
    """The shown rows in the format of scripts/inspect_data.py: trained tokens are green. If marks is set, trained
    tokens are also enclosed in ⟦ ⟧."""
    for stream, row_id, row in batch.rows:
        text = show_row(row_id, row, inputs.tokenizer, marks=marks)
        if (more := len(text) - _SHOWN_CHARACTERS) > 0:
            text = text[:_SHOWN_CHARACTERS] + Text(f"... and {more:,} more characters\n", style="bold cyan")
        yield Text(f"stream {stream}\n", style="bold cyan") + text if stream else text
