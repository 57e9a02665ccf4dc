"""scripts/replay_batch.py recomputes batches whose content makes them non-finite."""

import contextlib
import io
import json
import logging
import math
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from composer.core import Callback, State
from composer.loggers import Logger
from torch.distributed.tensor import DTensor, distribute_tensor

from data.base import console
from tests.helpers.faults import Ended, Fault, run_with
from tests.helpers.load_script import load_script
from tests.helpers.ranks import run_ranks
from tests.helpers.toy_run import write_toy_run
from train.checkpoint.save_folder import checkpoints
from train.distributed import failures, rank_store
from train.run import replay
from train.stability.incidents import read_batch
from train.supervision.exit_codes import RunStopped

RARE = 126
"""The token `~`, which occurs in one example."""


class Poison(Callback):
    """A finite embedding that makes a layer norm overflow, only for rows that contain its token."""

    def fit_start(self, state: State, logger: Logger) -> None:
        (param,) = [param for name, param in state.model.named_parameters() if name.endswith("wte.weight")]
        added = torch.zeros(param.shape)
        added[RARE] = 3e38
        assert isinstance(param, DTensor)
        with torch.no_grad():
            param += distribute_tensor(added, param.device_mesh, param.placements)


class Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def write_run(folder: Path) -> str:
    path = write_toy_run(folder)
    with (folder / "train.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "~~~~\n", "response": "amber"}) + "\n")
    return path


def replayed(incident: Path) -> tuple[int, list[str]]:
    """Return the exit code and the output of the script, errors last."""
    messages, errors = Messages(), io.StringIO()
    console.logger.addHandler(messages)
    try:
        with contextlib.redirect_stderr(errors):
            code = load_script("replay_batch").main([str(incident)])
        return code, [*messages.lines, *errors.getvalue().splitlines()]
    finally:
        console.logger.removeHandler(messages)


def skipped(path: str, overrides: list[str]) -> tuple[Ended, dict[str, tuple[int, list[str]]]]:
    """Train, and return the run and the replays of its incidents."""
    ended = run_with(path, overrides, Poison(), Fault([2], loss=math.inf, ranks=[1]))
    folder = Path(path).parent / "skipped" / "incidents"
    return ended, {incident.name: replayed(incident) for incident in folder.iterdir()}


def stopped(path: str, overrides: list[str]) -> tuple[Ended, list[tuple[int, list[str]]]]:
    ended = run_with(path, overrides, Poison())
    folder = Path(path).parent
    (incident,) = (folder / "stopped" / "incidents").iterdir()
    return ended, [replayed(incident), replayed(folder / "skipped" / "incidents" / "ba2"), replayed(folder)]


@pytest.mark.ranks
def test_a_batch_is_recomputed_bit_for_bit(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    overrides = ["eval_loader=null", "model.n_layers=1", "device_train_microbatch_size=2", "max_duration=8ba"]
    run, found = run_ranks(skipped, 2, path, [*overrides, "run_name=skipped", "on_nonfinite=skip"])[0]
    assert run.kinds() == [(2, "nonfinite"), (6, "nonfinite")]
    # Replayed from ep0-ba4 through dropout and jitter; the loss of the other rank is finite.
    code, lines = found["ba6"]
    assert code == 0, lines
    assert lines[-1] == "the recorded and the recomputed loss are equal bit for bit on all ranks"
    assert "recorded nan (nan), replayed nan (nan): equal" in lines[-2]
    assert "starting from ep0-ba4" in lines[0]
    # Replayed from the beginning; neither weights nor rows contain what a callback did to the loss.
    code, lines = found["ba2"]
    assert code == 1
    assert "recorded inf (inf)" in lines[-2]
    assert "NOT EQUAL; the same rows, the same random state" in lines[-2]
    assert "neither the weights nor the rows explain" in lines[-1]

    run, (same, other_ranks, no_incident) = run_ranks(stopped, 1, path, [*overrides, "run_name=stopped"])[0]
    assert run.code == 3
    assert [found.name for found in checkpoints(tmp_path / "stopped")] == ["ep0-ba4", "ep0-ba6"]
    assert (same[0], same[1][-1]) == (0, "the recorded and the recomputed loss are equal bit for bit on all ranks")
    assert other_ranks[0] == no_incident[0] == 2
    assert (
        "is from a run on 2 ranks, but this command runs on 1 rank(s): use the launcher of the run"
        in other_ranks[1][-1]
    )
    assert f"{tmp_path} is not an incident" in no_incident[1][-1]


def raising(error: Exception) -> Callable[[Path], None]:
    def raise_it(incident: Path) -> None:
        raise error

    return raise_it


def test_a_stopped_replay_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "replay", raising(RunStopped(3, "the loss is a spike")))
    assert replayed(Path("ba2")) == (3, ["stopped: the loss is a spike"])


def test_a_read_error_of_another_rank_is_shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    for name, value in {**variables, "LOCAL_WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    store = rank_store.connect()
    monkeypatch.setenv("RANK", "1")
    failures.note_shown(store)  # as rank 0 does, which waits for the others
    monkeypatch.setattr(replay, "replay", lambda incident: read_batch(tmp_path, 1))
    assert replayed(tmp_path) == (2, [])
    failure = failures.shared(store)
    assert failure is not None
    assert failure.rank == 1
    assert f"{tmp_path}/batch-rank1.safetensors cannot be read" in failure.message
