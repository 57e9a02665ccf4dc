"""Exports during a run: at their interval, verified, and caught up after a kill."""

import errno
import json
from pathlib import Path
from unittest.mock import patch

import pytest
import transformers
from composer.core import Callback, State
from composer.loggers import Logger

from data.base.errors import ConfigError
from data.stores.store import open_store
from tests.helpers.ranks import run_ranks
from tests.helpers.saved_checkpoints import write_save_folder
from tests.helpers.small_config import load, refusal
from tests.helpers.store_faults import Fault
from tests.helpers.stores import serve, shorten_waits
from tests.helpers.toy_run import refused, write_toy_run
from tests.helpers.verify_here import verify_here
from train.callbacks.hf_checkpointer import HFCheckpointer
from train.config.load import read_config
from train.run.fit import fit


def run(path: str, overrides: list[str]) -> None:
    fit(read_config(path, overrides))


def run_and_verify_here(path: str, overrides: list[str]) -> None:
    with patch("train.export.export.subprocess.run", verify_here):
        run(path, overrides)


def wanted(folder: Path, interval: str) -> str:
    return f"callbacks={{hf_checkpointer: {{save_folder: '{folder}/{{run_name}}-hf', save_interval: {interval}}}}}"


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.timeout(300)
def test_a_run_exports_at_its_interval_and_at_its_end(tmp_path: Path) -> None:
    path = write_toy_run(tmp_path)
    run_ranks(run, 2, path, [wanted(tmp_path, "8ba"), "max_duration=10ba"], timeout=240)
    exports = tmp_path / "toy-hf" / "huggingface"
    assert sorted(entry.name for entry in exports.iterdir()) == ["ba10", "ba8"]
    model = transformers.AutoModelForCausalLM.from_pretrained(exports / "ba8")
    assert model.config.n_layers == 2
    card = (exports / "ba8" / "README.md").read_text()
    # The run has 8 batches of 8 rows of 128 tokens and evaluates after batch 5.
    assert "| tokens (including padding) | 8,192 |" in card
    assert "after 5 steps:" in card
    assert "after 10 steps:" in (exports / "ba10" / "README.md").read_text()


class Fail(Callback):
    """Make the export of batch 4 impossible to write."""

    def fit_start(self, state: State, logger: Logger) -> None:
        exporter = next(found for found in state.callbacks if isinstance(found, HFCheckpointer))
        exporter.folder.mkdir(parents=True, exist_ok=True)
        (exporter.folder / "ba4").touch()


def fail(path: str, overrides: list[str]) -> str:
    try:
        with patch("train.export.export.subprocess.run", verify_here):
            fit(read_config(path, overrides), callbacks=[Fail()])
    except ConfigError as error:
        return str(error)
    raise AssertionError("the failed export was not raised")


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.timeout(300)
def test_a_failed_export_is_raised_at_the_end(tmp_path: Path) -> None:
    path = write_toy_run(tmp_path)
    overrides = [wanted(tmp_path, "4ba"), "max_duration=5ba", "eval_interval=9ba"]
    messages = run_ranks(fail, 2, path, overrides, timeout=240)
    exports = tmp_path / "toy-hf" / "huggingface"
    for line in messages:
        assert f"not every checkpoint was exported (ba4: the output {exports / 'ba4'} is a file" in line
    assert (exports / "ba5" / "config.json").is_file()


def test_an_export_that_cannot_be_written_is_raised_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run" / "ep0-ba4").mkdir(parents=True)
    (tmp_path / "run" / "ep0-ba4" / ".metadata").touch()
    (tmp_path / "hf" / "ba4").mkdir(parents=True)

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("train.callbacks.hf_checkpointer.shutil.rmtree", refuse)
    exporter = HFCheckpointer(tmp_path / "run", tmp_path / "hf", 4, 8, "fp32")
    exporter.catch_up(8)
    exporter._export_on_first_rank(4)
    with pytest.raises(ConfigError, match=r"ba8: .* has no checkpoint of this batch; ba4: .*Permission denied"):
        exporter.check()


def test_an_export_is_uploaded_to_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_save_folder(tmp_path / "run", 4)

    def export(checkpoint: Path, output: Path, *args: object, **kwargs: object) -> None:
        output.mkdir(parents=True)
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            (output / name).write_text(name)

    monkeypatch.setattr("train.callbacks.hf_checkpointer.export", export)
    shorten_waits(monkeypatch)
    with serve("gs") as server:
        store = open_store(f"{server.url}/mine")
        exporter = HFCheckpointer(tmp_path / "run", tmp_path / "hf", 4, 8, "fp32", store)
        server.faults += [Fault("POST", "", 1, "denied")]
        exporter._export_on_first_rank(4)
        assert "mine/huggingface/ba4/config.json" not in server.content()
        with pytest.raises(
            ConfigError, match=r"ba4: gs://bucket/mine/huggingface/ba4/.* cannot be written: permission"
        ):
            exporter.check()
        exporter.catch_up(4)
        assert server.written()[-1] == "mine/huggingface/ba4/config.json"
        assert len(server.content()) == 3
        assert not (tmp_path / "hf" / "ba4").exists()
        sent = len(server.written())
        exporter.catch_up(4)
        assert len(server.written()) == sent


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.timeout(300)
def test_a_resumed_run_makes_missing_exports(tmp_path: Path) -> None:
    """A run killed between its last checkpoint and the export of that has nothing left to train."""
    path = write_toy_run(tmp_path)
    run_ranks(run, 1, path, ["max_duration=4ba"])
    overrides = [wanted(tmp_path, "4ba"), "max_duration=4ba", "autoresume=true"]
    run_ranks(run_and_verify_here, 1, path, overrides, timeout=240)
    exported = tmp_path / "toy-hf" / "huggingface" / "ba4" / "model.safetensors.index.json"
    assert json.loads(exported.read_text())["weight_map"]


@pytest.mark.ranks
def test_invalid_intervals_and_folders_are_refused(tmp_path: Path) -> None:
    path = write_toy_run(tmp_path)
    (message,) = run_ranks(refused, 1, path, [wanted(tmp_path, "0.6dur")])
    assert "save_interval is 0.6dur (6 batches), but checkpoints are saved every 4 batches: use a multiple" in message
    (tmp_path / "toy-hf" / "huggingface" / "ba8").mkdir(parents=True)
    (message,) = run_ranks(refused, 1, path, [wanted(tmp_path, "8ba")])
    assert "contains exports of another run (ba8): specify another folder, or set save_overwrite=true" in message


def test_the_config(tmp_path: Path) -> None:
    key = "callbacks={hf_checkpointer: {save_folder: out, save_interval: 1dur}}"
    assert "there is no save_folder with checkpoints to export" in refusal(tmp_path, key)
    with_folder = ("save_folder=runs", "save_interval=4ba", "max_duration=10ba")
    message = refusal(tmp_path, key.replace("1dur", "6ba"), *with_folder)
    assert "save_interval is 6ba, but checkpoints are saved every 4ba: use a multiple of this interval" in message
    for fine in ("8ba", "11ba"):
        load(tmp_path, key.replace("1dur", fine), *with_folder)
    assert load(tmp_path, key, "save_folder=runs").callbacks.hf_checkpointer.precision == "float32"
    assert "use bfloat16" in refusal(tmp_path, key, "callbacks.hf_checkpointer.precision=bf16", "save_folder=runs")
    message = refusal(tmp_path, key, "callbacks.hf_checkpointer.overwrite=false", "save_folder=runs")
    assert "overwrite is false, which is not supported" in message
