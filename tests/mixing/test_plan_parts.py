"""Unit tests of the parts of a RowPlan."""

import dataclasses

import numpy as np
import pytest

from data.base.durations import Clock
from data.base.errors import ConfigError
from data.mixing.checks import check_length, check_repeats
from data.mixing.mixture import BLOCK_ROWS, BatchRows, Mixture
from data.mixing.resume import DataState, check_past, read_state, resumed
from data.mixing.segments import Piece, Segment, Timeline
from data.mixing.stages import StageResolver
from data.mixing.streams import Streams
from tests.helpers.curriculum import THREE, TWO, Shape, loader, shapes, stage

CLOCK = Clock(tokens_per_batch=64, rows_per_batch=8, rows_per_epoch=603, max_batches=100)
RAMP = [stage("r", "50ba", {"a": 1.0}, {"b": 1.0}, lr_scale={"from": 1.0, "to": 0.5})]


def resolver(stages, names="abc", clock=CLOCK) -> StageResolver:
    return StageResolver(loader(stages, names), Streams(shapes(names), 8), clock)


def segment(size: int = 8) -> Segment:
    """Two streams, half of the rows from each, from batch 3 on."""
    piece = Piece(
        stage=0,
        n_batches=None,
        start=(0.5, 0.5),
        end=(0.5, 0.5),
        tokens_per_row=(8.0, 8.0),
        lr_start=1.0,
        lr_end=1.0,
    )
    return Segment(
        first_batch=3,
        first_row=3 * size,
        global_batch_size=size,
        counts=(2 * size, size),
        stages=({"name": ""},),
        ends=(None,),
        pieces=(piece,),
    )


def state(rows: int = 0, stages=THREE, names="abc") -> DataState:
    return DataState(
        rows=rows,
        max_seq_len=8,
        seed=0,
        shuffle=True,
        streams={name: shape.fingerprint for name, shape in shapes(names).items()},
        segments=(resolver(stages, names).first_segment(),),
    )


def test_stages_are_resolved_into_one_piece_each():
    first = resolver(THREE).first_segment()
    assert first.ends == (40, 60, None)
    assert [(piece.stage, piece.n_batches) for piece in first.pieces] == [(0, 40), (1, 20), (2, None)]
    assert first.pieces[0].start == pytest.approx((0.7, 0.3, 0))


def test_a_segment_that_begins_inside_a_ramp_begins_with_the_mix_of_the_run():
    parts = resolver(RAMP, "ab")
    (piece,) = parts.next_segment(25 * 8, (150, 50), parts.first_segment()).pieces
    assert (piece.n_batches, piece.start, piece.end) == (25, (0.5, 0.5), (0.0, 1.0))
    assert (piece.lr_start, piece.lr_end) == (0.75, 0.5)


def test_a_segment_that_begins_after_the_last_stage_continues_its_mix():
    parts = resolver(TWO)
    (piece,) = parts.next_segment(30 * 8, (56, 70, 114), parts.first_segment()).pieces
    assert (piece.stage, piece.n_batches, piece.start) == (1, None, piece.end)


@pytest.mark.parametrize("size", [8, BLOCK_ROWS, BLOCK_ROWS + 8])
def test_the_rows_of_batches_are_those_of_the_mixture(size):
    one = segment(size)
    orders = Streams({"a": Shape(5000), "b": Shape(70)}, 8).orders(0, shuffle=True)
    batches, mixture = BatchRows(one, orders), Mixture(orders, one.interleaving)
    for batch in (3, 4, 140, 3, 300):
        given = batches.rows(batch, 2, size - 1)
        assert np.array_equal(given, mixture.rows(batch * size + 2, batch * size + size - 1))


def test_a_timeline_finds_the_segment_of_a_batch():
    before = dataclasses.replace(segment(), first_batch=0, first_row=0, counts=(0, 0))
    timeline = Timeline((before, segment()))
    assert [timeline.segment(batch) is before for batch in (0, 2, 3, 90)] == [True, True, False, False]
    assert timeline.at(50) == (segment().pieces[0], 0.0)


def test_a_state_is_read_as_it_was_written():
    saved = state(50 * 8)
    assert read_state(saved.write()) == saved
    assert read_state(saved.write()).write() == saved.write()
    assert saved.batch == 50


def test_a_past_is_compared_without_a_config():
    check_past(state(50 * 8), state())
    for changes, text in (
        ({"seed": 3}, "seed was 0, now 3"),
        ({"max_seq_len": 16}, "max_seq_len was 8, now 16"),
        (
            {"streams": {"a": "f", "b": "g"}},
            r"rows of stream b .*\(fingerprint was f, is now g\); stream c was removed after",
        ),
    ):
        with pytest.raises(ConfigError, match=text):
            check_past(state(50 * 8), dataclasses.replace(state(), **changes))
    with pytest.raises(ConfigError, match="stage broad is completed; it was "):
        check_past(state(50 * 8), state(stages=TWO))


def test_a_future_that_is_the_same_needs_no_segment():
    saved = state(50 * 8)
    assert resumed(saved, resolver(THREE)) == (Timeline(saved.segments), None)
    timeline, change = resumed(saved, resolver([*THREE[:2], stage("anneal", None, {"a": 1.0})]))
    assert [one.first_batch for one in timeline.segments] == [0, 50]
    assert change is not None
    assert change.startswith("the data plan changes at batch 50: stage anneal: ")


def test_lengths_and_repeats_are_checked_on_a_segment():
    parts = resolver(TWO)
    first = parts.first_segment()
    assert check_length(parts.config.stages, first, 100)[0].startswith("the stages last 20 of the run's 100 batches")
    with pytest.raises(ConfigError, match="stages last 20 batches, but max_duration is 19"):
        check_length(parts.config.stages, first, 19)
    once = loader(TWO, a={"max_repeats": 1.0}).dataset
    check_repeats(once, parts.streams, first, CLOCK)
    with pytest.raises(ConfigError, match=r"b.max_repeats is 1, "):
        check_repeats(loader(TWO, b={"max_repeats": 1.0}).dataset, parts.streams, first, CLOCK)
