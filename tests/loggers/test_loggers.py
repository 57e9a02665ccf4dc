"""Output of the loggers of two ranks, without duplicates."""

import errno
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock

import pytest
import wandb
from composer.core import Timestamp
from composer.loggers import Logger, LoggerDestination
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.base.errors import ConfigError
from tests.helpers.ranks import run_ranks
from tests.helpers.steps import Cut, config_of
from tests.helpers.toy_run import write_toy_run
from train.config.callbacks import (
    FileLoggerConfig,
    LoggersConfig,
    MLflowLoggerConfig,
    TensorboardLoggerConfig,
    WandBLoggerConfig,
)
from train.config.load import read_config
from train.config.schema import TrainConfig
from train.loggers.build import LoggedRun, build_loggers
from train.loggers.checks import check_loggers
from train.loggers.json_lines import JsonLines
from train.loggers.log_file import LogFile
from train.loggers.mlflow import MLflow
from train.run.fit import fit


def with_loggers(**loggers: Any) -> TrainConfig:
    return replace(config_of(Cut()), loggers=LoggersConfig(**loggers))


def logged(path: str, overrides: list[str]) -> None:
    fit(read_config(path, overrides))


@pytest.mark.ranks
@pytest.mark.timeout(200)
def test_tensorboard_has_one_file_of_rank_0_with_each_value_once(tmp_path: Path) -> None:
    overrides = ["max_duration=4ba", "eval_interval=2ba", "save_folder=null"]
    overrides += [f"loggers.tensorboard.log_dir={tmp_path / 'board'}"]
    overrides += ["callbacks.generate={prompts: ['a|b'], interval: 2ba, max_new_tokens: 2}"]
    run_ranks(logged, 2, write_toy_run(tmp_path), overrides)
    (file,) = (path for path in (tmp_path / "board").rglob("*") if path.is_file())
    assert file.parent == tmp_path / "board" / "toy"
    events = EventAccumulator(str(file)).Reload()
    tables = events.Tensors("generate/text_summary")
    assert [event.step for event in tables] == [2, 4]
    assert b"| 2 | a\\|b | " in tables[0].tensor_proto.string_val[0]
    assert [event.step for event in events.Scalars("metrics/eval/LanguageCrossEntropy")] == [2, 4]
    assert [event.step for event in events.Scalars("loss/train/lm")] == [1, 2, 3, 4]
    lines = [json.loads(line) for line in (tmp_path / "toy" / "metrics.jsonl").read_text().splitlines()]
    assert [line["batch"] for line in lines if "loss/train/lm" in line["metrics"]] == [1, 2, 3, 4]


def test_a_log_file_s_name_has_no_placeholders_left_for_composer(tmp_path: Path) -> None:
    for number in ("", "-2"):
        filename = f"{tmp_path}/{{run_name}}/{{rank}}.txt"
        (log,) = build_loggers(with_loggers(file=FileLoggerConfig(filename=filename)), LoggedRun(name="mine"))
        assert isinstance(log, LogFile)
        assert log.filename_format == f"{tmp_path}/mine/0{number}.txt"
        Path(log.filename_format).touch()
    config = with_loggers(file=FileLoggerConfig(filename=f"{tmp_path}/{{run_name}}"))
    with pytest.raises(ConfigError, match="has a name of 256 bytes"):
        build_loggers(config, LoggedRun(name="x" * 250))


def test_a_full_disk_under_the_log_file_is_reported_and_closes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with patched_streams():
        log = LogFile(str(tmp_path / "log.txt"))
        with Path("/dev/full").open("w", buffering=1) as log.file, pytest.raises(OSError, match="No space left"):
            log.write("", "a line\n")
        print("the error", file=sys.stderr)
    assert capsys.readouterr().err == "the error\n"
    assert log.file is None


def test_wandb_gets_the_values_of_the_saved_config(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = {}
    monkeypatch.setattr("wandb.init", lambda **settings: sent.update(settings) or MagicMock())
    hf, key = "hf_" + "Ab12" * 8, "0123456789abcdef0123456789abcdef01234567"
    settings = WandBLoggerConfig(project=f"p-{hf}", entity="e", group=f"WANDB_API_KEY={key}", tags=["ok", hf])
    build_loggers(with_loggers(wandb=settings), LoggedRun(name="toy", id="an-id"))
    assert {key: sent[key] for key in ("project", "entity", "group", "name", "tags", "id")} == {
        **{"project": "p-hf_", "entity": "e", "group": "WANDB_API_KEY=", "name": "toy", "tags": ["ok", "hf_"]},
        "id": "an-id",
    }


def test_a_service_that_fails_is_one_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    run = MagicMock()
    run.log.side_effect = ConnectionError("https://me:secret-word@host is gone")
    monkeypatch.setattr("wandb.init", lambda **settings: run)
    (log,) = build_loggers(with_loggers(wandb=WandBLoggerConfig()), LoggedRun(name="toy"))
    for batch in (1, 2):
        log_one(log, batch)
    (line,) = caplog.messages
    assert "loggers.wandb: some metrics could not be sent (ConnectionError: https://***@host is gone); the" in line
    assert run.log.call_count == 2


def test_mlflow_resends_metrics_that_its_server_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = MagicMock()
    client.search_runs.return_value = []
    client.get_run.return_value.data.params = {}
    monkeypatch.setattr("train.loggers.mlflow.MlflowClient", lambda uri: client)
    monkeypatch.setattr("train.loggers.mlflow._SECONDS", 0.0)
    log = MLflow(with_loggers(mlflow=MLflowLoggerConfig(tracking_uri="http://host")), name="toy", run_id="an-id")
    client.reset_mock()
    client.log_batch.side_effect = [ConnectionError("host is gone"), None]
    log.send(3, {"streams/a*b/loss": 1.0})
    log.end(complete=False)
    client.set_terminated.assert_called_once_with(log._id, "FAILED")
    assert (
        "loggers.mlflow: some metrics could not be sent (ConnectionError: host is gone); the run" in caplog.messages[0]
    )
    (metric,) = client.log_batch.call_args.kwargs["metrics"]
    assert (metric.key, metric.value, metric.step) == ("streams/a_b/loss", 1.0, 3)
    assert client.log_batch.call_count == 2


def test_lines_that_a_disk_refuses_are_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full, log = OSError(errno.ENOSPC, "No space left on device"), JsonLines(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("train.loggers.json_lines.append_line", MagicMock(side_effect=full))
        for batch in (1, 2):
            log_one(log, batch)
    assert [message.rpartition(": ")[2] for message in caplog.messages] == [
        "No space left on device. The run continues, and the lines are written as soon as possible"
    ]
    log_one(log, 3)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["batch"], line["tok"], line["metrics"]) for line in lines] == [
        (batch, 8 * batch, {"loss": float(batch)}) for batch in (1, 2, 3)
    ]


def test_metrics_of_a_step_that_ends_the_run_have_its_own_number(tmp_path: Path) -> None:
    log, state = JsonLines(tmp_path), cast(Any, SimpleNamespace(timestamp=Timestamp(batch=2)))
    log_one(log, 2)
    log.batch_start(state, cast(Logger, None))
    log.log_metrics({"loss": float("nan")})
    log.close(state, cast(Logger, None))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["batch"], line["metrics"]["loss"]) for line in lines] == [(2, 2.0), (3, "nan")]


def log_one(log: LoggerDestination, batch: int) -> None:
    state: Any = SimpleNamespace(timestamp=Timestamp(batch=batch, token=8 * batch))
    log.log_metrics({"loss": float(batch)})
    log.batch_end(state, cast(Logger, None))


def test_event_files_that_cannot_be_written_name_their_key(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = with_loggers(tensorboard=TensorboardLoggerConfig(log_dir=f"{tmp_path}/file/{{run_name}}"))
    with pytest.raises(ConfigError, match=r"loggers.tensorboard.log_dir is '.*', but .*/file/toy cannot be written: "):
        build_loggers(config, LoggedRun(name="toy"))


def test_errors_at_the_start_of_a_service_name_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"loggers.mlflow is given, but MLflow is not installed: pip install"):
        check_loggers(LoggersConfig(mlflow=MLflowLoggerConfig()))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr("train.loggers.checks._has_api_key", lambda: False)
    with pytest.raises(ConfigError, match=r"loggers.wandb is given, but wandb has no API key: run"):
        check_loggers(LoggersConfig(wandb=WandBLoggerConfig()))
    monkeypatch.setattr("wandb.init", MagicMock(side_effect=wandb.Error("no such entity")))
    with pytest.raises(ConfigError, match=r"loggers.wandb is given, but wandb cannot start a run \(no such entity\)"):
        build_loggers(with_loggers(wandb=WandBLoggerConfig()), LoggedRun(name="toy"))


@contextmanager
def patched_streams() -> Iterator[None]:
    """Undo FileLogger's replacement of the streams' write methods."""
    with pytest.MonkeyPatch.context() as patch:
        for stream in (sys.stdout, sys.stderr):
            patch.setattr(stream, "write", stream.write)
        yield
