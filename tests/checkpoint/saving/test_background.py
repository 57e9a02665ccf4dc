"""Saving while training continues: a checkpoint has the state of the step that it names, and every error is noticed."""

import contextlib
import errno
import io
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from data.base.errors import DataError
from tests.helpers.ranks import run_ranks
from tests.helpers.saving import wait_until_saved
from tests.helpers.toy_run import write_toy_run
from train.callbacks.checkpoint_saver import CheckpointSaver
from train.checkpoint.save_folder import checkpoints
from train.checkpoint.saving import background
from train.checkpoint.saving.pruning import Pruning
from train.checkpoint.saving.ranks import SaveFailed
from train.checkpoint.saving.snapshot import Snapshot, snapshot_size
from train.checkpoint.storage.files import verify_files
from train.checkpoint.storage.writer import HashingWriter
from train.config.load import read_config
from train.run.fit import fit

# With this learning rate a step changes every weight.
COMMON = ["save_interval=2ba", "max_duration=4ba", "eval_loader=null", "optimizer.lr=0.5", "dist_timeout=60"]
KINDS = {
    "sharded": [],
    "replicated": ["fsdp_config=null"],
    "full": ["fsdp_config={state_dict_type: full}"],
    "adapters": [
        "lora={r: 2, alpha: 4, target_modules: [attn]}",
        "load_path=BASE/sharded-waiting/ep0-ba4",
        "load_weights_only=true",
    ],
}
HYBRID = {"hybrid": ["fsdp_config={sharding_strategy: HYBRID_SHARD, data_parallel_replicate_degree: 2}"]}


class Hold(Callback):
    """The thread writes the checkpoint of batch 2 after batch 3 has been trained."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.trained, self.threads = threading.Event(), set[str]()
        real = HashingWriter.write_data

        def write_data(*args: Any) -> Any:
            self.threads.add(threading.current_thread().name)
            assert self.trained.wait(60)
            return real(*args)

        patch.setattr(HashingWriter, "write_data", write_data)

    def batch_end(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch.value == 3:
            self.trained.set()
            wait_until_saved(state)


def both_ways(path: str, kinds: dict[str, list[str]]) -> list[set[str]]:
    """Save each kind of run in the background and while training waits. Return the threads that wrote."""
    threads = []
    for name, changes in kinds.items():
        overrides = [each.replace("BASE", str(Path(path).parent)) for each in changes]
        fit(read_config(path, [*COMMON, *overrides, f"run_name={name}-waiting", "save_async=false"]))
        with pytest.MonkeyPatch.context() as patch:
            hold = Hold(patch)
            fit(read_config(path, [*COMMON, *overrides, f"run_name={name}-background"]), callbacks=[hold])
        threads.append(hold.threads)
    return threads


def state_of(checkpoint: Path) -> dict[str, Any]:
    """The state without durations."""
    state = json.loads((checkpoint / "state.json").read_text())
    state["timestamp"] = {key: value for key, value in state["timestamp"].items() if not key.endswith("_wct")}
    state["callbacks"]["Throughput"].pop("seconds")
    return state


@pytest.mark.ranks
@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("world_size", "kinds"),
    [
        pytest.param(1, {"sharded": []}, id="1"),
        pytest.param(2, KINDS, id="2"),
        pytest.param(4, HYBRID, id="4", marks=pytest.mark.proof),
    ],
)
def test_a_checkpoint_has_the_state_of_the_step_that_it_names(
    tmp_path: Path, world_size: int, kinds: dict[str, list[str]]
) -> None:
    threads = run_ranks(both_ways, world_size, write_toy_run(tmp_path), kinds, timeout=180)
    for number, name in enumerate(kinds):
        assert threads[0][number] == {"checkpoint-writer"}
        for batch in (2, 4):
            waiting, written = (tmp_path / f"{name}-{how}" / f"ep0-ba{batch}" for how in ("waiting", "background"))
            verify_files(written)
            assert state_of(written) == state_of(waiting)
            files = sorted(file.name for file in waiting.glob("*.distcp"))
            assert files == sorted(file.name for file in written.glob("*.distcp"))
            for file in files:
                assert (written / file).read_bytes() == (waiting / file).read_bytes(), (name, batch, file)


class WaitsAtBatch3(Callback):
    """Waits on some ranks until the thread has ended; records the batches that have started."""

    def __init__(self, ranks: tuple[int, ...]) -> None:
        self.ranks, self.begun = ranks, []

    def batch_start(self, state: State, logger: Logger) -> None:
        self.begun.append(state.timestamp.batch.value + 1)

    def batch_end(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch.value == 3 and dist.get_global_rank() in self.ranks:
            wait_until_saved(state)


def fails(path: str, name: str, ranks: tuple[int, ...]) -> tuple[str, list[int], list[str]]:
    """The error, the batches that have started, and the remaining checkpoints."""
    waits = WaitsAtBatch3(ranks)
    with pytest.raises((DataError, SaveFailed)) as caught:
        fit(read_config(path, [*COMMON, f"run_name={name}"]), callbacks=[waits])
    return str(caught.value), waits.begun, [each.name for each in checkpoints(Path(path).parent / name)]


def failing(path: str) -> list[tuple[str, list[int], list[str]]]:
    """A thread with a file system error, and a thread with a defect, for which the thread of rank 0 waits."""

    def no_space(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def defect(*args: object) -> None:
        raise KeyError("a defect")

    found = []
    for name, ranks, target, method, hook in (
        ("no-space", (0, 1), HashingWriter, "write_data", no_space),
        ("defect", (1,), Pruning, "after", defect),
    ):
        with pytest.MonkeyPatch.context() as patch:
            if dist.get_global_rank() == 1:
                patch.setattr(target, method, hook)
            found.append(fails(path, name, ranks))
    return found


@pytest.mark.ranks
def test_an_error_in_the_thread_ends_every_rank_at_the_next_step(tmp_path: Path) -> None:
    first, second = run_ranks(failing, 2, write_toy_run(tmp_path))
    assert first == second
    (refused, *at_batch_3), defect = first
    place = tmp_path / "no-space"
    assert refused.startswith(f"save_folder {place} has no space left for the checkpoint of batch 2, which requires ")
    assert at_batch_3 == [[1, 2, 3], []]
    assert defect == ("a checkpoint could not be written: KeyError: 'a defect'", [1, 2, 3], ["ep0-ba2"])


class Raises(Callback):
    def batch_start(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch.value == 3:
            raise KeyError("another error")


class SavesNow(Callback):
    """A run that ends early, at batch 3."""

    def __init__(self) -> None:
        self.present: list[list[str]] = []

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch.value == 3:
            (saver,) = (each for each in state.callbacks if isinstance(each, CheckpointSaver))
            for _ in range(2):
                path = saver.save_now(state)
                assert path is not None
                self.present.append([path.name, *(each.name for each in checkpoints(path.parent))])


def ended_early(path: str) -> tuple[list[str], list[list[str]], str, list[str], list[str]]:
    folder = Path(path).parent
    with pytest.MonkeyPatch.context() as patch:
        hold = Hold(patch)
        hold.batch_end = lambda state, logger: hold.trained.set() if state.timestamp.batch.value == 3 else None
        with pytest.raises(KeyError):
            fit(read_config(path, [*COMMON, "run_name=raised"]), callbacks=[hold, Raises()])
        hold.trained.set()
        saves = SavesNow()
        fit(read_config(path, [*COMMON, "run_name=now"]), callbacks=[saves])
        patch.setattr(background, "free_cpu_memory", lambda: 1000.0)
        hold.threads.clear()
        with contextlib.redirect_stdout(io.StringIO()) as out:
            fit(read_config(path, [*COMMON, "run_name=small"]), callbacks=[])
    names = [[each.name for each in checkpoints(folder / name)] for name in ("raised", "small")]
    return names[0], saves.present, out.getvalue(), names[1], sorted(hold.threads)


@pytest.mark.ranks
def test_a_run_that_ends_early_completes_its_save_and_a_run_without_memory_waits(tmp_path: Path) -> None:
    ((raised, now, out, small, threads),) = run_ranks(ended_early, 1, write_toy_run(tmp_path))
    assert raised == ["ep0-ba2"]
    assert now == [["ep0-ba3", "ep0-ba2", "ep0-ba3"]] * 2
    (line,) = [line for line in out.splitlines() if "training pauses while a checkpoint is saved" in line]
    assert line.endswith("which has 1000b free, but the copy may use at most 90% of the free memory")
    assert (small, threads) == (["ep0-ba2", "ep0-ba4"], ["MainThread"])


def test_copies_reuse_the_same_memory() -> None:
    tensors = {"a": torch.rand(3, 5), "b": torch.tensor(2.0), "c": torch.rand(0, 4), "d": torch.rand(6).bfloat16()}
    before = {key: tensor.clone() for key, tensor in tensors.items()}
    snapshot = Snapshot()
    first = snapshot.take(tensors)
    for tensor in tensors.values():
        tensor.add_(1)
    for key, tensor in first.items():
        assert torch.equal(tensor, before[key])
        # torch.save writes the whole storage.
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    again = snapshot.take(tensors)
    assert [each.data_ptr() for each in again.values()] == [each.data_ptr() for each in first.values()]
    assert torch.equal(first["a"], tensors["a"])
    assert snapshot_size(tensors) == 64 * 3
    assert snapshot.take({"a": torch.rand(7, 5)})["a"].shape == (7, 5)
