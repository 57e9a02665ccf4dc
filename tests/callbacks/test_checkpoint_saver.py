"""If the file system refuses a save, every rank raises one error, no incomplete file remains, and the next start
works."""

import contextlib
import errno
import io
import os
import resource
from pathlib import Path
from typing import cast

import pytest
import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from data.base.errors import ConfigError, DataError, os_error, plain_os_errors
from data.mixing.row_plan import RowPlan
from data.tokenization.tokenizer import Tokenizer
from tests.helpers.ranks import run_ranks
from tests.helpers.saving import wait_until_saved
from tests.helpers.toy_run import write_toy_run
from train.callbacks.run_record import RunRecord
from train.checkpoint.reader import CheckpointReader
from train.checkpoint.save_folder import checkpoints, furnish_save_folder
from train.checkpoint.storage.writer import HashingWriter
from train.config.load import load_config, read_config
from train.run.fit import fit
from train.supervision.record_file import Record


class Refuse(Callback):
    """From batch 3 on, limit the size of files on every rank, or leave no disk space on rank 1 only."""

    def __init__(self, patch: pytest.MonkeyPatch, how: str) -> None:
        self.patch, self.how = patch, how

    def batch_start(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch.value != 2:
            return
        wait_until_saved(state)
        if self.how == "size":
            _limit(50_000)
        elif dist.get_global_rank() == 1:
            self.patch.setattr(HashingWriter, "write_data", _no_space)


def _limit(n_bytes: int | None) -> None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if n_bytes is None else n_bytes, hard))


def _no_space(*args: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def refused(path: str, how: str, overrides: list[str]) -> tuple[str, list[str], list[str]]:
    """Return the error of a run whose second save is refused, the files it leaves, and the files after the next
    start."""
    overrides = [*overrides, "save_interval=2ba", "max_duration=4ba", "eval_loader=null", "autoresume=true"]
    config = read_config(path, overrides)
    folder = Path(str(config.save_folder).format(run_name=config.run_name))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(DataError) as caught:
        fit(config, callbacks=[Refuse(patch, how)])
    left = sorted(entry.name for entry in folder.glob("ep*"))
    _limit(None)
    dist.barrier()
    if how == "space":
        fit(config)
    return str(caught.value), left, [found.name for found in checkpoints(folder)]


SIZE, SPACE = "cannot store a file of this size", "has no space left"
CASES = {
    "size": ("size", SIZE, [], ["ep0-ba2", "ep0-ba4"]),
    "space": ("space", SPACE, [], ["ep0-ba2", "ep0-ba4"]),
    "full": ("size", SIZE, ["fsdp_config=null"], ["ep0-ba2", "ep0-ba4"]),
}


def all_refused(path: str) -> dict[str, tuple[str, list[str], list[str]]]:
    return {name: refused(path, how, [f"run_name={name}", *changes]) for name, (how, _, changes, _) in CASES.items()}


@pytest.mark.ranks
@pytest.mark.timeout(200)
def test_a_refused_save_is_one_error_on_every_rank(tmp_path: Path) -> None:
    first, second = run_ranks(all_refused, 2, write_toy_run(tmp_path))
    assert first == second
    for name, (_, text, _, names) in CASES.items():
        error, left, resumed = first[name]
        assert error.startswith(f"save_folder {tmp_path / name} {text} for the checkpoint of batch 4, which requires ")
        assert " free): " in error
        assert left == names[:1]
        assert resumed == (names if name == "space" else left)


class RefuseOnce(Callback):
    """Limit the size of files while the checkpoint of batch 4 is written."""

    def batch_start(self, state: State, logger: Logger) -> None:
        wait_until_saved(state)
        _limit(50_000 if state.timestamp.batch.value == 3 else None)


def warned(path: str) -> tuple[list[str], str, str]:
    """Return the files and output of a run that continues after a refused save, and the error if its last save is
    refused."""
    overrides = ["save_interval=2ba", "eval_loader=null", "autoresume=true", "on_save_error=warn"]
    config = read_config(path, [*overrides, "max_duration=6ba"])
    with contextlib.redirect_stdout(io.StringIO()) as out:
        fit(config, callbacks=[RefuseOnce()])
    left = sorted(entry.name for entry in Path(str(config.save_folder).format(run_name="toy")).glob("*ep*"))
    with pytest.raises(DataError) as caught:
        fit(read_config(path, [*overrides, "max_duration=4ba", "run_name=last"]), callbacks=[RefuseOnce()])
    _limit(None)
    return left, out.getvalue(), str(caught.value)


@pytest.mark.ranks
def test_a_run_may_continue_without_a_checkpoint_but_not_without_the_last(tmp_path: Path) -> None:
    ((left, out, error),) = run_ranks(warned, 1, write_toy_run(tmp_path))
    assert left == ["ep0-ba2", "ep0-ba6"]
    (line,) = [line for line in out.splitlines() if "without this checkpoint" in line]
    assert line.startswith(
        f"warning: save_folder {tmp_path / 'toy'} cannot store a file of this size for the checkpoint of"
    )
    assert "for the checkpoint of batch 4, which requires " in error


def forms(path: str) -> None:
    for name, kind in (("sharded", "sharded"), ("full", "full")):
        overrides = [f"fsdp_config={{state_dict_type: {kind}}}", f"run_name={name}", "save_interval=2ba"]
        fit(read_config(path, [*overrides, "max_duration=2ba", "eval_loader=null"]))


@pytest.mark.ranks
def test_a_full_checkpoint_is_one_file_with_the_same_tensors(tmp_path: Path) -> None:
    run_ranks(forms, 2, write_toy_run(tmp_path))
    sharded, full = (CheckpointReader(tmp_path / name / "ep0-ba2") for name in ("sharded", "full"))
    assert [len(list(reader.checkpoint.glob("*.distcp"))) for reader in (sharded, full)] == [2, 1]
    keys = sharded.metadata.state_dict_metadata
    assert keys.keys() == full.metadata.state_dict_metadata.keys()
    for key in keys:
        assert sharded.describe(key) == full.describe(key)
        if sharded.describe(key)[0]:
            assert torch.equal(sharded.tensor(key), full.tensor(key)), key


def test_errors_of_libraries_have_a_cause() -> None:
    hidden = RuntimeError("unexpected pos 704 vs 598")
    hidden.__context__ = OSError(errno.EFBIG, "File too large")
    assert getattr(os_error(hidden), "errno", None) == errno.EFBIG
    assert getattr(os_error(Exception("No space left on device (os error 28)")), "errno", None) == errno.ENOSPC
    assert os_error(RuntimeError("a shape")) is None
    with pytest.raises(KeyError), plain_os_errors("x", "y"):
        raise KeyError("a defect")
    with pytest.raises(ConfigError, match=r"^x cannot be written"), plain_os_errors("x", "y"):
        raise OSError(errno.EROFS, "Read-only file system")


class NoSpace:
    def save_pretrained(self, *args: object) -> None:
        raise Exception("No space left on device (os error 28)")


def test_a_refused_record_is_one_warning_if_the_run_may_continue(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = RunRecord(Record({"log_folder": tmp_path / "gone"}), cast(RowPlan, None), None, 8, stop_on_error=False)
    for batch in (4, 5):
        record._add({"batch": batch})
    (message,) = caplog.messages
    assert message.startswith(f"log_folder {tmp_path}/gone cannot be written for record.jsonl")


def test_other_files_of_the_save_folder_have_plain_errors(tmp_path: Path) -> None:
    folder, tokenizer = tmp_path / "save", cast(Tokenizer, NoSpace())
    config = load_config(write_toy_run(tmp_path)).config
    with pytest.raises(
        DataError, match=r"save has no space left for config.yaml and the tokenizer: free some space and"
    ):
        furnish_save_folder(folder, config, tokenizer, run_id="a", resuming=False)
    assert list(folder.iterdir()) == []
    record = RunRecord(Record({"save_folder": tmp_path / "gone"}), cast(RowPlan, None), 4, 8)
    with pytest.raises(ConfigError, match=r"gone cannot be written for record.jsonl .*No such file"):
        record._add({"batch": 4})
