"""The batches of a run's weights, read from record.jsonl, compared with a simulation batch by batch."""

from collections.abc import Iterable

import pytest

from data.base.errors import DataError
from data.lineage.batches import Batches
from tests.helpers.replayed_run import random_run, random_shapes
from tests.helpers.traced_runs import Simulated, simulate
from train.lineage.history import History, read_history


def run(seed: int) -> Simulated:
    return simulate(random_run(seed, random_shapes(seed, {"a": 50}), 1 + seed % 4, length=30), seed)


def history(run: Simulated) -> History:
    return read_history(run.lines, run.n_batches)


def batches(found: Batches) -> list[int]:
    return [batch for first, stop in found.ranges for batch in range(first, stop)]


def expected(weights: Iterable[tuple[int, int]]) -> list[int]:
    return sorted(batch for _, batch in weights)


@pytest.mark.parametrize("seed", range(12))
def test_the_batches_of_all_weights_are_those_of_the_simulation(seed: int) -> None:
    simulated = run(seed)
    found = history(simulated)
    assert batches(found.weights.batches) == expected(simulated.weights)
    assert {batch: batches(each.batches) for batch, each in found.saved.items()} == {
        batch: expected(weights) for batch, weights in simulated.saved.items()
    }
    for batch, weights in simulated.after.items():
        assert batches(found.after(batch).batches) == expected(weights)


@pytest.mark.parametrize("seed", range(12))
def test_each_step_is_trained_skipped_or_undone(seed: int) -> None:
    simulated = run(seed)
    found = history(simulated)
    trained = expected(simulated.weights)
    assert found.skipped == simulated.skipped
    for batch in range(simulated.n_batches):
        status = found.status(batch)
        assert (status == "trained") == (batch in trained)
        assert (status == "skipped") == (batch in simulated.skipped)
        assert status in ("trained", "skipped") or status.startswith("undone by the rollback at step ")


def test_the_simulation_has_skips_rollbacks_and_resumes() -> None:
    lines = [line for seed in range(12) for line in run(seed).lines]
    events = [line.get("event") for line in lines]
    assert min(events.count("rollback"), sum("skipped" in line for line in lines), events.count("start") - 12) > 10


def start(batch: int) -> dict:
    return {"batch": batch, "event": "start", "data_plan": {"segments": []}}


def test_a_run_that_continues_another_run_begins_at_its_first_batch() -> None:
    found = read_history([start(20)], 25)
    assert found.first_batch == 20
    assert batches(found.weights.batches) == [20, 21, 22, 23, 24]


def test_a_process_that_was_killed_before_it_noted_its_checkpoint() -> None:
    found = read_history([start(0), {"batch": 2, "skipped": True}, start(6)], 8)
    assert batches(found.weights.batches) == [0, 1, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "no line for the start"),
        ([{"batch": 0, "event": "start"}], "an earlier version started the run at step 1: only runs that"),
        ([start(0), {"batch": 9, "event": "rollback", "checkpoint": "ep0-ba4"}], "restored at step 10"),
        ([start(0), {"batch": 9, "skipped": True}, start(6)], "no line for the checkpoint at step 6"),
    ],
)
def test_an_incomplete_record_is_an_error(lines: list[dict], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_history(lines, 12)
