"""Experts for which a condition has held for many steps."""

import json

import numpy as np

from train.expert_health.streaks import Place, Streaks, named

STEPS = 10
NONE = np.zeros((2, 4), dtype=bool)


def at(*places: Place) -> np.ndarray:
    holds_LE = NONE.copy()
    for place in places:
        holds_LE[place] = True
    return holds_LE


def test_a_streak_is_reported_once_and_so_is_its_end() -> None:
    streaks = Streaks(STEPS, NONE.shape)
    found = [streaks.update(at((1, 0)) if 5 <= step < 30 else NONE) for step in range(40)]
    reported = {step: each for step, each in enumerate(found) if each != ([], [])}
    assert reported == {5 + STEPS - 1: ([(1, 0)], []), 30: ([], [(1, 0)])}


def test_a_few_steps_are_not_a_streak() -> None:
    streaks = Streaks(STEPS, NONE.shape)
    assert all(streaks.update(at((0, 1)) if step % STEPS else NONE) == ([], []) for step in range(60))


def test_experts_that_come_and_go_at_different_times_are_reported_together() -> None:
    holds = np.zeros((8, 64), dtype=bool)
    streaks, reports = Streaks(STEPS, holds.shape), 0
    draw = np.random.default_rng(0)
    for _ in range(50 * STEPS):
        holds = np.where(holds, draw.random(holds.shape) < 0.95, draw.random(holds.shape) < 0.2)
        begun, ended = streaks.update(holds)
        reports += bool(begun) + bool(ended)
    assert 50 < reports <= 2 * 50


def test_a_streak_that_begins_in_the_quiet_period_is_reported_after_it() -> None:
    streaks, found = Streaks(STEPS, NONE.shape), {}
    for step in range(3 * STEPS):
        begun, _ = streaks.update(at((0, 0)) if step < 3 else at((0, 0), (1, 1)))
        found |= {step: begun} if begun else {}
    assert found == {STEPS - 1: [(0, 0)], 2 * STEPS - 1: [(1, 1)]}


def test_resumed_streaks_continue() -> None:
    streaks, resumed = Streaks(STEPS, NONE.shape), Streaks(STEPS, NONE.shape)
    for step in range(STEPS + 3):
        streaks.update(at((0, 2)) if step < 5 else at((0, 2), (1, 3)))
    resumed.load_state_dict(json.loads(json.dumps(streaks.state_dict())))
    assert [resumed.update(at((1, 3))) for _ in range(8)] == [streaks.update(at((1, 3))) for _ in range(8)]


def test_a_message_names_a_few_experts_or_the_layers_of_many() -> None:
    assert named([(0, 3), (2, 1)]) == "expert 3 of layer 0, expert 1 of layer 2"
    many = [(layer, expert) for layer in range(40) for expert in range(16)]
    assert named(many[:20]) == "20 experts: 16 of layer 0, 4 of layer 1"
    assert named(many).endswith("16 of layer 5, 544 of 34 other layers")
