"""The rows of batches and the batches of rows, compared with a replay of the run batch by batch."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest

from data.lineage.batches import Batches
from data.lineage.run_rows import RunRows
from tests.helpers.curriculum import Shape, loader, make, stage
from tests.helpers.replayed_run import Process, Replayed, random_run, random_shapes

ROWS = {"a": 23, "b": 60, "c": 7}


@pytest.fixture(scope="module", params=range(6))
def run(request: pytest.FixtureRequest) -> Replayed:
    """One to three segments."""
    return random_run(request.param, random_shapes(request.param, ROWS), 1 + request.param % 3)


def lineage(run: Replayed) -> RunRows:
    return RunRows(run.data_state, run.shard_sizes)


def some_batches(n_batches: int) -> Batches:
    return Batches(((0, 3), (5, n_batches - 4), (n_batches - 2, n_batches)))


def test_the_rows_of_every_batch_are_those_of_the_replay(run: Replayed) -> None:
    rows = lineage(run)
    for batch, expected in enumerate(run.rows):
        s_N, id_N = rows.rows(batch)
        assert [(rows.names[s], row) for s, row in zip(s_N.tolist(), id_N.tolist(), strict=True)] == expected


def test_the_batches_of_every_row_are_those_of_the_replay(run: Replayed) -> None:
    rows, batches = lineage(run), some_batches(len(run.rows))
    trained = [batch for first, stop in batches.ranges for batch in range(first, stop)]
    for stream, name in enumerate(rows.names):
        index, found = rows.batches_of(stream, np.arange(ROWS[name]), batches)
        drawn = zip(found.tolist(), index.tolist(), strict=True)
        assert sorted(drawn) == sorted((b, row) for b in trained for s, row in run.rows[b] if s == name)
        assert found.tolist() == sorted(found.tolist())


def test_draws_are_counted_as_in_the_replay(run: Replayed) -> None:
    rows, batches = lineage(run), some_batches(len(run.rows))
    trained = [each for first, stop in batches.ranges for batch in range(first, stop) for each in run.rows[batch]]
    for stream, name in enumerate(rows.names):
        expected = np.bincount([row for s, row in trained if s == name], minlength=ROWS[name])
        assert rows.times_drawn(stream, batches).tolist() == expected.tolist()
        assert rows.n_draws(batches)[stream] == expected.sum()


def test_runs_have_several_segments_ramps_and_epochs() -> None:
    """Check that the replayed runs cover these cases."""
    runs = [random_run(seed, random_shapes(seed, ROWS), 1 + seed % 3) for seed in range(6)]
    assert max(len(run.data_state.segments) for run in runs) > 2
    assert any(piece.start != piece.end for run in runs for each in run.data_state.segments for piece in each.pieces)
    assert any(sum(stream == "c" for batch in run.rows for stream, _ in batch) > 3 * ROWS["c"] for run in runs)


def test_rows_without_shuffle() -> None:
    run = random_run(1, random_shapes(1, ROWS), 1)
    state = replace(run.data_state, seed=None, shuffle=False)
    rows = RunRows(state, run.shard_sizes)
    drawn = [[*zip(*(each.tolist() for each in rows.rows(batch)), strict=True)] for batch in range(8)]
    index, found = rows.batches_of(1, np.array([4]), Batches.of(0, 8))
    assert found.tolist() == [batch for batch, each in enumerate(drawn) if (1, 4) in each]
    assert set(index.tolist()) <= {0}


def test_a_row_a_billion_rows_into_a_run_is_found_in_less_than_a_second() -> None:
    shapes = {name: Shape(400_000_000, 400_000_000 * 900, shard_rows=8192) for name in "ab"}
    stages = [
        stage("one", "400000ba", {"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 1.0}),
        stage("two", None, {"a": 1.0, "b": 1.0}),
    ]
    plan = make(loader(stages, "ab"), shapes, 1_000_000, 2048)
    plan_rows = plan.rows(488_300, 0, 2048)
    process = Process(0, 0, json.loads(plan.state(10**9)["position"]), [])
    began = time.process_time()
    rows = lineage(Replayed([process], shapes))
    s_N, id_N = rows.rows(488_300)
    assert 488_300 * 2048 > 10**9
    assert np.array_equal(s_N, plan_rows[0])
    assert np.array_equal(id_N, plan_rows[1])
    index, found = rows.batches_of(int(s_N[7]), id_N[7:8], Batches.of(0, 500_000))
    assert 488_300 in found.tolist()
    assert set(index.tolist()) == {0}
    assert time.process_time() - began < 1


def test_a_set_of_batches() -> None:
    batches = Batches.of(0, 4).followed_by(4, 6).followed_by(9, 9).followed_by(8, 10)
    assert batches.ranges == ((0, 6), (8, 10))
    assert len(batches) == 8
    assert batches.between(5, 9).ranges == ((5, 6), (8, 9))
    assert np.flatnonzero(batches.contain(np.arange(12))).tolist() == [*range(6), 8, 9]
    assert not Batches().contain(np.arange(3)).any()
