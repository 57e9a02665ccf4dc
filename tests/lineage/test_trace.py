"""Questions about the documents of a run, compared with a replay of the run batch by batch."""

import json
from pathlib import Path

import pytest

from data.base.errors import ConfigError
from data.lineage.references import parse_reference
from tests.helpers.traced_runs import Traced, write_traced_run
from train.lineage.opening import open_run
from train.lineage.questions import by_license, rows_of_steps, seen, trace
from train.lineage.run import TracedRun
from train.lineage.tables import trace_tables

N_ROWS = {"a": 30, "b": 80, "c": 11}


@pytest.fixture(scope="module", params=range(4))
def traced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Traced:
    return write_traced_run(tmp_path_factory.mktemp("traced"), request.param, N_ROWS, 2 + request.param % 2)


@pytest.fixture(scope="module")
def run(traced: Traced) -> TracedRun:
    return open_run(str(traced.folder))


def test_the_documents_of_all_steps(traced: Traced, run: TracedRun) -> None:
    found = [*rows_of_steps(run, 1, traced.simulated.n_batches)]
    expected = [(n, *each) for n, rows in enumerate(traced.replayed.rows, start=1) for each in rows]
    assert [(each.step, each.stream, each.row) for each in found] == expected
    assert all(each.documents == traced.documents(each.stream, each.row) for each in found)
    trained = {batch + 1 for _, batch in traced.simulated.weights}
    assert {each.step for each in found if each.status == "trained"} == trained


def test_the_steps_and_checkpoints_of_every_document(traced: Traced, run: TracedRun) -> None:
    every = {d for name, n in N_ROWS.items() for row in range(n) for d in traced.documents(name, row)}
    texts = sorted(every)[:: len(every) // 60]
    found = trace(run, [parse_reference(text) for text in texts])
    saw = {
        batch: {d for _, stream, row in traced.rows(weights) for d in traced.documents(stream, row)}
        for batch, weights in traced.simulated.saved.items()
    }
    drawn = [(n, *each) for n, rows in enumerate(traced.replayed.rows, start=1) for each in rows]
    trained = {batch + 1 for _, batch in traced.simulated.weights}
    for text, each in zip(texts, found.found, strict=True):
        draws = [(n, stream, row) for n, stream, row in drawn if text in traced.documents(stream, row)]
        assert sorted((draw.step, draw.stream, draw.row) for draw in each.draws) == sorted(draws)
        assert each.documents == 1
        assert each.trained == sorted({n for n, *_ in draws if n in trained})
    assert [(each.step, each.references) for each in found.checkpoints] == [
        (batch, len(saw[batch].intersection(texts))) for batch in sorted(saw)
    ]
    without = [batch for batch in sorted(saw) if not saw[batch].intersection(texts)]
    assert (found.newest_without and found.newest_without.step) == (without[-1] if without else None)


def test_the_newest_checkpoint_that_never_saw_a_document(traced: Traced, run: TracedRun) -> None:
    saw = {
        batch: {d for _, stream, row in traced.rows(weights) for d in traced.documents(stream, row)}
        for batch, weights in traced.simulated.saved.items()
    }
    newest = set()
    for text in sorted({d for row in range(N_ROWS["b"]) for d in traced.documents("b", row)})[::5]:
        without = [batch for batch in sorted(saw) if text not in saw[batch]]
        found = trace(run, [parse_reference(text)]).newest_without
        assert (found and Path(found.checkpoint).name) == (f"ep0-ba{without[-1]}" if without else None)
        newest.add(without[-1] if without else None)
    assert len(newest) > 1


def test_all_documents_of_a_file_and_a_document_that_is_not_in_the_rows(traced: Traced, run: TracedRun) -> None:
    found = trace(run, [parse_reference("/in/a/file0.jsonl"), parse_reference("/in/a/file0.jsonl:5")])
    whole, missing = found.found
    documents = {d for row in range(N_ROWS["a"]) for d in traced.documents("a", row) if "file0" in d}
    assert (whole.documents, missing.documents) == (len(documents), 0)
    assert whole.trained
    assert not missing.draws
    assert "not found in the rows: 1 of 2 (/in/a/file0.jsonl:5): " in "\n".join(trace_tables(found))


@pytest.mark.parametrize("part", [0.3, 0.7, 1.0])
def test_streams_files_and_licenses_are_counted_up_to_any_step(traced: Traced, run: TracedRun, part: float) -> None:
    step = round(traced.simulated.n_batches * part)
    rows = traced.rows(traced.simulated.after[step])
    for each in seen(run, step):
        mine = [row for _, stream, row in rows if stream == each.stream]
        assert each.rows == len(mine)
        assert each.epochs == len(mine) / N_ROWS[each.stream]
        pieces = [piece for row in mine for piece in traced.documented[each.stream].rows[row]]
        for number, file in enumerate(each.files):
            of_file = [piece for piece in pieces if piece[0] == number]
            assert file.pieces == len(of_file)
            assert file.documents == len({position for _, position, _ in of_file})
            assert file.tokens == sum(length for *_, length in of_file)
    total = by_license(seen(run, step))["unknown"]
    lengths = [length for _, s, row in rows for *_, length in traced.documented[s].rows[row]]
    assert (total["pieces"], total["tokens"]) == (len(lengths), sum(lengths))


def test_several_plans_and_a_superseded_checkpoint_are_traced(traced: Traced, run: TracedRun) -> None:
    """Check that the simulated runs cover these cases."""
    assert len(traced.replayed.data_state.segments) > 1
    assert len({json.dumps(each.trained.plan["segments"]) for each in run.checkpoints}) > 1


@pytest.mark.parametrize("steps", [(0, 3), (5, 4), (1, 10_000)])
def test_steps_that_do_not_exist_are_an_error(run: TracedRun, steps: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=f"is {steps[0]}:{steps[1]}, but the run has completed the steps 1 to"):
        next(rows_of_steps(run, *steps))
    with pytest.raises(ConfigError, match="--until is 10000"):
        seen(run, 10_000)
