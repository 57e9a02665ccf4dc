"""The spike detector matches a slow, obvious computation."""

import json
import math

import numpy as np
import pytest

from train.config.supervision import SpikesConfig
from train.stability.spikes import SpikeDetector

CONFIG = SpikesConfig(window=16, min_steps=6, threshold=5.0)


def judged(losses: list[float], config: SpikesConfig = CONFIG) -> list[bool]:
    detector = SpikeDetector(config)
    return [detector.is_spike(loss) for loss in losses]


def obvious(losses: list[float], config: SpikesConfig = CONFIG) -> list[bool]:
    kept: list[float] = []
    spikes = []
    for loss in losses:
        window = np.array([each for each in kept if np.isfinite(each)][-config.window :])
        spike = False
        if np.isfinite(loss) and len(window) >= config.min_steps:
            median = np.median(window)
            deviation = max(1.4826 * np.median(np.abs(window - median)), 0.01 * abs(median))
            spike = bool(loss > median + config.threshold * deviation)
        spikes.append(spike)
        if not spike:
            kept.append(loss)
    return spikes


@pytest.mark.parametrize("seed", range(5))
def test_a_detector_equals_numpy(seed: int) -> None:
    draw = np.random.default_rng(seed)
    losses = 3 * np.exp(-np.arange(200) / 80) + draw.normal(0, 0.1, 200)
    losses[draw.random(200) < 0.1] *= 4
    losses[draw.random(200) < 0.05] = draw.choice([np.nan, np.inf, -np.inf])
    found = judged(losses.tolist())
    assert found == obvious(losses.tolist())
    assert 5 < sum(found) < 60


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_non_finite_losses_do_not_affect_a_detector(number: float) -> None:
    spikes = judged([1.0, 1.1, 0.9] * 5 + [number] * 40 + [1.0, 10.0])
    assert spikes == [False] * 56 + [True]


def test_a_loss_that_does_not_change_has_a_limit() -> None:
    assert judged([2.0] * 10 + [2.05, 2.2]) == [False] * 11 + [True]


def test_a_fast_fall_is_no_spike() -> None:
    assert not any(judged([12 * 0.7**step for step in range(40)]))


def test_a_spike_does_not_become_the_level() -> None:
    assert judged([1.0] * 8 + [25.0] * 40 + [1.0, 25.0]) == [False] * 8 + [True] * 40 + [False, True]


def test_a_resumed_detector_gives_the_same_results() -> None:
    draw = np.random.default_rng(3)
    losses = (2 + draw.normal(0, 0.1, 80) + 5 * (draw.random(80) < 0.2)).tolist()
    whole, first, second = SpikeDetector(CONFIG), SpikeDetector(CONFIG), SpikeDetector(CONFIG)
    expected = [whole.is_spike(loss) for loss in losses]
    found = [first.is_spike(loss) for loss in losses[:41]]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    found += [second.is_spike(loss) for loss in losses[41:]]
    assert found == expected
    assert second.state_dict() == whole.state_dict()


def test_a_shorter_window_takes_the_newest_losses() -> None:
    detector = SpikeDetector(SpikesConfig(window=4, min_steps=2))
    detector.load_state_dict({"losses": [9.0, 9.0, 1.0, 2.0, 3.0, 4.0], "length": 0})
    assert detector.state_dict()["losses"] == [1.0, 2.0, 3.0, 4.0]
