"""The folder of a run's logs, and the logs of an earlier run in it."""

from pathlib import Path

import pytest

from data.base.errors import ConfigError
from tests.helpers.small_config import load, refusal
from train.checkpoint.log_folder import begin_log, log_folder_of
from train.checkpoint.save_folder import LOGS


def test_the_log_folder_is_the_save_folder_or_named_after_the_run(tmp_path: Path) -> None:
    for overrides, expected in (
        ([], "runs/mine"),
        (["save_folder=runs/{run_name}/checkpoints"], "runs/mine/checkpoints"),
        (["save_folder=x", "log_folder=logs-{run_name}"], "logs-mine"),
        (["save_folder=s3://bucket/x", "log_folder=logs"], "logs"),
    ):
        assert log_folder_of(load(tmp_path, *overrides), "mine", check=False) == Path(expected)


def test_an_unwritable_folder_is_an_error_if_a_key_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").touch()
    with pytest.raises(ConfigError, match="log_folder runs/a cannot be written"):
        log_folder_of(load(tmp_path, "log_folder=runs/a"), "mine", check=True)
    assert log_folder_of(load(tmp_path), "mine", check=True) is None
    (warning,) = caplog.messages
    assert warning.startswith(
        "log_folder runs/mine cannot be written: Not a directory: specify another folder. The run continues"
    )


def test_a_log_folder_in_an_object_store_is_refused(tmp_path: Path) -> None:
    assert "log_folder is 's3://bucket/x', but logs are written on this" in refusal(
        tmp_path, "log_folder=s3://bucket/x"
    )


def test_logs_of_an_earlier_run_are_kept_beside_those_of_a_new_one(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    for number, resuming in enumerate((False, True, False)):
        begin_log(folder, None, resuming=resuming)
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(f"{number}\n")
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "metrics.jsonl": "2\n",
        "metrics.jsonl.old": "0\n1\n",
    }
    assert set(LOGS) == {"metrics.jsonl", "record.jsonl", "report.html"}
