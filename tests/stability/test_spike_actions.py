"""A loss of 25 times its level for 30 steps under each on_spike; which runs end; changes of the data mixture."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from torch import nn

from tests.helpers.small_config import load
from train.config.supervision import DeadlinesConfig, SpikesConfig
from train.stability import spike_actions
from train.stability.rollback import RolledBack
from train.stability.spike_actions import SpikeActions
from train.supervision.exit_codes import ExitCode, RunStopped
from train.supervision.hangs.deadlines import Deadlines, Section
from train.supervision.hangs.sections import Sections, watched_sections

OnSpike = Literal["log", "skip", "rollback"]
SPIKE = [1.0, 1.1, 0.9] * 5 + [25.0] * 30 + [1.0] * 3


class Reported:
    """Collects the events of a run."""

    def __init__(self) -> None:
        self.found: list[tuple[int, str]] = []

    def report(self, kind: str, batch: int, message: str, **details: Any) -> None:
        json.dumps(details | {"logger": None})
        self.found.append((batch, kind))


class Saver:
    def __init__(self, *checkpoints: Path) -> None:
        self.checkpoints = list(checkpoints)

    def save_now(self, state: Any, *, random: Any = None) -> None:
        raise AssertionError("a spike is no reason to save")

    def committed(self, state: Any) -> list[Path]:
        return self.checkpoints


class Run:
    """Run steps with the given losses."""

    def __init__(self, on_spike: OnSpike, *checkpoints: Path, **spikes: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            small = load(Path(folder))
        config = replace(
            small, on_spike=on_spike, save_folder="x", spikes=SpikesConfig(min_steps=6, window=16, **spikes)
        )
        self.events, self.batch = Reported(), 0
        self.actions = SpikeActions(config, self.events, Saver(*checkpoints))  # type: ignore[arg-type]

    def step(self, loss: float, mix: str = "") -> bool:
        logger: Any = None
        self.actions.enter(self.batch, [1, mix], logger)
        state: Any = SimpleNamespace(
            timestamp=SimpleNamespace(batch=SimpleNamespace(value=self.batch)),
            optimizers=[torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)],
        )
        self.batch += 1
        return self.actions.handle(state, loss, logger, nn.Linear(1, 1))


@pytest.fixture
def rolled_back(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the list of loaded checkpoints."""
    loaded: list[Path] = []

    def load(checkpoints: list[Path], model: nn.Module, optimizer: torch.optim.Optimizer) -> RolledBack | None:
        loaded.extend(checkpoints[-1:])
        return RolledBack(checkpoints[-1], {}) if checkpoints else None

    monkeypatch.setattr(spike_actions, "roll_back", load)
    return loaded


@pytest.mark.parametrize("on_spike", ["log", "skip", "rollback"])
def test_a_spike_of_30_steps_is_one_event(on_spike: OnSpike, rolled_back: list[Path]) -> None:
    run = Run(on_spike, Path("ep0-ba4"), Path("ep0-ba8"))
    left_out = [run.step(loss) for loss in SPIKE]
    assert run.events.found == [(15, "rollback" if on_spike == "rollback" else "spike"), (45, "spike_end")]
    assert left_out == [loss == 25 and on_spike != "log" for loss in SPIKE]
    assert rolled_back == ([Path("ep0-ba8")] if on_spike == "rollback" else [])


def test_without_a_checkpoint_the_steps_are_skipped(rolled_back: list[Path]) -> None:
    run = Run("rollback")
    assert [run.step(loss) for loss in SPIKE] == [loss == 25 for loss in SPIKE]
    assert run.events.found == [(15, "spike"), (45, "spike_end")]


def test_with_log_a_lasting_spike_becomes_the_new_level() -> None:
    run = Run("log", max_steps=20)
    for loss in [*SPIKE[:15], *[25.0] * 60, 100.0]:
        run.step(loss)
    assert run.events.found == [(15, "spike"), (34, "spike_end"), (75, "spike")]


@pytest.mark.parametrize("on_spike", ["skip", "rollback"])
def test_a_lasting_spike_ends_a_run_that_skips_steps(on_spike: OnSpike, rolled_back: list[Path]) -> None:
    run = Run(on_spike, Path("ep0-ba8"), max_steps=20)
    assert all(run.step(loss) == (loss == 25) for loss in SPIKE[:34])
    with pytest.raises(RunStopped, match=r"spikes\.max_steps: 20") as stopped:
        run.step(25.0)
    assert stopped.value.code == ExitCode.UNSTABLE


def test_the_rollbacks_of_a_run_are_counted_over_its_starts(rolled_back: list[Path]) -> None:
    run = Run("rollback", Path("ep0-ba8"), max_rollbacks=2)
    for loss in [*SPIKE, *SPIKE]:
        run.step(loss)
    resumed = Run("rollback", Path("ep0-ba8"), max_rollbacks=2)
    resumed.actions.load_state_dict(json.loads(json.dumps(run.actions.state_dict())))
    resumed.batch = run.batch
    with pytest.raises(RunStopped, match=r"spikes\.max_rollbacks: 2"):
        resumed.step(25.0)
    assert len(rolled_back) == 2


def test_another_mixture_has_another_level() -> None:
    run = Run("skip")
    for loss in [*SPIKE[:15], 25.0]:
        run.step(loss, "first stage")
    assert not any(run.step(25.0 + step % 3, "second stage") for step in range(20))
    assert run.step(100.0, "second stage")
    assert run.events.found == [(15, "spike"), (16, "spike_end"), (36, "spike")]


def test_after_a_rollback_the_loss_is_compared_with_that_before_the_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run("rollback", Path("ep0-ba8"))
    then = {"StepCheck": {"spikes": {"detector": {"losses": [3.0, 3.1, 2.9] * 3, "length": 0}, "mix": [1, ""]}}}
    monkeypatch.setattr(spike_actions, "roll_back", lambda *args: RolledBack(Path("ep0-ba8"), then))
    for loss in SPIKE[:16]:
        run.step(loss)
    assert not run.step(3.05)
    assert run.events.found == [(15, "rollback"), (16, "spike_end")]


def test_after_a_rollback_to_another_mixture_the_loss_is_compared_with_that_of_the_current_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run("rollback", Path("ep0-ba8"))
    for loss in [1.0, 1.1, 0.9] * 3:
        run.step(loss, "first stage")
    then = json.loads(json.dumps({"StepCheck": {"spikes": run.actions.state_dict()}}))
    monkeypatch.setattr(spike_actions, "roll_back", lambda *args: RolledBack(Path("ep0-ba8"), then))
    left_out = [run.step(loss, "second stage") for loss in [*[3.0, 3.1, 2.9] * 3, 25.0, 3.0, 3.1]]
    assert left_out == [False] * 9 + [True, False, False]
    assert run.events.found == [(18, "rollback"), (19, "spike_end")]


def test_a_rollback_has_no_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    run, places = Run("rollback", Path("ep0-ba8")), []
    sections = Sections(Deadlines(DeadlinesConfig()), lambda: 0.0, lambda message: None)
    monkeypatch.setattr(Saver, "committed", lambda *args: places.append(sections.place.section) or [])
    with watched_sections(sections):
        sections.step_done(1)
        for loss in SPIKE[:16]:
            run.step(loss)
    assert (places, sections.place.section) == ([Section.UNTIMED], Section.STEP)
