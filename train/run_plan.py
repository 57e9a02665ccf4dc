"""A run's data, opened, and the plan of its rows: what can be wrong with them is told before the model is built."""

import math

from data.curriculum import Plan, epoch_rows
from data.durations import Clock, parse_duration
from data.errors import ConfigError, under
from data.rows import Rows, open_streams
from data.tokenizer import Tokenizer
from train.config import TrainConfig


def open_plan(
    config: TrainConfig, tokenizer: Tokenizer, *, resuming: bool = False
) -> tuple[Plan, dict[str, Rows], Clock]:
    """The plan of the run's beginning, the training streams by name, and what durations are measured against.

    `resuming`: a checkpoint's position is loaded into the plan next, which checks its lengths and repeats only then.
    Raises ConfigError and DataError for data that cannot be used and stages that cannot be.
    """
    loader, size = config.train_loader, config.global_train_batch_size
    with under("train_loader.dataset"):
        streams = open_streams(loader.dataset, tokenizer)
    mixed = loader.stages or any(stream.proportion is not None for stream in (loader.dataset.streams or {}).values())
    if len(streams) > 1 and mixed and parse_duration(config.max_duration)[1] == "ep":
        raise ConfigError(
            f"max_duration is {config.max_duration!r}, but a mix of {len(streams)} streams by proportions has no "
            "passes: write ba or tok"
        )
    clock = Clock(
        tokens_per_batch=size * config.max_seq_len,
        rows_per_batch=size,
        rows_per_epoch=math.ceil(sum(epoch_rows(loader.dataset, streams).values())),
    ).until(config.max_duration)
    with under("train_loader"):
        return Plan(loader, streams, clock, seed=config.seed, size=size, resuming=resuming), streams, clock


def describe(plan: Plan, streams: dict[str, Rows], clock: Clock, max_duration: str) -> list[str]:
    """Lines for the console: what there is, and how much of it the run takes."""
    assert clock.max_batches is not None
    lines = [f"train{f', stream {name}' if name else ''}: {_rows(rows)}" for name, rows in streams.items()]
    given = zip(plan.names, plan.counts(clock.max_batches).tolist(), strict=True)
    passes = [f"{rows / streams[name].n_rows:.2f} passes{f' of {name}' if name else ''}" for name, rows in given]
    batches = f"{clock.max_batches:,} batches of {plan.global_batch_size} rows"
    return [*lines, f"max_duration {max_duration} is {batches}, {', '.join(passes)}"]


def _rows(rows: Rows) -> str:
    if rows.tokens is None:
        return f"{rows.n_rows:,} rows"
    return f"{rows.n_rows:,} rows, {rows.tokens:,} tokens ({rows.trained_tokens:,} trained on)"
