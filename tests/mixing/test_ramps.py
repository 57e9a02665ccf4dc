"""Ramps are linear in tokens for any number of tokens per row; older checkpoints with ramps linear in rows are read."""

import dataclasses
import json
import math
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data.config.loader import EpochsOf
from data.inspection.planned_shares import curves
from data.mixing.interleaving import Interleaving, Stage
from data.mixing.row_plan import RowPlan
from data.mixing.segments import Segment
from tests.helpers.curriculum import THREE, TWO, Shape, loader, make, random_stages, sequence, shapes, stage
from train.planning.tables import stages_table

VERSION_2 = json.loads((Path(__file__).parent / "data_positions_version_2.json").read_text())
"""Plans of the code that wrote version 2: its states, and the streams of the rows from their last segment's first row
on (of `billion`: from the checkpoint on), as letters; its counts and plan at the checkpoint."""


def counted(per_row=(20, 100, 7), rows=(70, 33, 500)):
    """Streams a, b, ... with these numbers of tokens per row."""
    return {name: Shape(n, n * m) for name, n, m in zip("abcdefgh", rows, per_row, strict=False)}


def random_tokens(rng, n_streams):
    return np.exp(rng.uniform(0, math.log(1000), n_streams))


class ExactStage:
    """A stage in fractions, by the definition: stream s has contributed (a t + c t^2) / m rows by token t of it."""

    def __init__(self, one: Stage) -> None:
        tokens = np.ones(len(one.start)) if one.tokens_per_row is None else one.tokens_per_row
        self.m = [Fraction(m) for m in tokens.tolist()]
        self.a, self.b = (self.of_tokens(mix) for mix in (one.start, one.end))
        per_token = sum((a + b) / (2 * m) for a, b, m in zip(self.a, self.b, self.m, strict=True))
        self.n_tokens = Fraction(one.n_rows) / per_token

    def of_tokens(self, shares):
        tokens = [Fraction(share) * m for share, m in zip(shares.tolist(), self.m, strict=True)]
        return [part / sum(tokens) for part in tokens]

    def rows(self, stream, t):
        a, b = self.a[stream], self.b[stream]
        return (a * t + (b - a) * t * t / (2 * self.n_tokens)) / self.m[stream]

    def all_rows(self, t):
        return sum(self.rows(stream, t) for stream in range(len(self.m)))

    def due(self, stream, rows):
        """The row of the stage at which the stream has contributed so many, found by halving."""
        low, high = 0, 2**50
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.rows(stream, self.n_tokens * middle / 2**50) < rows else (low, middle)
        return self.all_rows(self.n_tokens * low / 2**50)


def with_tokens(rng, stages):
    """The stages without an open last one, with rows of the streams up to 1,000 times as long as others'."""
    tokens = random_tokens(rng, len(stages[0].start))
    closed = [one for one in stages if math.isfinite(one.n_rows)]
    return [dataclasses.replace(one, tokens_per_row=tokens) for one in closed]


@pytest.mark.parametrize("seed", range(12))
def test_the_merge_is_that_of_an_exact_replay(seed):
    """The order of rows is that of their due times in fractions; the plan at any token is the definition's."""
    rng = np.random.default_rng(seed)
    n_streams = int(rng.integers(1, 8))
    stages = with_tokens(rng, random_stages(rng, n_streams))[:2]
    stages = [dataclasses.replace(one, n_rows=min(one.n_rows, 60.0)) for one in stages]
    merge = Interleaving(stages)
    due: list[tuple[float, int, int]] = []
    taken, first = [Fraction(0)] * n_streams, Fraction(0)
    for one in map(ExactStage, stages):
        after = [taken[s] + one.rows(s, one.n_tokens) for s in range(n_streams)]
        for part in rng.random(5).tolist():
            t = one.n_tokens * Fraction(part)
            planned = [float(taken[s] + one.rows(s, t)) for s in range(n_streams)]
            assert merge.planned(float(first + one.all_rows(t))) == pytest.approx(planned, abs=1e-9)
        for s in range(n_streams):
            rows = range(math.ceil(taken[s] - Fraction(1, 2)), math.ceil(after[s] - Fraction(1, 2)))
            due += [(float(first + one.due(s, k + Fraction(1, 2) - taken[s])), s, k) for k in rows]
        taken, first = after, first + one.all_rows(one.n_tokens)
    due.sort()
    s_N, k_N = merge.rows(0, len(due) - n_streams)
    when = {(s, k): x for x, s, k in due}
    found = [when[row] for row in zip(s_N.tolist(), k_N.tolist(), strict=True)]
    assert found == pytest.approx([x for x, _, _ in due[: len(found)]], abs=1e-9)
    assert len(set(zip(s_N.tolist(), k_N.tolist(), strict=True))) == len(found)


@pytest.mark.parametrize("seed", range(25))
def test_any_cut_gives_the_same_rows_within_the_bound(seed):
    rng = np.random.default_rng(seed)
    n_streams = int(rng.integers(1, 31))
    stages = with_tokens(rng, random_stages(rng, n_streams)) or [
        Stage(50.0, np.full(n_streams, 1 / n_streams), np.eye(n_streams)[0], random_tokens(rng, n_streams))
    ]
    merge = Interleaving(stages)
    s_N, k_N = merge.rows(0, 1500)
    largest_S = np.max([np.maximum(one.start, one.end) for one in stages], axis=0)
    for _ in range(20):
        start, stop = np.sort(rng.integers(0, 1501, 2)).tolist()
        part = merge.rows(start, stop)
        assert np.array_equal(part[0], s_N[start:stop])
        assert np.array_equal(part[1], k_N[start:stop])
        counts_S = np.bincount(s_N[:start], minlength=n_streams)
        assert merge.counts(start).tolist() == counts_S.tolist()
        assert (abs(counts_S - merge.planned(start)) <= 0.5 + largest_S * n_streams / 2 + 1e-9).all()
        assert merge.planned(start).sum() == pytest.approx(start, abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_a_billion_rows_into_a_ramp_the_plan_is_exact(seed):
    rng = np.random.default_rng(seed)
    mixes = rng.random((2, 100)) ** 3 * (rng.random((2, 100)) > 0.2)
    mixes /= mixes.sum(axis=1, keepdims=True)
    one = Stage(1.4e9, mixes[0], mixes[1], random_tokens(rng, 100))
    merge, exact = Interleaving([one]), ExactStage(one)
    t = exact.n_tokens * 5 / 7
    at = exact.all_rows(t)
    assert merge.planned(float(at)) == pytest.approx([float(exact.rows(s, t)) for s in range(100)], abs=1e-5)
    for place in (int(at), 1, 1_399_999_000):
        whole = merge.rows(place, place + 2048)
        halves = [merge.rows(place + half, place + half + 1024) for half in (0, 1024)]
        counts = merge.counts(place)
        assert counts.sum() == place
        for number in (0, 1):
            assert np.array_equal(whole[number], np.concatenate([half[number] for half in halves]))
        for stream in range(100):
            rows = whole[1][whole[0] == stream]
            assert rows.tolist() == list(range(counts[stream], counts[stream] + len(rows)))


def test_with_equal_tokens_per_row_ramps_are_linear_in_rows():
    rng = np.random.default_rng(0)
    for _ in range(50):
        stages = random_stages(rng, 7)
        alike = [dataclasses.replace(one, tokens_per_row=np.full(7, 255.3)) for one in stages]
        a, b = Interleaving(stages), Interleaving(alike)
        assert all(np.array_equal(x, y) for x, y in zip(a.rows(0, 400), b.rows(0, 400), strict=True))
        assert [x.hex() for x in a.planned(77).tolist()] == [x.hex() for x in b.planned(77).tolist()]


# Plans.


def ramp(duration="1000ba", start=None, end=None, **options):
    return loader([stage("r", duration, start or {"a": 1.0}, end or {"b": 1.0}, **options)], "ab")


def tokens_given(plan, batch):
    return plan.counts(batch) * np.array(
        [shape.tokens / shape.n_rows for shape in plan._resolver.streams.shapes.values()]
    )


def test_half_way_in_tokens_a_ramp_from_1_to_0_is_at_one_half():
    """With 20 and 100 tokens per row, half-way in rows would be 16.7% of the tokens."""
    plan = make(ramp(), counted(rows=(9000, 9000)), 1000)
    totals = np.array([tokens_given(plan, batch).sum() for batch in range(1001)])
    middle = int(np.searchsorted(totals, totals[-1] / 2))
    window = tokens_given(plan, middle + 20) - tokens_given(plan, middle - 20)
    # Each count is within 1/2 + 1 rows of the plan.
    assert abs(window[0] / window.sum() - 0.5) < 2 * 1.5 * 100 / window.sum() + 0.001
    assert abs(tokens_given(plan, 1000) - totals[-1] / 2).max() < 1.5 * 100
    assert plan.token_shares(middle) == pytest.approx([0.5, 0.5], abs=0.001)
    # The first half of the tokens is 3/4 a: 0.75/20 + 0.25/100 rows a token, in the second half of them half as many.
    assert middle == pytest.approx(667, abs=2)


@pytest.mark.parametrize("seed", range(20))
def test_any_1000_batches_have_the_token_shares_of_their_token_midpoint(seed):
    rng = np.random.default_rng(seed)
    n_streams = int(rng.integers(2, 9))
    names, m_S = "abcdefgh"[:n_streams], np.ceil(random_tokens(rng, n_streams))
    start, end = (dict(zip(names, rng.random(n_streams) ** 3, strict=True)) for _ in range(2))
    there = {name: Shape(10**6, int(10**6 * m), shard_rows=10**5) for name, m in zip(names, m_S, strict=True)}
    plan = make(loader([stage("r", "5000ba", start, end)], names), there, 5000)
    a_S, b_S = (np.array(list(mix.values())) / sum(mix.values()) for mix in (start, end))
    n_tokens = 5000 * 8 / ((a_S + b_S) / (2 * m_S)).sum()
    rows_S = 0.5 + n_streams / 2 * np.maximum(plan.start_of(0).rows, plan.end_of(0).rows)
    for first in rng.integers(0, 4001, 10).tolist():
        before_S, after_S = (plan.counts(batch) * m_S for batch in (first, first + 1000))
        given_S = after_S - before_S
        middle = (before_S + after_S).sum() / 2 / n_tokens
        bound = 4 * (rows_S * m_S).sum() / given_S.sum()
        assert abs(given_S / given_S.sum() - (a_S + middle * (b_S - a_S))).max() <= min(bound, 0.005 + bound / 2)


def test_planned_shares_add_up_to_the_drawn_rows_and_tokens():
    stages = [*THREE[:2], stage("back", "30ba", {"c": 1.0}, {"a": 0.5, "b": 0.5})]
    plan = make(loader(stages), counted(), 100)
    batches = range(100)
    shares_BS = np.stack([plan.token_shares(batch) for batch in batches])
    m_S = np.array([20, 100, 7])
    rows_BS = np.stack([plan.shares(batch) for batch in batches]) * 8
    tokens_BS = shares_BS * (rows_BS @ m_S)[:, None]
    assert tokens_BS == pytest.approx(rows_BS * m_S)
    for first, stop in ((0, 41), (45, 46), (40, 60), (50, 75), (0, 100)):
        given_S = plan.counts(stop) - plan.counts(first)
        assert rows_BS[first:stop].sum(0) == pytest.approx(plan.planned(stop) - plan.planned(first))
        assert (abs(given_S - rows_BS[first:stop].sum(0)) <= 2 * (0.5 + 3 / 2)).all()
        assert (abs(given_S * m_S - tokens_BS[first:stop].sum(0)) <= 4 * m_S).all()
    letters = "".join(name for name, _ in sequence(plan, 0, 100))
    assert [letters.count(name) for name in "abc"] == plan.counts(100).tolist()


def test_the_picture_has_a_step_where_a_stage_begins_with_another_mix_and_a_slope_in_a_ramp():
    stages = [
        stage("even", "40ba", {"a": 0.5, "b": 0.5}),
        stage("ramp", "40ba", {"b": 1.0}, {"c": 1.0}),
        stage("rest", "20ba", {"c": 1.0}, lr_scale={"from": 1.0, "to": 0.5}),
    ]
    plan = make(loader(stages), counted(), 100)
    drawn = curves(plan, 100)
    at = {batch: drawn.shares_PS[drawn.batches == batch] for batch in (0, 40, 60, 80, 100)}
    assert at[40] == pytest.approx(np.array([[0.5, 0.5, 0], [0, 1, 0]]))
    assert len(at[80]) == 2
    assert at[80] == pytest.approx(np.array([[0, 0, 1], [0, 0, 1]]), abs=1e-6)
    inside = drawn.shares_PS[(drawn.batches > 40) & (drawn.batches < 80)]
    assert (np.diff(inside[:, 2]) > 0).all()
    assert np.diff(inside[:, 2]).max() < 0.1
    assert (np.diff(drawn.batches) >= 0).all()
    assert np.interp([50, 90, 100], drawn.batches, drawn.lr_scale) == pytest.approx([1, 0.75, 0.5])


def test_a_duration_in_epochs_of_a_stream_counts_its_rows_in_a_ramp():
    for name, n_rows in (("a", 900), ("b", 300)):
        config = loader([stage("r", EpochsOf(ep=2.0, of=name), {"a": 0.9, "b": 0.1}, {"b": 1.0})], "ab")
        plan = make(config, counted(rows=(900, 300)), 4000)
        end = plan.stages()[0][2]
        assert end is not None
        given = dict(zip("ab", plan.counts(end).tolist(), strict=True))[name]
        assert 2 * n_rows - 2 <= given <= 2 * n_rows + 8 + 2


def test_the_windows_of_shards_that_batches_need_are_bounded_in_a_ramp():
    plan = make(ramp("100ba"), counted((1, 1000), (800, 800)), 100)
    most = plan.most_shards(5)
    for first in range(95):
        assert all(len(shards) <= most[name] for name, shards in plan.shards(first, first + 5).items())


def test_a_ramp_whose_duration_changes_continues_linearly_in_tokens():
    there, m_S = counted(rows=(9000, 9000)), np.array([20, 100])
    short = make(ramp("1000ba"), there, 3000)
    plan = make(ramp("2500ba"), there, 3000)
    plan.resume(short.state(400 * 8))
    assert plan.shares(400) == pytest.approx(short.shares(400), abs=0.002)
    assert plan.token_shares(400) == pytest.approx(short.token_shares(400), abs=0.002)
    given = (plan.counts(2500) - plan.counts(400)) * m_S
    begin = short.token_shares(400)
    # From there to the end, the mean of a line.
    assert given / given.sum() == pytest.approx((begin + np.array([0, 1])) / 2, abs=0.002)
    again = make(ramp("2500ba"), there, 3000)
    again.resume(plan.state(1200 * 8))
    assert len(again.segments) == 2
    assert sequence(again, 1200, 1300) == sequence(plan, 1200, 1300)


def test_streams_may_be_added_in_the_middle_of_a_ramp():
    plan = make(ramp("60ba"), counted(rows=(900, 900)), 60)
    more = make(dataclasses.replace(ramp("60ba"), dataset=loader().dataset), counted(rows=(900, 900, 500)), 60)
    more.resume(plan.state(30 * 8))
    assert more.notes == []
    assert [piece.tokens_per_row for piece in more.segments[0].pieces] == [(20, 100, 7)]
    assert sequence(more, 30, 60) == sequence(plan, 30, 60)


def test_stages_are_shown_with_the_shares_that_they_begin_and_end_with_also_when_they_are_done():
    plan = make(loader(THREE), counted(), 100)
    longer = [THREE[0], dataclasses.replace(THREE[1], duration="30ba"), THREE[2]]
    changed = make(loader(longer), counted(), 100)
    changed.resume(plan.state(50 * 8))
    for one in (plan, changed):
        mixes = [(one.start_of(number), one.end_of(number)) for number in range(3)]
        assert [start.tokens.round(9).tolist() for start, _ in mixes] == [[0.7, 0.3, 0], [0.7, 0.3, 0], [0, 0.2, 0.8]]
        assert mixes[0][1].rows == pytest.approx(np.array([0.7 / 20, 0.3 / 100, 0]) / (0.7 / 20 + 0.3 / 100))
        assert mixes[1][1].tokens == pytest.approx([0.2, 0.3, 0.5])
        assert [last.lr_scale for _, last in mixes] == [1.0, 0.5, 0.5]
        run: Any = SimpleNamespace(plan=one, clock=one._resolver.clock, streams=one._resolver.streams.shapes)
        config: Any = SimpleNamespace(train_loader=loader(longer))
        table = stages_table(run, config)
        assert list(table.columns[5].cells)[1] == "70.0% → 20.0%\n92.1% → 11.8%"


# Checkpoints of version 2.


LONGER = (THREE[0], dataclasses.replace(THREE[1], duration="30ba"), THREE[2])
BIG = stage("r", "1200000ba", {"a": 1.0, "b": 0.0, "c": 0.5}, {"a": 0.0, "b": 3.0, "c": 0.7})
BILLION = {n: Shape(10**9, 10**9 * t, shard_rows=10**6) for n, t in zip("abc", (20, 100, 57), strict=True)}
RUNS = {
    "ramp": (THREE, counted(), {}),
    "alike": (THREE, shapes(), {}),
    "constant": (TWO, counted(), {"batches": 20}),
    "changed": (LONGER, counted(), {}),
    "billion": ([BIG], BILLION, {"batches": 1_300_000, "size": 1024}),
}


def resumed(name: str) -> RowPlan:
    stages, there, options = RUNS[name]
    plan = make(loader(stages), there, **options)
    assert plan.resume({"position": VERSION_2[name]["state"]}) * plan.global_batch_size == rows_of(name)
    return plan


def rows_of(name: str) -> int:
    return json.loads(VERSION_2[name]["state"])["rows"]


def letters(segment: Segment, first: int, stop: int) -> str:
    return "".join("abc"[s] for s in segment.interleaving.rows(first, stop)[0].tolist())


@pytest.mark.parametrize("name", RUNS)
def test_what_a_checkpoint_of_version_2_has_trained_on_keeps_its_order_bit_for_bit(name):
    plan, golden = resumed(name), VERSION_2[name]
    n_saved = len(json.loads(golden["state"])["segments"])
    assert all(set(piece.tokens_per_row) == {1.0} for one in plan.segments[:n_saved] for piece in one.pieces)
    old = plan.segments[n_saved - 1]
    first = rows_of(name) if name == "billion" else old.first_row
    assert letters(old, first, first + len(golden["rows"])) == golden["rows"]
    assert [x.hex() for x in old.interleaving.planned(rows_of(name)).tolist()] == golden["planned"]
    assert plan.counts(rows_of(name) // plan.global_batch_size).tolist() == golden["counts"]


@pytest.mark.parametrize(("name", "batch", "last"), [("alike", 50, 100), ("constant", 15, 40)])
def test_a_run_of_version_2_is_unchanged_if_rows_and_tokens_agree(name, batch, last):
    plan, golden = resumed(name), VERSION_2[name]
    assert len(plan.segments) == 1
    assert plan.notes == []
    assert "".join(s for s, _ in sequence(plan, batch, last)) == golden["rows"][batch * 8 :]


def test_a_ramp_of_version_2_continues_linearly_in_tokens_from_where_it_is():
    plan, old = resumed("ramp"), json.loads(VERSION_2["ramp"]["state"])["segments"][0]["pieces"][1]
    (note,) = plan.notes
    assert note.startswith(
        "the data plan changes at batch 50: stage shift: the shares now change linearly with the number of tokens"
    )
    assert plan.stages() == [("broad", 0, 40), ("shift", 40, 60), ("anneal", 60, None)]
    assert [plan.lr_scale(batch) for batch in (49, 50, 55, 60)] == pytest.approx([0.775, 0.75, 0.625, 0.5])
    piece = plan.segments[1].pieces[0]
    assert piece.start == pytest.approx((np.array(old["start"]) + old["end"]) / 2)
    assert piece.end == pytest.approx(old["end"])
    assert piece.tokens_per_row == (20, 100, 7)
    planned = (plan.planned(60) - plan.counts(50)) * [20, 100, 7]
    begin = plan.of_tokens(np.array(piece.start))
    assert planned / planned.sum() == pytest.approx((begin + np.array([0.2, 0.3, 0.5])) / 2)
    again = make(loader(THREE), counted())
    assert again.resume(plan.state(55 * 8)) == 55
    assert again.notes == []
    assert sequence(again, 55, 100) == sequence(plan, 55, 100)


def test_a_stream_may_be_added_in_the_middle_of_a_ramp_of_version_2():
    more = make(loader(THREE, "abcd"), counted((20, 100, 7, 50), (70, 33, 500, 90)))
    more.resume({"position": VERSION_2["ramp"]["state"]})
    assert "stage shift: the shares now change linearly with the number of tokens" in more.notes[0]
    assert letters(more.segments[0], 0, 800) == VERSION_2["ramp"]["rows"]
    plan = resumed("ramp")
    assert sequence(more, 50, 100) == sequence(plan, 50, 100)


@pytest.mark.parametrize("name", ["changed", "billion"])
def test_streams_continue_with_their_next_rows_after_a_checkpoint_of_version_2(name):
    plan, first = resumed(name), rows_of(name)
    s_N, k_N = plan.segments[-1].interleaving.rows(first, first + 3000)
    for stream, count in enumerate(VERSION_2[name]["counts"]):
        assert k_N[s_N == stream].tolist() == list(range(count, count + int((s_N == stream).sum())))


def test_an_old_ramp_that_is_over_needs_no_new_plan():
    golden = json.loads(VERSION_2["ramp"]["state"]) | {"rows": 70 * 8}
    plan = make(loader(THREE), counted())
    assert plan.resume({"position": json.dumps(golden)}) == 70
    assert plan.notes == []
    assert "".join(s for s, _ in sequence(plan, 70, 100)) == VERSION_2["ramp"]["rows"][560:]
