"""Logs metrics to an MLflow run, in a folder or on a server."""

import json
import os
import re
import time
from collections.abc import Mapping
from threading import Lock, Thread
from typing import Any

from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from data.base.errors import ConfigError
from data.secrets.redaction import is_address, without_secrets
from train.config.redaction import masked_yaml
from train.config.schema import TrainConfig
from train.loggers.hyperparameters import flat
from train.loggers.service import ServiceLogger

_TAG = "dropless.run_id"
_DEFAULT_FOLDER, _DEFAULT_EXPERIMENT = "mlruns", "Default"
_SECONDS = 5.0
"""Minimum seconds between two requests."""
_MOST_METRICS, _MOST_PARAMETERS = 1000, 100
"""The maximum number of metrics, and the maximum number of parameters, that MLflow's servers accept in one request."""
_MOST_WAITING = 1_000_000
"""Maximum number of metrics that are kept until a server accepts them. Older metrics are dropped."""
_REFUSED = re.compile(r"[^\w\-. /:]")
"""Characters that MLflow does not allow in names."""


class MLflow(ServiceLogger):
    """Logs to an MLflow run. A resumed run continues its MLflow run, which it finds by a tag with the run's id. A
    background thread sends the metrics."""

    key = "loggers.mlflow"

    def __init__(self, config: TrainConfig, *, name: str, run_id: str) -> None:
        """Start or continue the MLflow run. Raises ConfigError if this fails."""
        super().__init__()
        settings = config.loggers.mlflow
        assert settings is not None
        uri = settings.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or _DEFAULT_FOLDER
        _allow_folders(uri)
        self._waiting: list[Metric] = []
        self._lock, self._thread, self._began = Lock(), Thread(), time.monotonic()
        try:
            self._client = MlflowClient(uri)
            self._id = os.environ.get("MLFLOW_RUN_ID") or self._find_or_create(
                settings.experiment_name or os.environ.get("MLFLOW_EXPERIMENT_NAME") or _DEFAULT_EXPERIMENT,
                {key: without_secrets(value).text for key, value in settings.tags.items()} | {_TAG: run_id},
                settings.run_name or name,
            )
            self._client.update_run(self._id, status="RUNNING")
            self._log_config(config)
        except (MlflowException, OSError) as error:
            text = f"is given, but MLflow cannot start a run in {uri} ({error}): set tracking_uri, or remove mlflow"
            raise ConfigError(text, key=self.key) from None

    def send(self, batch: int, metrics: Mapping[str, float]) -> None:
        now = round(time.time() * 1000)
        new = [Metric(_REFUSED.sub("_", name), value, now, batch) for name, value in metrics.items()]
        with self._lock:
            self._waiting += new
        if time.monotonic() - self._began >= _SECONDS and not self._thread.is_alive():
            del self._waiting[:-_MOST_WAITING]
            self._began = time.monotonic()
            # A daemon thread does not prevent the interpreter from exiting.
            self._thread = Thread(target=self._try, args=(self._send_waiting,), name="mlflow", daemon=True)
            self._thread.start()

    def send_table(self, batch: int, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        data = {column: [row[number] for row in rows] for number, column in enumerate(columns)}
        self._client.log_text(self._id, json.dumps(data, ensure_ascii=False), f"{name}/batch-{batch}.json")

    def end(self, *, complete: bool) -> None:
        if self._thread.is_alive():
            self._thread.join()
        try:
            self._send_waiting()
        finally:
            self._client.set_terminated(self._id, "FINISHED" if complete else "FAILED")

    def _send_waiting(self) -> None:
        """Send all waiting metrics, oldest first."""
        while chunk := self._waiting[:_MOST_METRICS]:
            self._client.log_batch(self._id, metrics=chunk)
            with self._lock:
                del self._waiting[: len(chunk)]

    def _find_or_create(self, experiment: str, tags: dict[str, str], name: str) -> str:
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found is not None else self._client.create_experiment(experiment)
        if tags[_TAG]:
            for run in self._client.search_runs([number], f"tags.`{_TAG}` = '{tags[_TAG]}'"):
                return run.info.run_id
        return self._client.create_run(number, tags=tags, run_name=without_secrets(name).text).info.run_id

    def _log_config(self, config: TrainConfig) -> None:
        """Log the config as parameters. MLflow does not allow parameters to change, so a resumed run keeps the
        parameters of the first start. The artifact config.yaml contains the newest config."""
        known = self._client.get_run(self._id).data.params
        new = [(_REFUSED.sub("_", key), str(value)) for key, value in flat(config).items()]
        new = [Param(key, value) for key, value in new if key not in known]
        for start in range(0, len(new), _MOST_PARAMETERS):
            self._client.log_batch(self._id, params=new[start : start + _MOST_PARAMETERS])
        self._client.log_text(self._id, masked_yaml(config), "config.yaml")


def _allow_folders(uri: str) -> None:
    """Allow MLflow to log to a folder, without a server. MLflow 3.17 rejects folders unless this variable is set."""
    if uri.startswith("file:") or not is_address(uri):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
