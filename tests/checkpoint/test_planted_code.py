"""Code planted anywhere in a checkpoint is reported and not executed."""

import os
import pathlib
import pickle
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import metadata
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from data.base.errors import ConfigError
from tests.helpers.small_export import write_run
from train.checkpoint.load import open_checkpoint
from train.checkpoint.reader import CheckpointReader
from train.checkpoint.state import read_state
from train.export.export import export

GOLDEN = Path(__file__).parents[1] / "golden" / "run" / "ep0-ba4"


class Runs:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


def _nested() -> dict[str, Any]:
    """The content of a checkpoint of an earlier version: the state of its Trainer."""
    reader = CheckpointReader(GOLDEN)
    nested: dict[str, Any] = {}
    for key, path in (reader.metadata.planner_data or {}).items():
        if path[1] == "metadata":
            continue
        inner = nested
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
        is_tensor = isinstance(reader.metadata.state_dict_metadata[key], TensorStorageMetadata)
        size = reader.describe(key)[0] if is_tensor else ()
        inner[path[-1]] = (reader.tensor(key) if size else torch.ones(())) if is_tensor else reader.value(key)
    return nested | {"rng": [nested["rng"][rank] for rank in sorted(nested["rng"])]}


def _folder(path: Path, state: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.save(state, checkpoint_id=path, no_dist=True)


def _whole(path: Path) -> None:
    read_state(open_checkpoint(path))


PLACES: dict[str, Callable[[dict[str, Any], Any], None]] = {
    "random state": lambda state, runs: state["rng"][0].update(python=runs),
    "position": lambda state, runs: state["state"]["dataset_state"]["train"].update(position=runs),
    "state of a callback": lambda state, runs: state["state"]["callbacks"]["StreamMonitor"].update(tokens=runs),
    "state of the saver": lambda state, runs: state["state"]["callbacks"]["CheckpointSaver"].update(saved=runs),
    "settings": lambda state, runs: state["state"]["optimizers"]["AdamW"]["param_groups"][0].update(lr=runs),
    "counters": lambda state, runs: state["state"]["timestamp"]["Timestamp"].update(batch=runs),
}


def refused(path: Path, use: Callable[[Path], object]) -> None:
    with pytest.raises(ConfigError, match=r"refers to posix\.mkdir, .*: the code was not executed"):
        use(path)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", ["folder", "file"])
def test_code_planted_in_a_checkpoint_is_not_executed(tmp_path: Path, place: str, form: str) -> None:
    state = _nested()
    path = tmp_path / ("ep0-ba4" if form == "folder" else "ep0-ba4-rank0.pt")
    write = _folder if form == "folder" else lambda path, state: torch.save(state, path)
    write(path, state)
    assert read_state(open_checkpoint(path)).timestamp["batch"] == 4
    PLACES[place](state, Runs(tmp_path / "canary"))
    shutil.rmtree(path, ignore_errors=True)
    write(path, state)
    refused(path, _whole)
    assert not (tmp_path / "canary").exists()


def test_an_index_with_code_is_refused_by_all_readers(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    checkpoint = tmp_path / "run" / "ep0-ba10"
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Runs(tmp_path / "canary")))
    with pytest.raises(ConfigError, match=r"\.metadata has \d+ bytes, but [\d,]+ were written"):
        CheckpointReader(checkpoint)
    # Earlier versions wrote checkpoints without a manifest.
    (checkpoint / "manifest.json").unlink()
    refused(checkpoint, CheckpointReader)
    refused(checkpoint, lambda path: export(path, tmp_path / "out"))
    assert not (tmp_path / "canary").exists()
    with pytest.raises(AttributeError):
        FileSystemReader(checkpoint).read_metadata()
    assert (tmp_path / "canary").exists(), "the attack works on torch's own reader"


TYPES = (pathlib.PosixPath, metadata.MetadataIndex, metadata.Metadata)


@pytest.mark.parametrize("attribute", ["__init__", "anything"])
@pytest.mark.parametrize("kind", TYPES)
def test_an_index_does_not_change_types(tmp_path: Path, kind: type, attribute: str) -> None:
    """The opcode BUILD with a second state sets attributes of any object, here of a type; a valid index follows."""
    change = f"c{kind.__module__}\n{kind.__name__}\n(N}}X".encode() + len(attribute).to_bytes(4, "little")
    change += attribute.encode() + b"ccollections\nOrderedDict\nstb0"
    true = pickle.dumps(CheckpointReader(GOLDEN).metadata, protocol=2)
    (tmp_path / ".metadata").write_bytes(true[:2] + change + true[2:])
    before = [dict(vars(each)) for each in TYPES]
    if kind is pathlib.PosixPath:
        CheckpointReader(tmp_path)
    else:
        with pytest.raises(ConfigError, match=rf"changes the type {kind.__name__} when it is loaded: the change was "):
            CheckpointReader(tmp_path)
    assert [dict(vars(each)) for each in TYPES] == before


@pytest.mark.parametrize("name", ["builtins.eval", "torch.load", "pathlib.Path.unlink", "os.system"])
def test_other_names_in_an_index_are_refused(tmp_path: Path, name: str) -> None:
    write_run(tmp_path / "run")
    checkpoint = tmp_path / "run" / "ep0-ba10"
    (checkpoint / "manifest.json").unlink()
    module, _, attribute = name.partition(".")
    (checkpoint / ".metadata").write_bytes(f"c{module}\n{attribute}\n(S'1'\ntR.".encode())
    with pytest.raises(ConfigError, match=rf"refers to {re.escape(name)}, which does not belong in a checkpoint"):
        CheckpointReader(checkpoint)
