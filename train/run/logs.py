"""The values that a run logs in addition to metrics, mainly the start and end lines of record.jsonl."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from composer import Trainer
from composer.utils import dist

from data.base.errors import DataError, is_full
from data.base.versions import installed_versions, versions
from data.loading.rows import Rows
from data.secrets.redaction import redacted
from train.callbacks.run_record import RunRecord
from train.checkpoint.save_folder import fill_name
from train.config.redaction import differing, masked
from train.config.schema import TrainConfig
from train.lineage.openlineage import RunLineage
from train.loggers.build import LoggedRun
from train.models.shapes import count_parameters
from train.optim.states import trainable_shapes, trained_names
from train.planning.peak import memory_parts
from train.run.inputs import Inputs
from train.supervision.events import Events
from train.supervision.exit_codes import ExitCode, RunStopped
from train.supervision.provenance import environment, git_state, start_command

_MANIFEST_KEYS = (
    *("form", "packing", "max_seq_len", "rows_in", "examples_in", "examples_kept", "examples_truncated"),
    *("tokens_in", "tokens_truncated", "tokens_dropped", "padding", "dropped", "bad_rows", "preprocessing_fn"),
)
"""Keys in the manifest.json of a data folder that describe how the input was converted to rows."""
_MOST_PATHS = 20
"""Maximum number of input files listed for a stream."""
_LONGEST_MESSAGE = 2000
"""Maximum number of characters in a message."""


def logged_run(inputs: Inputs) -> LoggedRun:
    """Return the properties of the run that loggers need in addition to its config."""
    return LoggedRun(name=inputs.run_name, id=inputs.run_id, folder=inputs.log_folder, first_batch=inputs.first_batch)


def run_lineage(config: TrainConfig, inputs: Inputs) -> RunLineage | None:
    """Return the values for lineage.json, or None if the run has no save folder."""
    if inputs.folder is None or config.save_folder is None:
        return None
    return RunLineage(
        run_id=inputs.run_id,
        run_name=inputs.run_name,
        folder=inputs.folder,
        save_folder=fill_name(config.save_folder, inputs.run_name, "save_folder"),
        loaders=_loaders(inputs),
        first_batch=inputs.first_batch,
        max_batches=inputs.max_batches,
    )


def run_record(config: TrainConfig, inputs: Inputs) -> RunRecord:
    """Return the callback that adds stages, checkpoints and other events of the training loop to record.jsonl."""
    interval = inputs.data.clock.batches(config.save_interval) if inputs.folder is not None else None
    # Without checkpoints, nothing depends on the record, so an error while writing it does not stop the run.
    stop = config.on_save_error == "stop" and inputs.folder is not None
    return RunRecord(inputs.record, inputs.data.plan, interval, inputs.max_batches, stop_on_error=stop)


@contextmanager
def recorded(events: Events, start: Mapping[str, Any], trainer: Trainer) -> Iterator[None]:
    """Add a start line and, on exit, an end line to record.jsonl. start: the result of start_line."""

    def note_end(outcome: str, message: str) -> None:
        events.note(trainer.state.timestamp.batch.value, event="end", message=message, outcome=outcome)

    events.note(trainer.state.timestamp.batch.value, **start)
    events.started = True
    try:
        yield
    except RunStopped as stop:
        note_end("failed" if stop.code == ExitCode.UNSTABLE else "stopped", str(stop))
        raise
    except BaseException as error:
        note_end("failed", redacted(f"{type(error).__name__}: {error}")[:_LONGEST_MESSAGE])
        raise
    note_end("finished", f"finished at batch {trainer.state.timestamp.batch.value}")


def start_line(config: TrainConfig, inputs: Inputs, device: str, precision: str) -> dict[str, Any]:
    """Return the start line without batch and time (see docs/metrics.md) on rank 0, or an empty dict on other ranks.
    device: cpu or gpu."""
    if dist.get_global_rank() != 0:
        return {}
    gpu = device == "gpu"
    start = inputs.start.path if inputs.start is not None and inputs.resuming else None
    what = f"resumes from {start}" if start is not None else "starts"
    return {
        "event": "start",
        "message": f"{inputs.run_name} {what} at batch {inputs.first_batch} of {inputs.max_batches}",
        "run_id": inputs.run_id,
        "run_name": inputs.run_name,
        "resumed_from": str(start) if start is not None else None,
        "world_size": dist.get_world_size(),
        "nodes": math.ceil(dist.get_world_size() / dist.get_local_world_size()),
        "device": torch.cuda.get_device_name() if gpu else "CPU",
        "precision": precision,
        "command": start_command(),
        "max_batches": inputs.max_batches,
        "tokens_per_batch": inputs.data.clock.tokens_per_batch,
        "parameters": _parameters(config),
        "config": masked(config),
        "defaults_differ": differing(config),
        "versions": {**installed_versions(["dropless"]), **versions()},
        "git": git_state(),
        "environment": environment(),
        "data": _data(inputs),
        "data_plan": _data_plan(inputs),
        "stages": [
            {"name": name, "first": first, "end": end} for name, first, end in inputs.data.plan.stages() if name
        ],
        "planned_memory_bytes": round(memory_parts(config, dist.get_world_size(), gpu=gpu).total),
    }


@contextmanager
def disk_full_as_data_error(config: TrainConfig, inputs: Inputs) -> Iterator[None]:
    """Raise DataError if a logger runs out of disk space; callbacks/checkpoint_saver.py handles checkpoints."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        file, board = config.loggers.file, config.loggers.tensorboard
        places = {
            "save_folder": inputs.folder,
            "log_folder": inputs.log_folder if inputs.log_folder != inputs.folder else None,
            "loggers.file.filename": file.filename if file is not None else None,
            "loggers.tensorboard.log_dir": board.log_dir if board is not None else None,
        }
        named = ", ".join(f"{key} {place}" for key, place in places.items() if place is not None)
        raise DataError(
            f"no space left on a disk that the run writes to ({named}): free some space, and start again with "
            "autoresume=true"
        ) from None


def _parameters(config: TrainConfig) -> dict[str, int]:
    total, active = count_parameters(config.model)
    names, shapes = trained_names(config), trainable_shapes(config)
    return {"total": total, "active": active, "trained": sum(math.prod(shapes[name]) for name in names)}


def _data(inputs: Inputs) -> dict[str, dict[str, Any]]:
    return {key: {name: _rows(rows) for name, rows in streams.items()} for key, streams in _loaders(inputs).items()}


def _loaders(inputs: Inputs) -> dict[str, Mapping[str, Rows]]:
    """Return the rows of each stream, by loader."""
    return {
        "train_loader": inputs.data.streams,
        **({"eval_loader": inputs.eval_streams} if inputs.eval_streams else {}),
    }


def _data_plan(inputs: Inputs) -> dict[str, Any]:
    """Return the plan of the rows of all batches, in the format of the data state in checkpoints."""
    segment = inputs.data.plan.segments[-1]
    return json.loads(inputs.data.plan.state(segment.row(inputs.first_batch))["position"])


def _rows(rows: Rows) -> dict[str, Any]:
    """Describe one stream. Values that are not in its manifest are omitted."""
    manifest = rows.mds.manifest or {}
    inputs = manifest.get("inputs")
    paths = [each["path"] for each in inputs if "path" in each] if isinstance(inputs, list) else []
    facts = {
        "rows": rows.n_rows,
        "tokens": rows.tokens,
        "documents": manifest.get("examples_kept"),
        "trained_tokens": rows.trained_tokens,
        "fingerprint": rows.fingerprint,
        "folder": str(rows.folder.absolute()),
        "remote": rows.mds.name if rows.is_remote else None,
        "source": paths[:_MOST_PATHS] or [rows.mds.name],
        "files": len(paths) or None,
        **{key: manifest[key] for key in _MANIFEST_KEYS if key in manifest},
    }
    return masked({key: value for key, value in facts.items() if value is not None})
