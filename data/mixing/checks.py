"""Errors and notes about a config and the segment (see segments.py) to which its stages were converted."""

import math

from data.base.durations import Clock
from data.base.errors import ConfigError, DataError
from data.config.dataset import DatasetConfig
from data.config.loader import DataLoaderConfig, StageConfig
from data.mixing.segments import Segment
from data.mixing.streams import Streams


def check_size(streams: Streams, global_batch_size: int) -> None:
    """Raises DataError if all streams together have fewer rows than one global batch."""
    n_rows = sum(shape.n_rows for shape in streams.shapes.values())
    if n_rows < global_batch_size:
        raise DataError(
            f"the dataset has {n_rows} rows of {streams.max_seq_len} tokens, but one global batch has "
            f"{global_batch_size} rows: set global_train_batch_size={n_rows}, or a smaller value that is divisible by "
            "the number of ranks; or set a smaller max_seq_len, or add data"
        )


def normalized_proportions(config: DataLoaderConfig) -> list[str]:
    """Notes about proportions that do not add up to 1."""
    mixes = {f"stages[{n}].proportions": mix for n, stage in enumerate(config.stages) for mix in stage.mixes()}
    streams = config.dataset.streams or {}
    mixes["the streams' proportions"] = {name: stream.proportion or 0.0 for name, stream in streams.items()}
    return [
        f"{key} add up to {total:g}, and are divided by this sum"
        for key, mix in mixes.items()
        if (total := sum(mix.values())) and not math.isclose(total, 1, abs_tol=1e-6)
    ]


def check_length(stages: list[StageConfig], segment: Segment, max_batches: int | None) -> list[str]:
    """Notes about stages that end before the run ends. Raises ConfigError for stages that the run would not
    complete."""
    run, ends = max_batches, segment.ends
    if not stages or run is None:
        return []
    is_open, last = ends[-1] is None, stages[-1].name
    total = max((end for end in ends if end is not None), default=0)
    if total > run or (is_open and total == run):
        raise ConfigError(
            f"stages last {total:,} batches, but max_duration is {run:,}, so stage {last} would not be "
            "completed: shorten the stages, increase max_duration, or, for a short test, set train_loader.stages=[]"
        )
    if total < run and not is_open:
        return [
            f"the stages last {total:,} of the run's {run:,} batches: the rest of the run uses the final mix of {last}"
        ]
    return []


def check_repeats(dataset: DatasetConfig, streams: Streams, segment: Segment, clock: Clock) -> None:
    """Raises ConfigError if the rows of a stream would be drawn more often than max_repeats, repeat or choose
    allows."""
    if clock.max_batches is None or clock.counts_epochs:
        return
    end = max(clock.max_batches, segment.first_batch)
    counts, planned = segment.counts_before(end).tolist(), segment.planned_before(end).tolist()
    configs = dataset.streams or {"": dataset}
    shares = segment.largest_shares()
    for (name, shape), drawn, due, share in zip(streams.shapes.items(), counts, planned, shares, strict=True):
        config = configs[name]
        epochs = drawn / shape.n_rows
        allowed = max(config.max_repeats, config.repeat or 0, (config.choose or 0) / shape.n_rows)
        # If an epoch ends inside a batch, the stage may include the whole batch, so the stream's part of one batch is
        # not counted.
        whole = (due - share * segment.global_batch_size + 1e-6) / shape.n_rows
        if whole >= allowed:
            key = f"streams.{name}.max_repeats" if name else "max_repeats"
            raise ConfigError(
                f"dataset.{key} is {config.max_repeats:g}, but in {end:,} batches of {segment.global_batch_size} rows "
                f"the run draws {drawn:,} rows from {f'stream {name}' if name else 'the dataset'}, which has only "
                f"{shape.n_rows:,} ({epochs:.2f} epochs are needed): set "
                f"train_loader.dataset.{key}={math.floor(whole) + 1}, or "
                + (
                    "lower the share of the stream"
                    if name
                    else f"max_duration={math.ceil(epochs)}ep (an epoch draws each row once)"
                )
            )
