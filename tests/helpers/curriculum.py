"""Streams without data, and row plans over them."""

import dataclasses
import math

import numpy as np

from data.base.durations import Clock
from data.config.dataset import DatasetConfig, StreamConfig
from data.config.loader import DataLoaderConfig, StageConfig
from data.mixing.interleaving import Stage
from data.mixing.row_plan import RowPlan


@dataclasses.dataclass(frozen=True)
class Shape:
    """A stream whose rows are never read."""

    n_rows: int
    tokens: int | None = None
    fingerprint: str = "f"
    shard_rows: int = 16

    @property
    def shard_sizes(self) -> np.ndarray:
        whole, rest = divmod(self.n_rows, self.shard_rows)
        return np.array([self.shard_rows] * whole + [rest] * (rest > 0))


def loader(stages=(), names="abc", **streams):
    """Return a config with these streams. `a={"proportion": 1.0}` sets keys of stream a."""
    configs = {name: StreamConfig(local=name, **{"max_repeats": 1000.0} | streams.get(name, {})) for name in names}
    dataset = DatasetConfig(streams=configs, max_seq_len=8)
    return DataLoaderConfig(name="text", dataset=dataset, stages=list(stages))


def make(config, shapes, batches: int | str = 100, size: int = 8, seed: int = 0) -> RowPlan:
    n_rows = sum(shape.n_rows for shape in shapes.values())
    clock = Clock(tokens_per_batch=size * 8, rows_per_batch=size, rows_per_epoch=n_rows)
    return RowPlan(config, shapes, clock.until(batches if isinstance(batches, str) else f"{batches}ba"), seed=seed)


def shapes(names="abc", rows=(70, 33, 500)):
    return {name: Shape(n) for name, n in zip(names, rows, strict=False)}


def sequence(plan: RowPlan, start: int, stop: int, ranks: int = 1) -> list[tuple[str, int]]:
    """Return (stream, row) for each row of the batches, merged from the ranks."""
    part = plan.global_batch_size // ranks
    rows = [plan.rows(n, r * part, (r + 1) * part) for n in range(start, stop) for r in range(ranks)]
    return [(plan.names[s], i) for ss, ids in rows for s, i in zip(ss.tolist(), ids.tolist(), strict=True)]


def stage(name, duration, mix, to=None, lr_scale=1.0):
    return StageConfig(
        name=name, duration=duration, proportions=mix if to is None else {"from": mix, "to": to}, lr_scale=lr_scale
    )


THREE = (
    stage("broad", "40ba", {"a": 7.0, "b": 3.0}),
    stage("shift", "20ba", {"a": 0.7, "b": 0.3}, {"a": 0.2, "b": 0.3, "c": 0.5}, lr_scale={"from": 1.0, "to": 0.5}),
    stage("anneal", None, {"c": 0.8, "b": 0.2}, lr_scale=0.5),
)


def random_stages(rng, n_streams):
    def mix():
        shares = rng.random(n_streams) ** 3 * (rng.random(n_streams) > 0.3)
        shares[rng.integers(n_streams)] += 0.01
        return shares / shares.sum()

    stages, mixed = [], mix()
    for _ in range(rng.integers(1, 5)):
        start = mix() if rng.random() < 0.5 else mixed
        mixed = start if rng.random() < 0.5 else mix()
        stages.append(Stage(float(rng.integers(1, 300)), start, mixed))
    return stages if rng.random() < 0.6 else [*stages, Stage(math.inf, mixed, mixed)]


TWO = (stage("one", "10ba", {"a": 0.7, "b": 0.3}), stage("two", "10ba", {"c": 0.37, "b": 0.63}, lr_scale=0.5))
