"""The plan of a run whose data has been opened, in a form for the console."""

import os
from functools import partial

from rich.console import Console, RenderableType

from train.checkpoint.saving.space import check_space, count_saves
from train.config.schema import TrainConfig
from train.distributed.first_rank import on_first_rank
from train.planning.cluster.machines import Cluster
from train.planning.cluster.plan import plan_tables
from train.planning.summary import checkpoints_line, snapshot_line
from train.planning.tables import stages_table, streams_table
from train.run.inputs import Inputs


def plan_of(config: TrainConfig, inputs: Inputs, world_size: int) -> list[RenderableType]:
    """The output of scripts/plan.py for this data and number of ranks, as a list of lines and rich tables."""
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cluster = Cluster(nodes=max(world_size // local_ranks, 1), gpus=local_ranks)
    shown: list[RenderableType] = [*plan_tables(config, cluster, inputs.max_batches)]
    if inputs.folder is not None:
        if config.save_async:
            shown.append(snapshot_line(config, world_size, local_ranks))
        shown.append(checkpoints_line(config, inputs.folder, world_size, inputs.data.clock))
    return [*shown, streams_table(inputs.data), stages_table(inputs.data, config)]


def check_room(config: TrainConfig, inputs: Inputs, world_size: int) -> None:
    """Raise ConfigError on every rank if the save folder has no space for a checkpoint. Every rank must call this."""
    if inputs.folder is not None:
        n_saves = count_saves(config, inputs.data.clock)
        on_first_rank(partial(check_space, config, inputs.folder, n_saves, world_size=world_size))


def show(console: Console, shown: list[RenderableType]) -> None:
    for each in shown:
        console.print(each, markup=False, soft_wrap=isinstance(each, str))
