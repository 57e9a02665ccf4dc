"""The part of the start summary that is shown once the data is open: data, stages and output folders."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from data.base.problems import listed
from data.loading.rows import Rows
from train.checkpoint.save_folder import METRICS, RECORD, REPORT
from train.config.schema import TrainConfig
from train.console.facts import fact
from train.planning.run_data import RunData


def data_lines(config: TrainConfig, data: RunData, eval_streams: Mapping[str, Rows] | None) -> Iterator[str]:
    """Yield lines for the rows, tokens and epochs of each stream, the stages, and the length of the run."""
    max_batches = data.clock.max_batches
    assert max_batches is not None
    taken = dict(zip(data.plan.names, data.plan.counts(max_batches).tolist(), strict=True))
    epochs = {name: f", {taken[name] / rows.n_rows:.2f} epochs" for name, rows in data.streams.items()}
    yield from _stream_lines("train data", data.streams, epochs)
    yield from _stream_lines("eval data", eval_streams or {}, {})
    yield from lineage_lines(data.streams)
    stages = [stage for stage in data.plan.stages() if stage[0]]
    for number, (name, first, end) in enumerate(stages):
        last = max_batches if end is None else end
        yield fact("" if number else "stages", f"{name}: batches {first:,} to {last:,}")
    rows, noun = data.plan.global_batch_size, "batch" if max_batches == 1 else "batches"
    yield fact("duration", f"max_duration {config.max_duration} is {max_batches:,} {noun} of {rows:,} rows")


def lineage_lines(streams: Mapping[str, Rows]) -> Iterator[str]:
    """Yield a line if scripts/trace_documents.py cannot trace the run."""
    untraced = [name for name, rows in streams.items() if "documents" not in (rows.mds.manifest or {})]
    if untraced:
        of_streams = f" of {listed(untraced)}" if any(untraced) else ""
        why = "because an earlier version or another program prepared them"
        yield fact("lineage", f"the rows{of_streams} do not list their documents, {why}: this run cannot be traced")


def _stream_lines(key: str, streams: Mapping[str, Rows], epochs: Mapping[str, str]) -> Iterator[str]:
    width = max((len(name) for name in streams), default=0)
    for number, (name, rows) in enumerate(streams.items()):
        named = f"{name:<{width}}  " if name else ""
        tokens = "" if rows.tokens is None else f", {rows.tokens:,} tokens ({rows.trained_tokens:,} trained on)"
        yield fact("" if number else key, f"{named}{rows.n_rows:,} rows{tokens}{epochs.get(name, '')}")


def output_lines(config: TrainConfig, run_name: str, folder: Path | None, log_folder: Path | None) -> Iterator[str]:
    """Yield lines for the output of the run. folder: the save folder. A separate line describes the checkpoints in this
    folder."""
    if folder is None:
        yield fact("checkpoints", "none, because save_folder is not set")
    loggers, logs = config.loggers, []
    if log_folder is not None:
        logs.append(f"{METRICS}, {RECORD} and, at the end, {REPORT} in {log_folder}")
    if loggers.file is not None:
        logs.append(loggers.file.filename.replace("{run_name}", run_name))
    if loggers.tensorboard is not None:
        logs.append(f"TensorBoard in {loggers.tensorboard.folder(run_name)}")
    if loggers.wandb is not None:
        logs.append(f"W&B project {loggers.wandb.project}" if loggers.wandb.project else "W&B")
    if loggers.mlflow is not None:
        logs.append(f"MLflow in {loggers.mlflow.tracking_uri}" if loggers.mlflow.tracking_uri else "MLflow")
    if logs:
        yield fact("logs", "; ".join(logs))
