"""The metrics that Throughput logs in a resumed run of two ranks, with a clock that the run's callbacks advance; and
the profile of two of its steps."""

import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from tests.helpers.ranks import run_ranks
from tests.helpers.toy_run import write_toy_run
from train.callbacks.checkpoint_saver import BackgroundSaver
from train.config.load import read_config
from train.loggers.step_logger import StepLogger
from train.run import trainer
from train.run.fit import fit
from train.supervision.hangs import sections, watch
from train.supervision.hangs.sections import waiting_for_data
from train.throughput import monitor
from train.throughput.timeline import CATEGORIES, table, timeline

STEP, DATA, EVALUATION, SAVE, START = 2.0, 1.0, 10.0, 7.0, 30.0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now

    def tick(self) -> None:
        pass


clock = Clock()


class Spend(Callback):
    """Advances the clock for steps and evaluations. Also counts tokens independently."""

    def __init__(self) -> None:
        self.tokens = torch.zeros(3)
        self.marks: list[int] = []

    def after_train_batch(self, state: State, logger: Logger) -> None:
        clock.now += STEP
        labels, documents = state.batch["labels"], state.batch["document_ids"]
        self.tokens += torch.tensor([labels.numel(), (documents >= 0).sum(), (labels != -100).sum()])

    def eval_start(self, state: State, logger: Logger) -> None:
        clock.now += EVALUATION

    def fit_end(self, state: State, logger: Logger) -> None:
        dist.all_reduce(self.tokens)
        assert sections._watched is not None
        self.marks = dist.all_gather_object(sections._watched.place.marks)


class Kept(StepLogger):
    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[int, dict[str, float]] = {}

    def fit_start(self, state: State, logger: Logger) -> None:
        logger.destinations = (*logger.destinations, self)

    def write(self, state: State, metrics: Mapping[str, float]) -> None:
        self.steps[state.timestamp.batch.value] = self.steps.get(state.timestamp.batch.value, {}) | dict(metrics)


@contextmanager
def slow_data() -> Iterator[Callable[[], float]]:
    with waiting_for_data() as seconds_left:
        clock.now += DATA
        yield seconds_left


def slow_save(save: Callable[..., Any]) -> Callable[..., Any]:
    def slow(*args: Any, **kwargs: Any) -> Any:
        clock.now += SAVE
        return save(*args, **kwargs)

    return slow


def two_runs(path: str) -> list[Any]:
    """A run of 6 batches, resumed to 9. Returns the logged metrics of both, and their token counts."""
    watch.AwakeClock = lambda: clock
    trainer.waiting_for_data = slow_data
    monitor.process_seconds = lambda: START
    monitor.peak_memory = lambda gpu: 2**30 * (1 + dist.get_global_rank())
    BackgroundSaver.save = slow_save(BackgroundSaver.save)
    kept, found = [], torch.zeros(3)
    for end in (6, 9):
        overrides = [f"max_duration={end}ba", "eval_interval=2ba", "save_interval=3ba", "autoresume=true"]
        overrides.append("profile={step: 4, steps: 2, ranks: [1]}")
        kept.append(Kept())
        spend = Spend()
        fit(read_config(path, overrides), callbacks=[spend, kept[-1]])
        assert spend.marks[0] == spend.marks[1], "the watchdog compares them, although only one rank is profiled"
        found += spend.tokens
    return [*(each.steps for each in kept), found.tolist()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def logged(folder: Path) -> list[Any]:
    return run_ranks(two_runs, 2, write_toy_run(folder))[0]


def seconds_of(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix("seconds/"): value for name, value in metrics.items() if name.startswith("seconds/")}


@pytest.mark.ranks
@pytest.mark.timeout(200)
def test_throughput_excludes_evaluations_saves_and_warm_up(logged: list[Any]) -> None:
    first, second, _ = logged
    speeds = {batch: step.get("throughput/batches_per_sec") for batch, step in (first | second).items()}
    per_step = pytest.approx(1 / (STEP + DATA))
    assert speeds == {
        1: None,
        2: None,
        3: per_step,
        4: per_step,
        5: per_step,
        6: per_step,
        7: None,
        8: None,
        9: per_step,
    }
    step = first[5]
    assert step["throughput/device/tokens_per_sec"] * 2 == step["throughput/tokens_per_sec"] == pytest.approx(1024 / 3)
    assert step["throughput/real_tokens_per_sec"] / step["throughput/trained_tokens_per_sec"] == pytest.approx(2)
    assert "throughput/device/mfu" not in step


@pytest.mark.ranks
def test_seconds_add_up_and_survive_a_resume(logged: list[Any]) -> None:
    first, second, _ = logged
    before = {"data": 5, "train": 5 * STEP, "save": 2 * SAVE, "eval": 3 * (EVALUATION + 4 * DATA)}
    assert seconds_of(first[6]) == before | {"startup": START + STEP + 4 * DATA, "generate": 0, "other": 0}
    # The last save of the first process is not part of the checkpoint that it wrote.
    assert seconds_of(second[7]) == seconds_of(first[6]) | {"save": SAVE, "startup": START + 2 * (STEP + 4 * DATA)}
    assert seconds_of(second[9])["eval"] == 4 * (EVALUATION + 4 * DATA)


@pytest.mark.ranks
def test_tokens_are_those_of_all_ranks_with_and_without_padding_and_trained(logged: list[Any]) -> None:
    first, second, counted = logged
    tokens = [second[9][f"tokens/{name}"] for name in ("total", "real", "trained")]
    assert tokens == counted
    assert tokens[0] > tokens[1] > tokens[2] > first[6]["tokens/trained"]
    assert second[9]["memory/peak_gib"] == 2, "rank 1 has more"


@pytest.mark.ranks
def test_the_remaining_time_includes_future_evaluations_and_saves(logged: list[Any]) -> None:
    # At step 5: 2 evaluations and a save in the 4 steps since the first.
    per_batch = (2 * (EVALUATION + 4 * DATA) + SAVE) / 4
    assert logged[0][5]["time/remaining_seconds"] == pytest.approx(STEP + DATA + per_batch)
    assert logged[1][9]["time/remaining_seconds"] == 0


@pytest.mark.ranks
def test_the_learning_rate_is_always_logged(logged: list[Any]) -> None:
    assert [logged[0][batch]["lr"] for batch in (1, 2, 3)] == [0.0, 0.0015, 0.003]


@pytest.mark.ranks
def test_the_table_of_a_profile_adds_up_to_its_steps(folder: Path, logged: list[Any]) -> None:
    trace, text = sorted((folder / "toy" / "profile").iterdir())
    assert (trace.name, text.name) == ("step4-5-rank1.json.gz", "step4-5-rank1.txt")
    with gzip.open(trace) as file:
        events = json.load(file)["traceEvents"]
    steps = [each["dur"] for each in events if each["name"].startswith("ProfilerStep#")]
    found = timeline(events)
    assert found.steps == len(steps) == 2
    assert sum(found.seconds.values()) == pytest.approx(sum(steps) / 1e6, rel=0.01)
    assert all(found.seconds[name] > 0 for name in CATEGORIES)
    assert text.read_text() == table(found, "profile of steps 4 to 5, rank 1") + "\n"
