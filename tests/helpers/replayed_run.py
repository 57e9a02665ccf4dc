"""Runs that are replayed batch by batch: random mixes, ramps and epochs, resumed with changed stages."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from data.config.loader import StageConfig
from data.mixing.resume import DataState, read_state
from data.mixing.row_plan import RowPlan
from tests.helpers.curriculum import Shape, loader, make, sequence, stage


@dataclass(frozen=True)
class Replayed:
    """The (stream, row) pairs of each batch of a run, and the data state from which lineage is computed."""

    rows: list[list[tuple[str, int]]]
    state: str
    shapes: Mapping[str, Shape]

    @property
    def data_state(self) -> DataState:
        return read_state({"position": self.state})

    @property
    def shard_sizes(self) -> dict[str, np.ndarray]:
        return {name: shape.shard_sizes for name, shape in self.shapes.items()}


def random_run(seed: int, n_rows: Mapping[str, int], n_segments: int, length: int = 20) -> Replayed:
    """A run of about n_segments * length batches. Each segment after the first is a resume with other stages."""
    rng = np.random.default_rng(seed)
    shapes = {name: Shape(n, n * int(rng.integers(5, 200)), shard_rows=5) for name, n in n_rows.items()}
    names, size = "".join(n_rows), int(rng.integers(3, 9))
    stages, rows, state = list[StageConfig](), list[list[tuple[str, int]]](), ""
    for number in range(n_segments):
        # The stage that the run is in may change its end, and all later stages are new.
        stages = stages[: number + 1] if number else []
        stages += [_random_stage(rng, names, f"{seed}.{number}.{n}", length) for n in range(2)]
        plan = make(loader(stages, names), shapes, 10 * n_segments * length, size, seed)
        begin = plan.resume({"position": state}) if state else 0
        end = begin + int(rng.integers(length // 2, length))
        rows = rows[:begin] + [sequence(plan, batch, batch + 1) for batch in range(begin, end)]
        state = plan.state(end * size)["position"]
    return Replayed(rows, state, shapes)


def _random_stage(rng: np.random.Generator, names: str, name: str, length: int) -> StageConfig:
    start, end = ({each: float(rng.integers(0, 4)) + (each == names[0]) for each in names} for _ in range(2))
    duration = f"{rng.integers(length // 2, length)}ba"
    return stage(name, duration, start, end if rng.random() < 0.6 else None)
