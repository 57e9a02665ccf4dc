"""The batch that a run would begin with: read by all ranks, each its own rows, and shown as text by rank 0."""

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
"""At most: of the batch, and of each of its rows."""


@dataclass(frozen=True, kw_only=True)
class FirstBatch:
    number: int
    """Counted from 0."""
    rank_shape: tuple[int, int]
    """Of a rank's input_ids: rows, max_seq_len."""
    n_rows: int
    tokens: int
    """Of all ranks, padding not counted."""
    trained_tokens: int
    """Labels that the loss is computed of."""
    rows: list[tuple[str, int, Row]]
    """The first of this rank, with their stream and their id in it."""

    def __str__(self) -> str:
        positions = self.n_rows * self.rank_shape[1]
        return (
            f"batch {self.number}: {self.n_rows} rows of {self.rank_shape[1]:,} positions, {self.tokens:,} tokens "
            f"({self.tokens / positions:.1%} of the positions), {self.trained_tokens:,} of them trained on; a rank's "
            f"input_ids: int64 {list(self.rank_shape)}"
        )


def read_first_batch(config: TrainConfig, inputs: Inputs) -> FirstBatch:
    """Every rank has to call it. Raises on every rank the DataError of one that cannot read its rows."""
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
    """With their streams and their ids. As TrainBatches reads them, which would also fetch shards of later batches."""
    plan, streams = inputs.data.plan, inputs.data.streams
    size = plan.global_batch_size // dist.get_world_size()
    start = dist.get_global_rank() * size
    s_N, id_N = plan.rows(inputs.first_batch, start, start + size)
    names = [plan.names[number] for number in s_N.tolist()]
    return [(name, row_id, streams[name].read(row_id)) for name, row_id in zip(names, id_N.tolist(), strict=True)]


def texts_of(batch: FirstBatch, inputs: Inputs, *, marks: bool) -> Iterator[Text]:
    """Rows as scripts/inspect_data.py shows them: what is trained on is green, and with marks in ⟦ ⟧."""
    for stream, row_id, row in batch.rows:
        text = show_row(row_id, row, inputs.tokenizer, marks=marks)
        if (more := len(text) - _SHOWN_CHARACTERS) > 0:
            text = text[:_SHOWN_CHARACTERS] + Text(f"... and {more:,} characters more\n", style="bold cyan")
        yield Text(f"stream {stream}\n", style="bold cyan") + text if stream else text
