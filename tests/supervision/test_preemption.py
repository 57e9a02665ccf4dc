"""A run that signals and max_wall_time end repeatedly, and that is resumed each time, trains like an uninterrupted
run."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from composer.core import Callback, State
from composer.loggers import Logger

from data.loading.batches import TrainBatches
from tests.helpers.ranks import run_ranks
from tests.helpers.toy_run import write_toy_run
from tests.helpers.watched_run import Watch
from train.checkpoint.save_folder import checkpoints
from train.checkpoint.storage.writer import HashingWriter
from train.config.load import read_config
from train.generation.generate import TextStream
from train.supervision import wall_time
from train.supervision.exit_codes import RunStopped
from train.supervision.signals import StopSignals
from train.supervision.wall_time import WallTime

GENERATE = "callbacks.generate={prompts: ['amber birch'], interval: 8ba, max_new_tokens: 6}"


def send(number: int) -> None:
    os.kill(os.getpid(), number)


class InStep(Callback):
    """Send the signal while the batch after this many is trained."""

    def __init__(self, batch: int, number: int) -> None:
        self.batch, self.number = batch, number

    def after_forward(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch.value == self.batch:
            send(self.number)


class InEvaluation(InStep):
    """Send the signal before the second batch."""

    def after_forward(self, state: State, logger: Logger) -> None:
        pass

    def eval_batch_start(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch.value == self.batch and state.eval_timestamp.batch.value == 1:
            send(self.number)


def in_save(patch: pytest.MonkeyPatch, number: int) -> None:
    """Send the signal twice while the checkpoint's files are written, which takes longer then."""
    write = HashingWriter.write_data

    def slow(*args: Any, **kwargs: Any) -> Any:
        send(number)
        time.sleep(0.3)
        send(number)
        return write(*args, **kwargs)

    patch.setattr(HashingWriter, "write_data", slow)


def in_wait(patch: pytest.MonkeyPatch, number: int, batch: int) -> None:
    """Send the signal while the run waits for the batch after this many, which would take a minute."""
    read = TrainBatches.__getitem__

    def slow(self: TrainBatches, n: int) -> Any:
        if n == batch:
            threading.Timer(0.2, send, [number]).start()
            time.sleep(60)
        return read(self, n)

    patch.setattr(TrainBatches, "__getitem__", slow)


def in_generation(patch: pytest.MonkeyPatch, number: int) -> None:
    add = TextStream.add
    patch.setattr(TextStream, "add", lambda self, token: (send(number), add(self, token))[1])


def _start(
    path: str, overrides: list[str], signalled: Callable[[pytest.MonkeyPatch], Callback | None] | None = None
) -> SimpleNamespace:
    from composer.utils import dist

    from train.run.fit import fit

    watch, signals = Watch(None), StopSignals()
    signals.install()
    started, ended, extra = time.monotonic(), None, None
    with pytest.MonkeyPatch.context() as patch:
        if signalled is not None:
            extra = signalled(patch)
        try:
            fit(read_config(path, overrides), callbacks=[watch, *([extra] if extra else [])], signals=signals)
        except RunStopped as stop:
            ended = (stop.code, str(stop))
    signals.uninstall()
    seconds = time.monotonic() - started
    dist.barrier()  # rank 0 is the last to release the folder
    return SimpleNamespace(ended=ended, seconds=seconds, losses=watch.losses, weights=watch.weights)


def _ended_again_and_again(path: str) -> dict[str, SimpleNamespace]:
    """Return the uninterrupted run, and each start of the other run. Only one rank receives each signal."""

    def on(rank: int, signalled: Any) -> Any:
        return signalled if int(os.environ["RANK"]) == rank else None

    both = [GENERATE, "eval_interval=5ba", "autoresume=true"]
    runs = {"whole": _start(path, [*both, "run_name=whole"])}
    starts = {
        "in a step": on(1, lambda patch: InStep(2, signal.SIGTERM)),
        "in a save": on(0, lambda patch: in_save(patch, signal.SIGUSR1)),
        "in an evaluation": on(1, lambda patch: InEvaluation(5, signal.SIGINT)),
        "in a wait": on(0, lambda patch: in_wait(patch, signal.SIGTERM, 6)),
        "in a generation": on(1, lambda patch: in_generation(patch, signal.SIGUSR1)),
        "in time": None,
        "to the end": None,
    }
    for name, signalled in starts.items():
        limit = {"in time": ["max_wall_time=1s"], "in a save": ["save_async=false"]}.get(name, [])
        runs[name] = _start(path, [*both, "run_name=parts", *limit], signalled)
    return runs


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_that_is_preempted_repeatedly_ends_like_an_uninterrupted_run(tmp_path: Path) -> None:
    path = write_toy_run(tmp_path)
    ranks = run_ranks(_ended_again_and_again, 2, path, timeout=240)
    folder = tmp_path / "parts"
    causes = {
        "in a step": (3, "SIGTERM received"),
        "in a save": (4, "SIGUSR1 received"),
        "in an evaluation": (5, "SIGINT received"),
        "in a wait": (6, "SIGTERM received"),
        "in a generation": (8, "SIGUSR1 received"),
        "in time": (9, "max_wall_time is almost reached"),
    }
    for runs in ranks:
        for name, (batch, cause) in causes.items():
            saved = f"{cause}: batch {batch} is saved in {folder}/ep0-ba{batch}"
            assert runs[name].ended == (75, f"{saved}; resume with: the same command with autoresume=true"), name
            assert runs[name].seconds < 45
        assert runs["whole"].ended is runs["to the end"].ended is None
        losses = {batch: loss for name in [*causes, "to the end"] for batch, loss in runs[name].losses.items()}
        assert losses == runs["whole"].losses
        weights = runs["to the end"].weights
        assert weights.keys() == runs["whole"].weights.keys()
        for name, expected in runs["whole"].weights.items():
            assert torch.equal(weights[name], expected), name
    assert [found.name for found in checkpoints(folder)] == [f"ep0-ba{n}" for n in (3, 4, 5, 6, 8, 9, 10)]

    def lines(run: str, key: str) -> list[dict[str, Any]]:
        read = map(json.loads, (tmp_path / run / "record.jsonl").read_text().splitlines())
        ours = (line for line in read if line.get("event") not in ("start", "saved", "end"))
        return [{name: value for name, value in line.items() if name != "time"} for line in ours if key in line]

    # The skipped evaluation is made after the resume.
    assert lines("parts", "eval") == lines("whole", "eval")
    events = lines("parts", "event")
    assert [(line["event"], line["batch"], line["exit_code"]) for line in events] == [
        ("preempted", batch, 75) for batch, _ in causes.values()
    ]
    assert [line["batch"] for line in lines("parts", "rows")] == [3, 4, 5, 6, 8, 9, 10]


def _unsaved(path: str) -> list[Any]:
    return [
        _start(path, ["save_folder=null", "eval_loader=null"], lambda patch: InStep(1, signal.SIGUSR1)).ended,
        _start(path, ["eval_first=true"], lambda patch: InEvaluation(0, signal.SIGTERM)).ended,
        _start(path, ["max_duration=2ba"]).ended,
        _start(path, ["autoresume=true"], lambda patch: in_wait(patch, signal.SIGTERM, 2)).ended,
    ]


@pytest.mark.ranks
def test_a_run_that_cannot_save_reports_why(tmp_path: Path) -> None:
    ((no_folder, no_step, done, no_further_step),) = run_ranks(_unsaved, 1, write_toy_run(tmp_path))
    assert no_folder == (138, "SIGUSR1 received: nothing was saved, because there is no save_folder")
    assert no_step == (143, "SIGTERM received: nothing was saved, because no batch has been trained yet")
    assert done is None
    code, text = no_further_step
    assert (code, text.partition(";")[0]) == (75, f"SIGTERM received: batch 2 is saved in {tmp_path}/toy/ep0-ba2")
    assert [found.name for found in checkpoints(tmp_path / "toy")] == ["ep0-ba2"]


def test_wall_time_leaves_room_for_a_step_and_a_save(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(wall_time, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(wall_time, "process_seconds", lambda: 50.0)
    limit = WallTime(1000.0, file_bytes=int(40e9))
    # 400 s at 100 MB/s, but at most a quarter of the time; and 20 s for the exit.
    assert limit.elapsed == 50
    assert limit.margin == 1.25 * 250 + 20
    limit.note_save(0.0)
    assert limit.margin == 1.25 * 250 + 20
    limit.note_save(100.0)
    limit.begin_step()
    now[0] += 60
    limit.end_step()
    now[0] += 500  # time of an evaluation
    limit.begin_step()
    now[0] += 40
    limit.end_step()
    assert limit.elapsed == 650
    assert limit.margin == 1.25 * (60 + 100) + 20
    assert not limit.is_almost_over()
    limit.note_sending(0.0)
    limit.note_sending(30.0)
    assert limit.margin == 1.25 * (60 + 100 + 30) + 20
    limit.note_sending(1e-9)
    now[0] += 131
    assert limit.is_almost_over()


def test_the_time_of_a_process_counts_from_its_start() -> None:
    before = wall_time.process_seconds()
    time.sleep(0.1)
    assert 0.09 < wall_time.process_seconds() - before < 5
