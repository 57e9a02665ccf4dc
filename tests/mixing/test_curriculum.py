import dataclasses
import json
import math
from fractions import Fraction

import numpy as np
import pytest

from data.base.durations import Clock
from data.base.errors import ConfigError
from data.config.dataset import DatasetConfig, StreamConfig
from data.config.loader import DataLoaderConfig, EpochsOf
from data.mixing.interleaving import Interleaving, Stage
from data.mixing.mixture import Mixture
from data.mixing.row_plan import RowPlan
from data.mixing.stream_order import StreamOrder
from tests.helpers.curriculum import THREE, TWO, Shape, loader, make, random_stages, sequence, shapes, stage

# The merge itself.


def exact_planned(stages, taken, stream, x):
    """T_s(x) in fractions, stage by stage."""
    total, first = Fraction(int(taken[stream])), Fraction(0)
    for number, one in enumerate([*stages, Stage(math.inf, stages[-1].end, stages[-1].end)]):
        a, b = Fraction(float(one.start[stream])), Fraction(float(one.end[stream]))
        length = None if math.isinf(one.n_rows) else Fraction(one.n_rows)
        if length is None or x <= first + length:
            u = x - first
            return total + a * u + (0 if length is None else (b - a) * u * u / (2 * length))
        total, first = total + (a + b) / 2 * length, first + length
        assert number <= len(stages)
    raise AssertionError


@pytest.mark.parametrize("seed", range(12))
def test_the_merge_equals_a_row_by_row_search(seed):
    """Rows of each stream are in order, streams stay within the bound, and rows are ordered by their due times."""
    rng = np.random.default_rng(seed)
    n_streams = int(rng.integers(1, 20))
    stages = random_stages(rng, n_streams)
    taken = rng.integers(0, 40, n_streams) * (seed % 3 == 0)
    merge = Interleaving(stages, taken)
    first = merge.first
    s_N, k_N = merge.rows(first, first + 200)
    given = taken.copy()
    largest = np.max([np.maximum(one.start, one.end) for one in stages], axis=0)
    late = Fraction(0)
    for place, (s, k) in enumerate(zip(s_N.tolist(), k_N.tolist(), strict=True), start=1):
        assert k == given[s]
        given[s] += 1
        planned = [exact_planned(stages, taken, stream, Fraction(place)) for stream in range(n_streams)]
        assert all(
            abs(g - p) <= 0.5 + share * n_streams / 2 + 1e-9
            for g, p, share in zip(given.tolist(), planned, largest, strict=True)
        )
        assert np.allclose(merge.planned(first + place), [float(p) for p in planned], rtol=0, atol=1e-6)
        # When the row was due: the plan reaches k + 1/2 there, and no earlier row of the order was due later.
        low, high = late, Fraction(4000)
        if exact_planned(stages, taken, s, low) < k + Fraction(1, 2):
            for _ in range(50):
                middle = (low + high) / 2
                low, high = (
                    (middle, high) if exact_planned(stages, taken, s, middle) < k + Fraction(1, 2) else (low, middle)
                )
                low, high = Fraction(float(low)), Fraction(float(high))
        before = max(late - Fraction(1, 10**6), Fraction(0))
        assert before == 0 or exact_planned(stages, taken, s, before) <= k + Fraction(1, 2)
        late = low


@pytest.mark.parametrize("seed", range(40))
def test_any_cut_of_the_merge_gives_the_same_rows(seed):
    rng = np.random.default_rng(seed)
    n_streams = int(rng.integers(1, 31))
    merge = Interleaving(random_stages(rng, n_streams))
    s_N, k_N = merge.rows(0, 1500)
    for _ in range(20):
        start, stop = np.sort(rng.integers(0, 1501, 2)).tolist()
        part = merge.rows(start, stop)
        assert np.array_equal(part[0], s_N[start:stop])
        assert np.array_equal(part[1], k_N[start:stop])
        assert merge.counts(start).tolist() == np.bincount(s_N[:start], minlength=n_streams).tolist()


def test_the_merge_at_a_billion_rows_is_exact():
    """Two cuts far out agree, and the counts add up to the position."""
    rng = np.random.default_rng(0)
    shares = rng.random((2, 100)) / 50
    shares /= shares.sum(axis=1, keepdims=True)
    merge = Interleaving([Stage(1.4e9, shares[0], shares[1])])
    place = 10**9
    whole = merge.rows(place, place + 2048)
    halves = [merge.rows(place + half, place + half + 1024) for half in (0, 1024)]
    assert np.array_equal(whole[0], np.concatenate([half[0] for half in halves]))
    assert np.array_equal(whole[1], np.concatenate([half[1] for half in halves]))
    counts = merge.counts(place)
    assert counts.sum() == place
    for stream in range(100):
        rows = whole[1][whole[0] == stream]
        assert rows.tolist() == list(range(counts[stream], counts[stream] + len(rows)))


# Stages of a config.


def test_stages_become_batches_and_the_last_continues():
    plan = make(loader(THREE), shapes())
    assert plan.stages() == [("broad", 0, 40), ("shift", 40, 60), ("anneal", 60, None)]
    assert [plan.stage(n) for n in (0, 39, 40, 59, 60, 99)] == ["broad"] * 2 + ["shift"] * 2 + ["anneal"] * 2
    assert plan.shares(0).tolist() == pytest.approx([0.7, 0.3, 0.0])
    # Of the batch's rows: the mean of what it begins and ends with.
    assert plan.shares(50).tolist() == pytest.approx([0.4375, 0.3, 0.2625])
    assert [plan.lr_scale(n) for n in (0, 40, 50, 60)] == pytest.approx([1.0, 1.0, 0.75, 0.5])


def test_durations_of_every_unit_are_batches():
    stages = [
        stage("tok", "640tok", {"a": 1.0}),
        stage("ep", EpochsOf(ep=2.0, of="b"), {"a": 0.5, "b": 0.5}),
        stage("dur", "0.25dur", {"c": 1.0}),
    ]
    plan = make(loader(stages), shapes())
    # 33 rows of b twice, at half of the rows, are 132 rows: 17 batches of 8.
    assert [end for _, _, end in plan.stages()] == [10, 10 + 17, 10 + 17 + 25]
    assert plan.notes == ["the stages last 52 of the run's 100 batches: the rest of the run uses the final mix of dur"]


def test_shares_of_tokens_become_shares_of_rows():
    there = {"a": Shape(100, tokens=800), "b": Shape(100, tokens=200)}
    plan = make(loader(names="ab", a={"proportion": 1.0}, b={"proportion": 1.0}), there, 20)
    assert plan.shares(0).tolist() == pytest.approx([0.2, 0.8])
    rows = [name for name, _ in sequence(plan, 0, 20)]
    assert rows.count("a") == 32


def test_without_proportions_streams_contribute_by_their_size():
    plan = make(loader(b={"repeat": 2.0}, c={"choose": 34}), shapes(), 21)
    assert plan.shares(0).tolist() == pytest.approx([70 / 170, 66 / 170, 34 / 170])


@pytest.mark.parametrize(
    ("max_duration", "length"),
    # 40 batches of 4 rows are past; a batch of 8 rows has 64 tokens.
    [("100ba", 100), ("6400tok", 120), ("6401tok", 121), ("1280tok", 40), ("100tok", 40), ("4ep", 70), ("1ep", 40)],
)
def test_a_duration_counts_rows_drawn_in_batches_of_another_size(max_duration, length):
    clock = Clock(tokens_per_batch=64, rows_per_batch=8, rows_per_epoch=100)
    assert clock.until(max_duration, batch=40, rows=160).max_batches == length
    again = Clock(tokens_per_batch=64, rows_per_batch=8, rows_per_epoch=100)
    assert again.until("6400tok", batch=40, rows=320).max_batches == again.until("6400tok").max_batches


# Exactness.


def test_no_row_twice_before_its_stream_is_exhausted_across_stages():
    plan = make(loader(THREE), shapes())
    seen: dict[str, list[int]] = {"a": [], "b": [], "c": []}
    for name, row in sequence(plan, 0, 100):
        seen[name].append(row)
    for name, rows in seen.items():
        n = shapes()[name].n_rows
        for begin in range(0, len(rows), n):
            one_pass = rows[begin : begin + n]
            assert len(set(one_pass)) == len(one_pass)
    assert len(seen["a"]) > 70
    assert plan.counts(100).tolist() == [len(rows) for rows in seen.values()]


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_any_number_of_ranks_gives_the_same_rows(ranks):
    plan = make(loader(THREE), shapes())
    assert sequence(plan, 0, 100, ranks) == sequence(plan, 0, 100)


@pytest.mark.parametrize("batch", [0, 1, 39, 40, 41, 50, 60, 61, 99])
def test_a_resumed_plan_is_the_uninterrupted_one(batch):
    whole = make(loader(THREE), shapes())
    plan = make(loader(THREE), shapes())
    assert plan.resume(json.loads(json.dumps(whole.state(batch * 8)))) == batch
    assert len(plan.segments) == 1
    assert plan.notes == []
    assert sequence(plan, batch, 100) == sequence(whole, batch, 100)


@pytest.mark.parametrize("seed", range(30))
def test_random_changes_of_the_future_keep_the_past_and_repeat_nothing(seed):
    """Killed and resumed several times with changed plans. Every stream continues where it was."""
    rng = np.random.default_rng(seed)
    sizes = [int(rng.integers(20, 200)) for _ in "abcd"]
    there = {name: Shape(n, n * m) for name, n, m in zip("abcd", sizes, (7, 900, 31, 90), strict=True)}

    def random_mix():
        names = rng.permutation(list("abcd"))[: rng.integers(1, 5)]
        return {str(name): float(rng.integers(1, 10)) for name in names}

    def random_stage(number):
        ramp = random_mix() if rng.random() < 0.5 else None
        return stage(f"s{number}", f"{rng.integers(3, 30)}ba", random_mix(), ramp)

    stages = [random_stage(number) for number in range(4)]
    plan = make(loader(stages, "abcd"), there, 200, size=4)
    rows, batch = [], 0
    for _ in range(4):
        stop = batch + int(rng.integers(1, 25))
        rows += sequence(plan, batch, stop)
        saved, done = plan.state(stop * 4), [end for _, _, end in plan.stages() if end is not None and end <= stop]
        batch = stop
        # What is past stays; the stage that the run is in keeps its name; the rest is made anew.
        kept = len(done)
        current = stages[kept : kept + 1]
        stages = stages[:kept] + [
            dataclasses.replace(random_stage(0), name=one.name, duration=f"{rng.integers(3, 60)}ba") for one in current
        ]
        stages += [random_stage(number) for number in range(len(stages), len(stages) + 2)]
        plan = make(loader(stages, "abcd"), there, 400, size=4)
        assert plan.resume(saved) == batch
        assert [end for _, _, end in plan.stages()][:kept] == done
    rows += sequence(plan, batch, batch + 20)
    for number, name in enumerate("abcd"):
        given = [row for stream, row in rows if stream == name]
        order = StreamOrder(there[name].shard_sizes, 0, number)
        assert given == order.rows(np.arange(len(given))).tolist()


def test_a_longer_run_freezes_the_stages_that_are_done():
    stages = [stage("one", "0.4dur", {"a": 1.0}), stage("two", "0.6dur", {"b": 1.0})]
    short = make(loader(stages), shapes(), 50)
    plan = make(loader(stages), shapes(), 100)
    assert plan.stages()[0] == ("one", 0, 40)
    plan.resume(short.state(30 * 8))
    assert plan.stages() == [("one", 0, 20), ("two", 20, 80)]
    assert plan.notes[-1].startswith("the data plan changes at batch 30: stage two (the current stage): ")
    plan = make(loader(stages), shapes(), 100)
    plan.resume(short.state(10 * 8))
    assert plan.stages()[0] == ("one", 0, 40)


def test_a_ramp_that_is_made_longer_continues_from_where_it_is():
    def ramp(duration):
        return loader([stage("r", duration, {"a": 1.0}, {"b": 1.0})], "ab")

    plan = make(ramp("90ba"), shapes("ab"))
    plan.resume(make(ramp("50ba"), shapes("ab")).state(25 * 8))
    assert plan.shares(25)[:2].tolist() == pytest.approx([0.5 - 0.25 / 65, 0.5 + 0.25 / 65])
    assert plan.shares(89)[1] == pytest.approx(1 - 0.25 / 65)
    assert plan.stages() == [("r", 0, 90)]


@pytest.mark.parametrize("batch", [20, 21, 33, 99])
def test_the_mix_after_the_last_stage_is_resumed_unchanged(batch):
    whole = make(loader(TWO), shapes())
    plan = make(loader(TWO), shapes())
    plan.resume(whole.state(batch * 8))
    assert len(plan.segments) == 1
    assert plan.lr_scale(batch) == 0.5
    assert sequence(plan, batch, 110) == sequence(whole, batch, 110)


def test_a_stage_that_is_added_after_the_last_begins_where_the_run_is():
    plan = make(loader(TWO), shapes())
    plan.resume(make(loader(TWO[:1]), shapes()).state(50 * 8))
    assert plan.stages() == [("one", 0, 50), ("two", 50, 60)]
    assert plan.shares(50).tolist() == pytest.approx([0, 0.63, 0.37])
    again = make(loader(TWO), shapes())
    again.resume(plan.state(55 * 8))
    assert sequence(again, 55, 80) == sequence(plan, 55, 80)


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (
            {"mix": {"a": 0.5, "b": 0.5}},
            "stage r: the run continues this ramp from its current mix",
        ),
        ({"lr_scale": {"from": 0.1, "to": 2.0}}, "stage r: the run continues this ramp from its current mix"),
        ({"mix": {"a": 3.0}}, None),  # the same shares
        ({"to": {"c": 1.0}}, "the data plan changes at batch 25: stage r (the current stage): "),
        ({"duration": "20ba"}, "the data plan changes at batch 25: stage r (the current stage): "),
    ],
)
def test_no_change_of_the_stage_that_the_run_is_in_is_silent(change, note):
    was = {"name": "r", "duration": "50ba", "mix": {"a": 1.0}, "to": {"b": 1.0}, "lr_scale": {"from": 1.0, "to": 2.0}}
    plan = make(loader([stage(**was | change)]), shapes(), 50)
    plan.resume(make(loader([stage(**was)]), shapes(), 50).state(25 * 8))
    message = [line for line in plan.notes if line.startswith(("stage", "the data plan"))]
    assert [line.startswith(note or "") for line in message] == ([] if note is None else [True])


def test_the_start_of_a_ramp_to_come_may_change():
    def ramp(start):
        return loader([stage("one", "10ba", {"a": 1.0}), stage("r", "10ba", start, {"b": 1.0})])

    plan = make(ramp({"c": 1.0}), shapes())
    plan.resume(make(ramp({"a": 1.0}), shapes()).state(5 * 8))
    assert plan.start_of(1).rows.tolist() == [0, 0, 1]
    assert plan.shares(10).tolist() == pytest.approx([0, 0.05, 0.95])


def test_later_starts_are_compared_with_a_rewritten_equal_plan():
    """They are not compared with the plan of the first start, even when the stage is completed."""
    in_parts = [stage("one", "40ba", {"a": 7.0, "b": 3.0}), stage("two", None, {"a": 1.0})]
    to_one = [stage("one", "320tok", {"a": 0.7, "b": 0.3}), in_parts[1]]
    plan = make(loader(to_one), shapes(), size=1)
    whole = make(loader(in_parts), shapes(), size=1)
    plan.resume(whole.state(20))
    assert plan.notes == []
    later = make(loader(to_one), shapes(), size=1)
    assert later.resume(plan.state(50)) == 50
    assert sequence(later, 50, 90) == sequence(whole, 50, 90)


def test_a_run_with_one_mix_may_continue_with_stages():
    plan = make(loader([stage("one", "60ba", {"a": 1.0}), TWO[1]]), shapes())
    plan.resume(make(loader(), shapes()).state(50 * 8))
    assert plan.stages() == [("one", 0, 60), ("two", 60, 70)]
    assert plan.shares(50).tolist() == [1, 0, 0]


def test_repeats_are_counted_with_the_actual_past():
    """b starts late; from the beginning it would be repeated 12 times."""
    proportion = {"proportion": 1.0}
    saved = make(loader(names="a", a=proportion), shapes("a")).state(95 * 8)
    config = loader(names="ab", a=proportion, b=proportion | {"max_repeats": 1.0})
    with pytest.raises(ConfigError, match=r"b.max_repeats is 1, but "):
        make(config, shapes("ab"))
    clock = Clock(tokens_per_batch=64, rows_per_batch=8, rows_per_epoch=1).until("100ba")
    plan = RowPlan(config, shapes("ab"), clock, seed=0, resuming=True)
    assert plan.resume(saved) == 95
    assert plan.counts(100)[1] == 20
    longer = dataclasses.replace(clock, max_batches=120)
    with pytest.raises(
        ConfigError, match=r"b.max_repeats is 1, but in 120 batches .* the run draws 100 rows from stream b, "
    ):
        RowPlan(config, shapes("ab"), longer, seed=0, resuming=True).resume(saved)


def test_streams_may_be_appended_and_stand_in_any_order():
    plan = make(loader(names="ab"), shapes("ab"), 10)
    saved = plan.state(5 * 8)
    more = make(loader(names="cba"), dict(reversed(shapes().items())), 30)
    assert more.resume(saved) == 5
    assert more.names == ["a", "b", "c"]
    assert more.counts(5).tolist() == [*plan.counts(5).tolist(), 0]
    assert {name for name, _ in sequence(more, 5, 30)} == {"a", "b", "c"}


def test_the_global_batch_may_change_where_a_stage_ends():
    stages = [stage("one", "10ba", {"a": 1.0}), stage("two", "10ba", {"b": 1.0})]
    saved = make(loader(stages), shapes(), 20).state(10 * 8)
    plan = make(loader(stages), shapes(), 20, size=4)
    assert plan.resume(saved) == 10
    assert len(sequence(plan, 10, 20)) == 40
    assert plan.counts(20).tolist() == [80, 40, 0]


@pytest.mark.parametrize(
    ("config", "there", "options", "text"),
    [
        (loader(THREE), shapes(), {"seed": 1}, "seed was 0, now 1"),
        (
            loader(THREE),
            shapes() | {"a": Shape(70, fingerprint="g")},
            {},
            r"rows of stream a have changed \(fingerprint was f, is now g\)",
        ),
        (loader(THREE[2:], "bc"), shapes("bc"), {}, "stream a was removed after 270 of its rows were drawn"),
        (loader(THREE), shapes(), {"size": 4}, "global_train_batch_size was 8, now 4, but it can only change where"),
    ],
)
def test_another_past_is_refused(config, there, options, text):
    saved = make(loader(THREE), shapes()).state(50 * 8)
    with pytest.raises(ConfigError, match=text):
        make(config, there, **options).resume(saved)


def test_a_stage_that_is_done_cannot_change():
    saved = make(loader(THREE), shapes()).state(50 * 8)
    other = stage("broad", "40ba", {"a": 1.0})
    with pytest.raises(
        ConfigError, match=r"at batch 50, and earlier stages .*stage broad is completed; it was .* now "
    ):
        make(loader([other, *THREE[1:]]), shapes()).resume(saved)
    with pytest.raises(ConfigError, match="the run is in stage shift, but the config now has "):
        make(loader([THREE[0], THREE[2]]), shapes()).resume(saved)


# What cannot be.


@pytest.mark.parametrize(
    ("stages", "text"),
    [
        ([stage("x", "10ba", {"d": 1.0})], r"stages\[0\].proportions refers to 'd', but the streams are a, b, c"),
        ([stage("x", EpochsOf(ep=1.0, of="A"), {"a": 1.0})], r"stages\[0\].duration.of refers to 'A'"),
        ([stage("x", None, {"a": 1.0}), stage("y", "1ba", {"a": 1.0})], "only the last stage may have no duration"),
        ([stage("x", "1ba", {"a": 1.0})] * 2, r"stages\[1\].name is 'x', the name of an earlier stage"),
    ],
)
def test_stages_that_cannot_be(stages, text):
    with pytest.raises(ValueError, match=text):
        loader(stages)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("x", "0ba", {"a": 1.0}), "duration is '0ba', but it must be longer than 0"),
        (("x", "ten", {"a": 1.0}), "duration is 'ten', but a duration must be a number and a unit"),
        (("x", "1ba", {"a": -1.0}), "proportions.a is -1.0, but it must be at least 0"),
        (("x", "1ba", {"a": 0.0, "b": 0.0}), "proportions are all 0"),
        (("x", "1ba", {}), "proportions are all 0"),
        (("x", "1ba", {"from": {"a": 1.0}, "b": 1.0}), "proportions has the keys from, b, but a ramp must be"),
        (("x", None, {"a": 1.0}, {"b": 1.0}), "duration is missing, but a ramp requires a duration"),
        (("x", "1ba", {"a": 1.0}, None, {"from": 1.0}), "lr_scale is .* but it must be a number or"),
        (("x", "1ba", {"a": 1.0}, None, -1.0), "lr_scale is -1.0, but it must be at least 0"),
    ],
)
def test_a_stage_that_cannot_be(arguments, text):
    with pytest.raises(ValueError, match=text):
        stage(*arguments)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (loader([stage("x", "200ba", {"a": 1.0})]), "stages last 200 batches, but max_duration is 100"),
        (loader([stage("x", "1ep", {"a": 1.0})]), "`ep` requires the name of a stream: write {ep: 1, of: a}"),
        (
            loader([stage("x", EpochsOf(ep=1.0, of="b"), {"a": 1.0})]),
            "is in epochs of stream b, but this stream has no share",
        ),
        (
            loader([stage("x", None, {"a": 1.0})], a={"max_repeats": 2.0}),
            r"a.max_repeats is 2, .* has only 70 \(11.43 epochs are needed\)",
        ),
    ],
)
def test_a_plan_that_cannot_be(config, text):
    with pytest.raises(ConfigError, match=text):
        make(config, shapes())


def test_a_small_stream_may_exceed_its_repeats_by_its_part_of_a_batch():
    config = loader(names="ab", a={"proportion": 99.0}, b={"proportion": 1.0, "max_repeats": 1.0})
    there = {"a": Shape(10**6), "b": Shape(5)}
    with pytest.raises(
        ConfigError, match=r"b.max_repeats is 1, but in 10 batches of 1024 rows the run draws 102 rows from stream b, "
    ):
        make(config, there, 10, size=1024)
    assert make(config, there, 1, size=1024).counts(1)[1] == 10


def test_repeat_allows_what_it_says_and_no_more():
    config = loader(names="a", a={"repeat": 2.0, "max_repeats": 1.0})
    assert make(config, {"a": Shape(64)}, 16).counts(16).tolist() == [128]
    with pytest.raises(
        ConfigError,
        match=r"the run draws 136 rows from stream a, which has only 64 \(2.12 epochs are needed\): "
        r"set .*dataset.streams.a.max_repeats=3, or",
    ):
        make(config, {"a": Shape(64)}, 17)


def test_proportions_with_another_sum_are_noted():
    assert make(loader(THREE), shapes()).notes == ["stages[0].proportions add up to 10, and are divided by this sum"]
    parts = loader(names="ab", a={"proportion": 3.0}, b={"proportion": 2.0})
    assert make(parts, shapes("ab")).notes == ["the streams' proportions add up to 5, and are divided by this sum"]


def test_a_stage_is_a_batch_at_least():
    assert make(loader([stage("x", "0.000000001dur", {"a": 1.0})]), shapes()).stages() == [("x", 0, 1)]


@pytest.mark.parametrize("size", [32, 512])
def test_looking_ahead_plans_no_block_twice(size, monkeypatch):
    planned = []
    rows = Mixture.rows
    monkeypatch.setattr(Mixture, "rows", lambda self, *cut: (planned.append(cut), rows(self, *cut))[1])
    plan = make(loader(), {name: Shape(10**5) for name in "abc"}, size=size)
    for batch in range(60):
        plan.rows(batch, 0, size)
        plan.rows(batch + 33, 0, size)
    assert len(planned) <= 1.6 * len(set(planned))


def test_streams_with_only_zero_proportions_are_refused():
    with pytest.raises(ValueError, match="streams has only proportions of 0"):
        loader(names="ab", a={"proportion": 0.0}, b={"proportion": 0.0})
    streams = {"a": StreamConfig(local="a")}
    with pytest.raises(ValueError, match="max_repeats is set together with streams: move it to the stream"):
        DatasetConfig(streams=streams, max_seq_len=8, max_repeats=3.0)


def test_durations_in_epochs_need_no_max_repeats():
    config = DataLoaderConfig(name="text", dataset=DatasetConfig(local="a", max_seq_len=8))
    there = {"": Shape(70)}
    assert make(config, there, "3ep").counts(27).tolist() == [216]
    with pytest.raises(
        ConfigError,
        match=r"the run draws 160 rows from .*, which has only 70 \(2.29 epochs are needed\): "
        r".*dataset.max_repeats=3, or max_duration=3ep",
    ):
        make(config, there, 20)
    # A pass may end with its last batch.
    assert make(config, there, 9).counts(9).tolist() == [72]
