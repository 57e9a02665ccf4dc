"""A run resumed from its real checkpoints on any number of ranks and any mesh has the rows, losses and weights of one
rank that never stopped. `pytest -m proof tests/distributed/test_elastic.py` prints a table of all pairs."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tests.helpers.exact_run import ExactRun, exact_runs
from tests.helpers.expert_parallel import difference
from tests.helpers.ranks import run_ranks
from tests.helpers.toy_run import write_toy_run
from train.checkpoint.save_folder import checkpoints

pytestmark = pytest.mark.ranks

_HYBRID = "sharding_strategy: HYBRID_SHARD, data_parallel_replicate_degree: 2"
MESHES = {
    "1 rank": (1, "null"),
    "1 rank, FULL_SHARD": (1, "{}"),
    "2 ranks, DDP": (2, "null"),
    "2 ranks, FULL_SHARD": (2, "{}"),
    "EP 2": (2, "{expert_parallel_degree: 2}"),
    "4 ranks, FULL_SHARD": (4, "{}"),
    "4 ranks, HYBRID_SHARD": (4, f"{{{_HYBRID}}}"),
    "EP 4": (4, "{expert_parallel_degree: 4}"),
    "EP 2 x 2 shards": (4, "{expert_parallel_degree: 2}"),
    "2 replicas of EP 2": (4, f"{{{_HYBRID}, expert_parallel_degree: 2}}"),
}
"""Number of ranks, and fsdp_config."""
OPTIMIZERS = {
    "adamw": "optimizer={name: adamw, lr: 3.0e-3, weight_decay: 0.1}",
    "lion": "optimizer={name: decoupled_lionw, lr: 1.0e-3, weight_decay: 1.0e-4}",
}
HALF, WHOLE = 4, 8
"""Number of batches before the checkpoint, and in total."""


class Pair(NamedTuple):
    start: str
    end: str


@dataclass(frozen=True)
class Resumed:
    rows_equal: bool
    losses: float
    """The largest relative difference."""
    weights: float

    @property
    def worst(self) -> float:
        return max(self.losses, self.weights)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_checkpoint_is_resumed_at_another_degree_of_expert_parallelism(tmp_path: Path) -> None:
    meshes = ["1 rank, FULL_SHARD", "EP 2"]
    pairs = [Pair(start, end) for start in meshes for end in meshes]
    for pair, resumed in resumed_at(tmp_path, "adamw", pairs).items():
        assert resumed.rows_equal, pair
        assert resumed.worst <= 1e-10, (pair, resumed)


@pytest.mark.proof
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_checkpoint_is_resumed_on_every_mesh(
    tmp_path: Path, optimizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = resumed_at(tmp_path, optimizer, [Pair(start, end) for start in MESHES for end in MESHES])
    with capsys.disabled():
        Console(width=120).print(table(found, optimizer))
    assert all(resumed.rows_equal and resumed.worst <= 1e-10 for resumed in found.values())


def resumed_at(folder: Path, optimizer: str, pairs: list[Pair]) -> dict[Pair, Resumed]:
    """Four steps on the first mesh and four on the second, compared with eight steps on one rank."""
    path, same = write_toy_run(folder), [OPTIMIZERS[optimizer]]
    straight = [*same, "fsdp_config=null", f"max_duration={WHOLE}ba", "save_folder=null"]
    (expected,) = run_ranks(exact_runs, 1, path, [straight])[0]

    starts = dict.fromkeys(pair.start for pair in pairs)
    names = {mesh: f"start{number}" for number, mesh in enumerate(starts)}
    for size in (1, 2, 4):
        _runs(path, size, [[*same, *_half(mesh, names[mesh])] for mesh in starts if MESHES[mesh][0] == size])
    found = {}
    for size in (1, 2, 4):
        its = [pair for pair in pairs if MESHES[pair.end][0] == size]
        ends = _runs(path, size, [[*same, *_rest(pair, folder / names[pair.start])] for pair in its])
        found |= {pair: _compared(end, expected) for pair, end in zip(its, ends, strict=True)}
    return {pair: found[pair] for pair in pairs}


def _runs(path: str, size: int, overrides: list[list[str]]) -> list[ExactRun]:
    if not overrides:
        return []
    return run_ranks(exact_runs, size, path, overrides, timeout=60 + 20 * len(overrides))[0]


def _half(mesh: str, name: str) -> list[str]:
    return [f"fsdp_config={MESHES[mesh][1]}", f"run_name={name}", f"max_duration={HALF}ba", f"save_interval={HALF}ba"]


def _rest(pair: Pair, save_folder: Path) -> list[str]:
    checkpoint = checkpoints(save_folder)[-1]
    assert checkpoint.name == f"ep0-ba{HALF}"
    return [
        *[f"fsdp_config={MESHES[pair.end][1]}", f"max_duration={WHOLE}ba"],
        *[f"load_path={checkpoint}", "run_name=rest", "save_folder=null"],
    ]


def _compared(resumed: ExactRun, expected: ExactRun) -> Resumed:
    batches = list(range(HALF + 1, WHOLE + 1))
    assert list(resumed.losses) == list(resumed.rows) == batches
    losses = {"losses": _series(resumed, batches)}, {"losses": _series(expected, batches)}
    return Resumed(
        rows_equal=all(torch.equal(resumed.rows[batch], expected.rows[batch]) for batch in batches),
        losses=difference(*losses),
        weights=difference(resumed.weights, expected.weights),
    )


def _series(run: ExactRun, batches: list[int]) -> Tensor:
    return torch.tensor([run.losses[batch] for batch in batches], dtype=torch.float64)


def table(found: dict[Pair, Resumed], optimizer: str) -> Table:
    title = f"{optimizer}: {HALF} steps, checkpoint, {WHOLE - HALF} more steps, against {WHOLE} steps on one rank"
    shown = Table(title=title, title_justify="left")
    for name in ("from", "to", "rows equal"):
        shown.add_column(name)
    for name in ("losses", "weights"):
        shown.add_column(name, justify="right")
    for pair, resumed in found.items():
        rows = "yes" if resumed.rows_equal else "NO"
        shown.add_row(*pair, rows, f"{resumed.losses:.1e}", f"{resumed.weights:.1e}")
    return shown
