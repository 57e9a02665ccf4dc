"""A run whose documents are traced: its record, its checkpoints, and the documents of its streams."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from data.base.errors import ConfigError, DataError, Problems
from data.base.paths import refuse_path
from data.lineage.folder_documents import FolderDocuments
from data.lineage.run_rows import RunRows
from data.mds.folder import MdsFolder
from data.mixing.resume import DataState, read_state
from train.checkpoint.places import is_save_folder, resolve_folder
from train.checkpoint.save_folder import METRICS, RECORD, batch_of, checkpoints, fill_in, run_name_of
from train.config.load import read_config
from train.lineage.history import History, Trained, read_history
from train.report.reading.metrics import json_lines
from train.report.reading.record import Record, read_record

_TAIL = 1 << 20
"""Number of bytes at the end of metrics.jsonl in which the last line is searched."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A committed checkpoint of the run."""

    path: Path
    batch: int
    trained: Trained


@dataclass(frozen=True, eq=False, kw_only=True)
class TracedRun:
    """A run and its data. The folders of its streams are opened when they are needed."""

    folder: Path
    save_folder: Path | None
    record: Record
    history: History
    _rows: dict[str, RunRows] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.record.start.get("run_name") or self.folder.name)

    @cached_property
    def state(self) -> DataState:
        """The plan of the newest start."""
        return _state(self.history.weights.plan)

    @cached_property
    def checkpoints(self) -> list[Checkpoint]:
        """The committed checkpoints in the save folder, oldest first. Raises DataError for a checkpoint that the record
        does not contain."""
        if self.save_folder is None:
            return []
        found = []
        for path in checkpoints(self.save_folder):
            batch = batch_of(path)
            trained = self.history.saved.get(batch)
            # A process can be killed after a save, but before it adds the line.
            if trained is None and self.history.first_batch <= batch <= self.history.n_batches:
                trained = self.history.after(batch)
            if trained is None:
                raise DataError(f"{self.folder / RECORD} has no line for {path}, so another run wrote the checkpoint")
            found.append(Checkpoint(path=path, batch=batch, trained=trained))
        return found

    @cached_property
    def folders(self) -> dict[str, MdsFolder]:
        """The prepared rows of each stream. Raises ConfigError or DataError with the problems of all streams."""
        problems, found = Problems(), dict[str, MdsFolder]()
        for stream, fingerprint in self.state.streams.items():
            with problems.collect():
                found[stream] = self._open(stream, fingerprint)
        problems.raise_if_any()
        return found

    @cached_property
    def documents(self) -> dict[str, FolderDocuments]:
        """The documents of each stream. Raises DataError with all streams that have no lineage."""
        problems, found = Problems(), dict[str, FolderDocuments]()
        for stream, mds in self.folders.items():
            with problems.collect():
                found[stream] = FolderDocuments(mds, stream)
        problems.raise_if_any()
        return found

    def rows(self, trained: Trained) -> RunRows:
        """The rows of these batches. The result is the same object for all weights with the same plan. A resume may
        have changed the plan of the batches after it."""
        key = json.dumps({**trained.plan, "rows": 0}, sort_keys=True)
        if key not in self._rows:
            sizes = {stream: mds.shard_sizes for stream, mds in self.folders.items()}
            self._rows[key] = RunRows(_state(trained.plan), sizes)
        return self._rows[key]

    def _open(self, stream: str, fingerprint: str) -> MdsFolder:
        label = f"stream {stream}" if stream else "the dataset"
        data = self.record.start.get("data")
        described = (data.get("train_loader") or {}).get(stream) if isinstance(data, Mapping) else None
        folder = described.get("folder") if isinstance(described, Mapping) else None
        if not isinstance(described, Mapping) or not isinstance(folder, str):
            raise DataError(f"{self.folder / RECORD} does not contain the folder of the rows of {label}")
        remote = described.get("remote")
        if remote is None and not Path(folder).is_dir():
            raise DataError(f"the rows of {label} were in {folder}, which does not exist: restore this folder")
        mds = MdsFolder.open(local=folder, remote=remote, split=None, cache_dir="")
        # For rows that contain only tokens, the eos token is part of the fingerprint.
        if fingerprint.partition("-eos")[0] not in ((mds.manifest or {}).get("fingerprint"), mds.fingerprint):
            raise DataError(f"the rows of {label} in {folder} have changed since the run: restore them")
        return mds


def open_run(place: str) -> TracedRun:
    """Open the run of a save folder, a log folder, or a config of train.py. Raises ConfigError if there is no record of
    a run, and DataError if the record is not complete."""
    refuse_path("RUN", place)
    folder = _folder_of_config(place) if place.endswith((".yaml", ".yml")) else Path(place)
    if not folder.exists():
        raise ConfigError(f"{folder} does not exist: specify the save_folder or log_folder of a run, or its config")
    folder = resolve_folder(folder, _has_record)
    if not _has_record(folder):
        raise ConfigError(f"{folder} has no {RECORD}: specify the save_folder or log_folder of a run, or its config")
    record = read_record(folder / RECORD)
    if not record.starts:
        raise DataError(f"{folder / RECORD} has no line for the start of the run, so it is not known what the run did")
    history = read_history((entry.values for entry in record.entries), _completed(folder, record))
    return TracedRun(folder=folder, save_folder=_save_folder(folder, record), record=record, history=history)


def _folder_of_config(place: str) -> Path:
    config = read_config(place)
    name = run_name_of(config)
    for key, value in (("save_folder", config.save_folder), ("log_folder", config.log_folder)):
        if value is not None:
            return fill_in(value, name, key, config.save_staging_folder)
    return Path("runs") / name


def _has_record(folder: Path) -> bool:
    return (folder / RECORD).is_file()


def _save_folder(folder: Path, record: Record) -> Path | None:
    """The save folder of the run, which may differ from the folder of the record."""
    if is_save_folder(folder):
        return folder
    saved = [entry.values.get("path") for entry in record.events("saved")]
    paths = [Path(path).parent for path in saved if isinstance(path, str)]
    return next((path for path in reversed(paths) if is_save_folder(path)), None)


def _completed(folder: Path, record: Record) -> int:
    """Number of batches that the newest start has completed. The end line is exact. Without it, the process is running
    or was killed, and the last line of the metrics or of the record is used."""
    if record.end is not None:
        return record.end.batch
    start = record.starts[-1]
    since = [entry.batch for entry in record.entries[record.entries.index(start) :]]
    config = record.start.get("config")
    logs = config.get("log_folder") if isinstance(config, Mapping) else None
    places = [folder, *([Path(logs.format(run_name=record.start.get("run_name")))] if isinstance(logs, str) else [])]
    for file in (place / METRICS for place in places):
        last = _last_line(file)
        if last.get("time", 0) >= (start.time or 0) and isinstance(last.get("batch"), int):
            since.append(last["batch"])
    return max(since)


def _last_line(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            opened.seek(0, os.SEEK_END)
            opened.seek(max(opened.tell() - _TAIL, 0))
            lines = [line for line in json_lines(opened) if line is not None]
    except OSError:
        return {}
    return lines[-1] if lines else {}


def _state(plan: Mapping[str, Any]) -> DataState:
    return read_state({"position": json.dumps(plan)})
