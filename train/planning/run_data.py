"""The opened data of a run and its row plan. Errors in the data are reported before the model is built."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from data.base.durations import Clock, parse_duration
from data.base.errors import ConfigError, under
from data.loading.opening import open_streams
from data.loading.rows import Rows
from data.loading.shard_cache import ShardCache
from data.mds.folder import MdsFolder
from data.mixing.resume import position
from data.mixing.row_plan import RowPlan
from data.mixing.streams import epoch_rows
from data.sources.source import Source
from data.tokenization.tokenizer import Tokenizer
from train.config.schema import TrainConfig


@dataclass(frozen=True, eq=False, kw_only=True)
class RunData:
    """The training data of a run."""

    streams: dict[str, Rows]
    """The streams by name. If the dataset is a single unnamed stream, its name is ""."""
    clock: Clock
    """Converts durations to batches."""
    plan: RowPlan
    cache: ShardCache


def open_data(
    config: TrainConfig,
    tokenizer: Tokenizer,
    state: Mapping[str, Any] | None = None,
    sources: Mapping[str, Source | MdsFolder] | None = None,
    *,
    check: Callable[[dict[str, str]], None] | None = None,
) -> RunData:
    """Open the training streams and plan their rows.

    sources: for each stream, the result of find_source. check: a function that is called with the fingerprint of each
    stream before the rows are planned. Raises ConfigError or DataError if the data cannot be used. Exceptions that
    check and plan_data raise are not caught.
    """
    with under("train_loader.dataset"):
        streams = open_streams(config.train_loader.dataset, tokenizer, sources)
    if check is not None:
        check({name: rows.fingerprint for name, rows in streams.items()})
    return plan_data(config, streams, state)


def plan_data(config: TrainConfig, streams: dict[str, Rows], state: Mapping[str, Any] | None = None) -> RunData:
    """Plan the rows of the streams, from the beginning or from the data state of a checkpoint.

    Raises ConfigError for stages that are not possible with the data, for a data state that is inconsistent with the
    config or the data, and for a cache_limit that is too low.
    """
    loader, size = config.train_loader, config.global_train_batch_size
    mixed = loader.stages or any(stream.proportion is not None for stream in (loader.dataset.streams or {}).values())
    if len(streams) > 1 and mixed and parse_duration(config.max_duration)[1] == "ep":
        raise ConfigError(
            f"is {config.max_duration!r}, but a mix of {len(streams)} streams by proportions has no "
            "epochs: use ba or tok",
            key="max_duration",
        )
    batch, rows = position(state) if state is not None else (0, 0)
    with under("train_loader"):
        clock = Clock(
            tokens_per_batch=size * config.max_seq_len,
            rows_per_batch=size,
            rows_per_epoch=math.ceil(sum(epoch_rows(loader.dataset, streams).values())),
        ).until(config.max_duration, batch=batch, rows=rows)
        plan = RowPlan(loader, streams, clock, seed=config.seed, resuming=state is not None)
        if state is not None:
            plan.resume(state)
        return RunData(streams=streams, clock=clock, plan=plan, cache=ShardCache(streams, plan, loader))
