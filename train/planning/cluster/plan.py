"""The plan of a run on a cluster, computed from the run's config: all tables, and whether the run fits."""

from collections.abc import Iterator

from rich.console import RenderableType

from data.base.console import logger
from data.base.errors import ConfigError
from data.base.sizes import format_bytes
from train.config.schema import TrainConfig
from train.planning.cluster import report
from train.planning.cluster.machines import Cluster, check_gpu
from train.planning.cluster.search import candidates, fastest, fits, least_nodes, smallest_changes
from train.planning.cluster.step_time import Assumptions, predict, run_flops
from train.planning.memory import memory_per_rank
from train.planning.peak import memory_parts
from train.planning.traffic import traffic

_SHOWN = 8
"""Maximum number of rows in a table of settings."""


def plan_tables(config: TrainConfig, cluster: Cluster, batches: int | None) -> Iterator[RenderableType]:
    """Yield the tables of the plan. batches: the length of the run, or None if unknown. Raises ConfigError if the GPU
    does not support the selected kernels."""
    if cluster.gpu is not None:
        check_gpu(config, cluster.gpu)
    yield report.parameters_table(config)
    flops = run_flops(config)
    yield report.flops_table(config, flops)
    # Without --gpu, the run may be intended for a CPU.
    devices = {"GPU": True} if cluster.gpu is not None else {"GPU": True, "CPU": False}
    parts = {name: memory_parts(config, cluster.ranks, gpu=gpu) for name, gpu in devices.items()}
    bounds = {name: memory_per_rank(config, cluster.ranks, gpu=gpu).total for name, gpu in devices.items()}
    have = cluster.gpu.n_bytes if cluster.gpu is not None else None
    yield report.memory_table(parts, bounds, have, cluster.ranks)
    sent = traffic(config, cluster.ranks)
    if sent:
        yield report.traffic_table(sent, cluster)
    if cluster.gpu is not None:
        yield report.time_table(config, cluster, predict(config, cluster, flops, sent), batches)
        yield report.assumptions_line(Assumptions())


def search_tables(config: TrainConfig, cluster: Cluster, *, always: bool) -> Iterator[RenderableType]:
    """If the config does not fit, yield a table of the smallest changes that make it fit. If `always` is set, yield a
    table of the fastest settings that fit."""
    if cluster.gpu is None:
        return
    fit = fits(config, cluster)
    if fit and not always:
        return
    found = candidates(config, cluster)
    if not fit:
        changes = smallest_changes(config, cluster, found, _SHOWN)
        if changes:
            yield report.changes_table(changes, cluster)
        nodes = least_nodes(config, cluster)
        if nodes is not None:
            yield f"without changes, the run fits on {nodes} nodes: --nodes {nodes}"
        elif not changes:
            yield "the run fits neither with other settings, nor on up to 64 times as many nodes"
    if always and (fast := fastest(found, cluster, _SHOWN)):
        yield report.search_table(fast, cluster)


def check_fit(config: TrainConfig, cluster: Cluster) -> None:
    """Raise ConfigError if train.py would reject the run on this GPU, because its memory is below the lower bound. Log
    a warning if the memory is below the prediction."""
    if cluster.gpu is None:
        return
    have = cluster.gpu.n_bytes
    least = memory_per_rank(config, cluster.ranks, gpu=True).total
    predicted = memory_parts(config, cluster.ranks, gpu=True).total
    gpu = f"{cluster.gpu.name} has {format_bytes(have, down=True)}"
    if least > have:
        raise ConfigError(f"the run does not fit: each rank needs at least {format_bytes(least)}, but {gpu}")
    if predicted > have:
        logger.warning(f"the run may not fit: each rank is predicted to need {format_bytes(predicted)}, but {gpu}")
