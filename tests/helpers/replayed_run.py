"""Runs that are replayed batch by batch: random mixes, ramps and epochs, resumed with changed stages."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.config.loader import StageConfig
from data.mixing.resume import DataState, read_state
from tests.helpers.curriculum import Shape, loader, make, sequence, stage

Rows = list[list[tuple[str, int]]]
"""For each batch, the (stream, row) pairs."""


@dataclass(frozen=True)
class Process:
    """A process of the run, which trains the batches begin..end-1."""

    begin: int
    end: int
    plan: dict[str, Any]
    """The data plan that the process adds to record.jsonl."""
    rows: Rows
    """The rows of all batches before `end`, including those of earlier processes."""


@dataclass(frozen=True)
class Replayed:
    """The processes of a run. Each process after the first resumes from an earlier batch, with other stages."""

    processes: list[Process]
    shapes: Mapping[str, Shape]

    @property
    def rows(self) -> Rows:
        return self.processes[-1].rows

    @property
    def data_state(self) -> DataState:
        return state_of(self.processes[-1].plan)

    @property
    def shard_sizes(self) -> dict[str, np.ndarray]:
        return {name: shape.shard_sizes for name, shape in self.shapes.items()}


def state_of(plan: Mapping[str, Any]) -> DataState:
    return read_state({"position": json.dumps(plan)})


def random_run(seed: int, shapes: Mapping[str, Shape], n_processes: int, length: int = 20) -> Replayed:
    """A run of up to n_processes * length batches."""
    rng = np.random.default_rng(seed)
    names, size = "".join(shapes), int(rng.integers(3, 9))
    stages, processes, state = list[StageConfig](), list[Process](), ""
    for number in range(n_processes):
        # The stage that the run is in may change its end, and all later stages are new.
        stages = stages[: number + 1] if number else []
        stages += [_random_stage(rng, names, f"{seed}.{number}.{n}", length) for n in range(2)]
        plan = make(loader(stages, names), shapes, 10 * n_processes * length, size, seed)
        begin = plan.resume({"position": state}) if state else 0
        end = begin + int(rng.integers(length // 2, length))
        earlier = processes[-1].rows[:begin] if processes else []
        rows = earlier + [sequence(plan, batch, batch + 1) for batch in range(begin, end)]
        processes.append(Process(begin, end, json.loads(plan.state(begin * size)["position"]), rows))
        state = plan.state(int(rng.integers(begin + 3, end + 1)) * size)["position"]
    return Replayed(processes, shapes)


def _random_stage(rng: np.random.Generator, names: str, name: str, length: int) -> StageConfig:
    start, end = ({each: float(rng.integers(0, 4)) + (each == names[0]) for each in names} for _ in range(2))
    duration = f"{rng.integers(length // 2, length)}ba"
    return stage(name, duration, start, end if rng.random() < 0.6 else None)


def random_shapes(seed: int, n_rows: Mapping[str, int]) -> dict[str, Shape]:
    rng = np.random.default_rng(seed)
    return {name: Shape(n, n * int(rng.integers(5, 200)), shard_rows=5) for name, n in n_rows.items()}
