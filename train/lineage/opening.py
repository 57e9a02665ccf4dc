"""Find the record of a run, and open the run for tracing."""

import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data.base.errors import ConfigError, DataError, from_here
from data.base.paths import refuse_path
from data.secrets.redaction import is_address
from train.checkpoint.places import is_save_folder, resolve_folder
from train.checkpoint.remote.folder import store_errors_named
from train.checkpoint.remote.staging import open_remote
from train.checkpoint.save_folder import METRICS, RECORD, checkpoints, fill_name, named_batch, run_name_of
from train.config.load import read_config
from train.lineage.history import read_history
from train.lineage.run import TracedRun
from train.report.reading.metrics import json_lines
from train.report.reading.record import Record, read_record

_TAIL = 1 << 20
"""Number of bytes at the end of metrics.jsonl in which the last line is searched."""
_HINT = "specify the save_folder or log_folder of a run, or its config"


def open_run(place: str) -> TracedRun:
    """Open the run of a save folder (a path or an address in an object store), of a log folder, or of a config for
    train.py. Raises ConfigError if there is no record of a run, and DataError if the record is not complete."""
    hint = _HINT
    if place.endswith((".yaml", ".yml")):
        hint = f"{place} refers to this folder: if the run had other overrides, specify its save_folder"
        place = _place_of_config(place)
    if is_address(place):
        return _open_remote(place.rstrip("/"))
    refuse_path("RUN", place)
    folder = Path(place)
    if not folder.exists():
        raise ConfigError(f"{folder} does not exist{from_here(folder)}: {hint}")
    folder = resolve_folder(folder, _has_record)
    if not _has_record(folder):
        step = named_batch(folder.resolve())
        if step is not None and _has_record(folder.parent):
            hint = f"it is a checkpoint: specify {folder.parent} (for its data, with --seen --until {step})"
        raise ConfigError(f"{folder} has no {RECORD}: {hint}")
    record = read_record(folder / RECORD)
    return _traced(str(folder), record, [folder, *_log_folder(record)], map(str, _checkpoints(folder, record)))


def _open_remote(url: str) -> TracedRun:
    remote = open_remote(url, "RUN", writable=False)
    with tempfile.TemporaryDirectory() as made, store_errors_named():
        contents, folder = remote.look(), Path(made)
        remote.store.fetch((folder / name, name) for name in (RECORD, METRICS) if name in contents.sizes)
        if not _has_record(folder):
            raise ConfigError(f"{url} has no {RECORD}: {_HINT}")
        record = read_record(folder / RECORD)
        return _traced(url, record, [folder], (f"{url}/{name}" for name in contents.committed))


def _traced(place: str, record: Record, logs: Iterable[Path], saved: Iterable[str]) -> TracedRun:
    if not record.starts:
        raise DataError(f"{place}/{RECORD} has no line for the start of the run, so it is not known what the run did")
    history = read_history((entry.values for entry in record.entries), _completed(record, logs))
    return TracedRun(place=place, saved=list(saved), record=record, history=history)


def _place_of_config(place: str) -> str:
    config = read_config(place)
    name = run_name_of(config)
    for key, value in (("save_folder", config.save_folder), ("log_folder", config.log_folder)):
        if value is not None:
            return fill_name(value, name, key)
    return str(Path("runs") / name)


def _has_record(folder: Path) -> bool:
    return (folder / RECORD).is_file()


def _checkpoints(folder: Path, record: Record) -> list[Path]:
    """The checkpoints in the save folder of the run, which may differ from the folder of the record."""
    if is_save_folder(folder):
        return checkpoints(folder)
    saved = [entry.values.get("path") for entry in record.events("saved")]
    paths = [Path(path).parent for path in saved if isinstance(path, str)]
    return next((checkpoints(path) for path in reversed(paths) if is_save_folder(path)), [])


def _log_folder(record: Record) -> list[Path]:
    config = record.start.get("config")
    folder = config.get("log_folder") if isinstance(config, Mapping) else None
    name = record.start.get("run_name")
    if not isinstance(folder, str) or not isinstance(name, str):
        return []
    return [Path(fill_name(folder, name, "log_folder"))]


def _completed(record: Record, logs: Iterable[Path]) -> int:
    """Number of batches that the newest start has completed. The end line is exact. Without it, the process is running
    or was killed, and the last line of the metrics or of the record is used."""
    if record.end is not None:
        return record.end.batch
    start = record.starts[-1]
    since = [entry.batch for entry in record.entries[record.entries.index(start) :]]
    for folder in logs:
        last = _last_line(folder / METRICS)
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
