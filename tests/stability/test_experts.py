"""Experts that take nearly all tokens of their layer."""

import json

import numpy as np

from train.stability.experts import STEPS, ExpertWatch, load_imbalance


def counts(*layers: list[int]) -> np.ndarray:
    return np.array(layers, dtype=np.float64)


EVEN, ALL = [50, 50, 50, 50], [100, 34, 33, 33]


def test_the_load_imbalance_is_the_maximum_over_the_mean() -> None:
    assert load_imbalance(counts([10, 20, 30, 0], [0, 0, 0, 0])).tolist() == [2.0, 1.0]


def test_a_collapse_is_reported_once_and_so_is_its_end() -> None:
    watch, found = ExpertWatch(top_k=2), []
    for step in range(40):
        collapsed = 5 <= step < 30
        found.append(watch.update(counts(EVEN, ALL if collapsed else EVEN)))
    reported = {step: each for step, each in enumerate(found) if each != ([], [])}
    assert reported == {5 + STEPS - 1: ([(1, 0)], []), 30: ([], [(1, 0)])}


def test_a_few_steps_are_no_collapse() -> None:
    watch = ExpertWatch(top_k=2)
    assert all(watch.update(counts(ALL if step % STEPS else EVEN)) == ([], []) for step in range(60))


def test_all_experts_that_are_always_chosen_are_named() -> None:
    watch = ExpertWatch(top_k=2)
    found = [watch.update(counts([100, 0, 100, 0])) for _ in range(STEPS)]
    assert found[-1] == ([(0, 0), (0, 2)], [])


def test_where_every_expert_is_chosen_for_every_token_none_has_collapsed() -> None:
    watch = ExpertWatch(top_k=4)
    assert all(watch.update(counts([100] * 4)) == ([], []) for _ in range(2 * STEPS))


def test_a_resumed_watch_goes_on_counting() -> None:
    watch, resumed = ExpertWatch(top_k=2), ExpertWatch(top_k=2)
    for _ in range(STEPS - 1):
        watch.update(counts(ALL))
    resumed.load_state_dict(json.loads(json.dumps(watch.state_dict())))
    assert resumed.update(counts(ALL)) == ([(0, 0)], [])
