"""The inputs of a run, each opened once before the model is built: tokenizer, data, and the checkpoint to start from.

This module uses no collectives: each rank opens its own inputs, because hashing, preparing and downloading data may
take any length of time. It does not import Composer.
"""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from data.base.errors import Problems, under
from data.loading.opening import find_source, open_streams
from data.loading.rows import Rows
from data.mds.folder import MdsFolder
from data.mixing.resume import position
from data.sources.source import Source
from data.tokenization.build import build_tokenizer
from data.tokenization.tokenizer import Tokenizer
from train.checkpoint.log_folder import log_folder_of
from train.checkpoint.owner import check_unowned
from train.checkpoint.reader import CheckpointReader
from train.checkpoint.remote.staging import check_remote_unowned, is_first_rank, open_exports, open_save_folder
from train.checkpoint.save_folder import check_writable, fill_in, local_folder, read_run_id, run_name_of, unverified
from train.config.load import check_vocab
from train.config.schema import TrainConfig
from train.console.data_summary import data_lines
from train.console.facts import fact
from train.hf.repository import KEY
from train.loggers.checks import check_loggers
from train.planning.run_data import RunData, open_data, plan_data
from train.supervision.record_file import Record
from train.weights.changes import change_lines, check_rows
from train.weights.frozen_base import check_base, frozen_weights
from train.weights.pretrained import PretrainedFolder
from train.weights.start import Start, StartingWeights, find_start, open_weights


@dataclass(frozen=True, eq=False, kw_only=True)
class Inputs:
    """The opened inputs of a run; see `open_inputs`."""

    run_name: str
    folder: Path | None
    """The save folder."""
    log_folder: Path | None
    """Folder of metrics.jsonl, record.jsonl and report.html; None if the folder is not writable, in which case a
    warning has been logged."""
    tokenizer: Tokenizer
    start: Start | None
    weights: StartingWeights | None
    """Weights that are not in `start`; None if `start` contains all weights, or if the weights are random."""
    data: RunData
    eval_streams: dict[str, Rows] | None

    @property
    def resuming(self) -> bool:
        return self.start is not None and self.start.resuming

    @cached_property
    def run_id(self) -> str:
        """The id of the run, which is the same in all of its checkpoints. Only rank 0's value is used."""
        known = None
        if self.start is not None and self.resuming:
            known = self.start.run_id or (read_run_id(self.folder) if self.folder is not None else None)
        return known or str(uuid.uuid4())

    @property
    def record(self) -> Record:
        """The run's record.jsonl, which is written to the log folder and to the save folder."""
        return Record({"save_folder": self.folder, "log_folder": self.log_folder})

    @property
    def first_batch(self) -> int:
        """The batch at which the run begins."""
        state = self.start.data_state if self.start is not None else None
        return position(state)[0] if state is not None else 0

    @property
    def max_batches(self) -> int:
        assert self.data.clock.max_batches is not None
        return self.data.clock.max_batches

    @property
    def at_the_end(self) -> bool:
        """Whether all batches of the run have already been trained."""
        return self.first_batch >= self.max_batches


def open_inputs(config: TrainConfig, problems: Problems | None = None, *, rehash: bool = False) -> Inputs:
    """Open the inputs on this rank. Raises ConfigError or DataError. All problems that can be found quickly are
    reported together, with the caller's `problems`, before anything is downloaded or prepared."""
    problems = Problems() if problems is None else problems
    run_name, folder, log_folder, start, tokenizer = None, None, None, None, None
    with problems.collect():
        run_name = run_name_of(config)
    sources = _find_sources(config, problems, rehash=rehash)
    with problems.collect():
        tokenizer = build_tokenizer(config.tokenizer)
        check_vocab(config, tokenizer.vocab_size)
    if run_name is not None:
        with problems.collect():
            folder = local_folder(config, run_name)
            remote = open_save_folder(config, run_name)
            if folder is not None:
                check_unowned(folder)
            if remote is not None:
                check_remote_unowned(remote)
            start = find_start(config, folder, remote=remote)
        with problems.collect():
            if is_first_rank():
                check_loggers(config.loggers)
        with problems.collect():
            log_folder = log_folder_of(config, run_name, check=is_first_rank())
        if (exports := config.callbacks.hf_checkpointer) is not None:
            key = "callbacks.hf_checkpointer.save_folder"
            with problems.collect():
                check_writable(fill_in(exports.save_folder, run_name, key, config.save_staging_folder), key)
                open_exports(exports.save_folder, run_name, key)
    problems.raise_if_any()
    assert tokenizer is not None
    assert run_name is not None
    weights = open_weights(config, start)
    if config.lora is not None and start is not None and start.data_state is not None:
        check_base(start.path, frozen_weights(config, weights), config)
    state = start.data_state if start is not None else None
    check = partial(check_rows, start, config)
    data = open_data(config, tokenizer, state, sources["train_loader"], check=check)
    eval_streams = None
    if config.eval_loader is not None:
        with under("eval_loader.dataset"):
            eval_streams = open_streams(config.eval_loader.dataset, tokenizer, sources["eval_loader"])
    return Inputs(
        run_name=run_name,
        folder=folder,
        log_folder=log_folder,
        tokenizer=tokenizer,
        start=start,
        weights=weights,
        data=data,
        eval_streams=eval_streams,
    )


def starting_from(inputs: Inputs, config: TrainConfig, run_name: str, start: Start | None) -> Inputs:
    """Return the inputs for a different run name and starting checkpoint. Only inputs that depend on the run name or on
    the checkpoint are reopened."""
    inputs = replace(inputs, run_name=run_name, folder=local_folder(config, run_name))
    if _is_same(start, inputs.start):
        return replace(inputs, start=start)
    state = start.data_state if start is not None else None
    data = plan_data(config, inputs.data.streams, state)
    return replace(inputs, start=start, weights=open_weights(config, start), data=data)


def _is_same(start: Start | None, other: Start | None) -> bool:
    """Whether both starts refer to the same checkpoint with the same state."""
    if start is None or other is None:
        return start is other
    return (start.path, start.run_id, start.state) == (other.path, other.run_id, other.state)


def describe(inputs: Inputs, config: TrainConfig) -> Iterator[str]:
    """Yield console lines that describe the initial weights and the data of the run."""
    start = inputs.start
    if start is not None and start.resuming:
        yield fact("start", f"resuming from {start.path} (autoresume)")
    elif config.autoresume:
        yield fact("start", f"from the beginning: autoresume found no checkpoint in {inputs.folder}")
    if start is not None and not start.resuming:
        yield fact("start", f"from {'the weights' if start.data_state is None else 'the full state'} in {start.path}")
    yield from change_lines(start, config)
    yield from data_lines(config, inputs.data, inputs.eval_streams)
    yield from inputs.data.plan.notes
    if isinstance(inputs.weights, PretrainedFolder):
        yield fact("weights", f"from {inputs.weights.name}")
    elif inputs.weights is not None and start is None:
        yield fact("weights", f"frozen weights of {config.load_path}")
    elif inputs.weights is None and config.lora is not None:
        yield fact(
            "weights",
            f"random frozen base model (seed {config.seed}), because {KEY} specifies no weights, and load_path "
            "specifies no checkpoint of a whole model",
        )


def warnings_about(inputs: Inputs) -> Iterator[str]:
    """Yield warnings about corrupt checkpoints that are newer than the one the run starts from, and about unverified
    files."""
    start, weights = inputs.start, inputs.weights
    if start is not None:
        yield from map(str, start.corrupt)
        if start.corrupt:
            yield f"RESUMING FROM AN EARLIER CHECKPOINT, {start.path.name}: later batches are trained again"
        if start.run_id is None:
            yield unverified(start.path)
    if isinstance(weights, CheckpointReader) and weights.manifest is None:
        yield unverified(weights.checkpoint)


def _find_sources(config: TrainConfig, problems: Problems, *, rehash: bool) -> dict[str, dict[str, Source | MdsFolder]]:
    """Return the source of each loader's streams; errors about missing sources are added to `problems`."""
    loaders = {"train_loader": config.train_loader, "eval_loader": config.eval_loader}
    sources = {}
    for key, loader in loaders.items():
        for stream, dataset in loader.dataset.each_stream().items() if loader is not None else ():
            with problems.collect(), under(f"{key}.dataset.streams.{stream}" if stream else f"{key}.dataset"):
                sources.setdefault(key, {})[stream] = find_source(dataset, rehash=rehash)
    return sources
