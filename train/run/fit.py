"""One run: open its inputs, build the model, the loaders and the Trainer, and train."""

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from composer import Trainer
from composer.core import Callback
from composer.devices import Device as ComposerDevice
from composer.utils import dist, get_device

from data.base.console import logger
from data.config.sections import join
from data.loading.loader import BatchLoader
from train.callbacks.checkpoint_saver import CheckpointSaver
from train.callbacks.generate import build_generate
from train.callbacks.hf_checkpointer import HFCheckpointer, build_hf_checkpointer
from train.callbacks.remote_shards import RemoteShards
from train.callbacks.stream_monitor import StreamMonitor
from train.checkpoint.log_folder import begin_log
from train.checkpoint.owner import Owner
from train.checkpoint.remote.mirror import Mirror
from train.checkpoint.save_folder import furnish_save_folder
from train.config.schema import TrainConfig
from train.console.data_summary import output_lines
from train.console.run_console import RunConsole, run_console
from train.console.warnings import silence_expected_warnings
from train.distributed.agreement import facts_of_start
from train.distributed.first_rank import on_first_rank
from train.distributed.process_group import initialize_dist, sharing_failures
from train.hardware.device import Device, choose_device
from train.lineage.openlineage import lineage_written
from train.models.precision import on_device
from train.optim.optimizers import build_optimizer
from train.planning.run_data import RunData
from train.report import report
from train.run.inputs import Inputs, describe, open_inputs, starting_from, warnings_about
from train.run.logs import disk_full_as_data_error, logged_run, recorded, run_lineage, run_record, start_line
from train.run.model import build_model
from train.run.restore import restore, verify_end
from train.run.saving import build_savers, clean_up, finishing, mirrored, owned
from train.run.supervision import Supervision, build_preemption, build_recorded_saver
from train.run.trainer import build_eval_loader, build_train_loader, build_trainer
from train.stability.step_check import StepCheck
from train.supervision.events import Events
from train.supervision.exit_codes import ExitCode, RunStopped
from train.supervision.hangs.deadlines import Section
from train.supervision.hangs.section_marks import SectionMarks
from train.supervision.hangs.sections import within
from train.supervision.hangs.watch import watched
from train.supervision.preemption import Preemption
from train.supervision.signals import StopSignals
from train.throughput.build import build_profile, build_throughput
from train.weights.frozen_base import frozen_weights, note_base


def fit(
    config: TrainConfig,
    inputs: Inputs | None = None,
    *,
    device: Device | None = None,
    callbacks: Sequence[Callback] = (),
    dtype: torch.dtype = torch.float32,
    signals: StopSignals | None = None,
    command: str = "the same command with autoresume=true",
) -> None:
    """Train as the config specifies. Raises ConfigError or DataError for errors that the user can fix. These errors are
    raised before the first step, except for failed writes during training.

    inputs, device: the results of open_inputs and choose_device; if None, these functions are called here. signals: the
    signals after which the run saves and ends (see Preemption). command: the command that resumes the run, shown in
    messages. callbacks: used in addition to the callbacks of the config. dtype: dtype of the weights (tests of
    numerical exactness use fp64).
    """
    silence_expected_warnings()
    composer_device = get_device(device or choose_device(config.device))
    with sharing_failures():
        inputs = initialize(open_inputs(config) if inputs is None else inputs, config, composer_device)
    supervision = Supervision(Events(inputs.record), signals or StopSignals(), command)
    folders = (inputs.folder, inputs.log_folder)
    shown = run_console(config, inputs.run_name, *folders, command)
    with shown as console, watched(config.deadlines, inputs.folder, supervision.events) as sections:
        inputs = verify_end(config, inputs)
        if not inputs.at_the_end:
            with owned(config, inputs) as (owner, inputs):
                if not inputs.at_the_end:
                    with mirrored(config, inputs, supervision.signals) as mirror:
                        context = _RunContext(
                            device=composer_device, owner=owner, mirror=mirror, supervision=supervision, console=console
                        )
                        built = _build(config, inputs, context, [SectionMarks(sections), *callbacks], dtype)
                        exporter = _fit(config, built, context)
                    _check(exporter)  # raise export errors only after all uploads are complete
                    return
            inputs = verify_end(config, inputs)
        with mirrored(config, inputs, supervision.signals) if inputs.resuming else nullcontext() as mirror:
            if mirror is not None:
                mirror.begin(resuming=True)
            exporter = _nothing_to_do(config, inputs)
        _check(exporter)


def _check(exporter: HFCheckpointer | None) -> None:
    if exporter is not None:
        exporter.check()


@dataclass(frozen=True, kw_only=True, eq=False)
class _RunContext:
    """The objects that a run needs while it trains, apart from its config and inputs."""

    device: ComposerDevice
    owner: Owner | None
    """The owner of the save folder on rank 0; None on other ranks."""
    mirror: Mirror | None
    supervision: Supervision
    console: RunConsole


@dataclass(frozen=True, kw_only=True, eq=False)
class _Built:
    """A run that is ready to train."""

    trainer: Trainer
    inputs: Inputs
    """The inputs. The tensors of the checkpoint have already been loaded into the model and the optimizer."""
    precision: str
    savers: Sequence[CheckpointSaver]
    exporter: HFCheckpointer | None
    preemption: Preemption
    loaders: Sequence[BatchLoader]


def _build(
    config: TrainConfig, inputs: Inputs, context: _RunContext, callbacks: Sequence[Callback], dtype: torch.dtype
) -> _Built:
    device, mirror, supervision = context.device, context.mirror, context.supervision
    data, gpu = inputs.data, device.name == "gpu"
    precision = on_device(config.precision, gpu=gpu)
    profile = build_profile(config, inputs.log_folder, inputs.max_batches)
    generate = build_generate(config, inputs.tokenizer, data.clock)
    exporter = build_hf_checkpointer(config, data.clock, inputs.run_name, inputs.folder, resuming=inputs.resuming)
    model = build_model(config, inputs, precision=precision, device=_torch_device(device), dtype=dtype)
    optimizer = build_optimizer(config.optimizer, model.model)
    inputs = restore(config, inputs, model.model, optimizer)
    train_loader = build_train_loader(config, inputs, supervision.signals)
    eval_loader = build_eval_loader(config, inputs)
    savers = build_savers(config, inputs, context.owner, mirror, supervision.events)
    record = run_record(config, inputs)
    saver = build_recorded_saver(savers, record)
    events, folder = supervision.events, inputs.folder
    check = StepCheck(config, data.plan, model.model, events, clock=data.clock, folder=folder, saver=saver)
    preemption = build_preemption(config, inputs, saver, mirror, supervision)
    for each in generate:
        each.is_ending, each.events = preemption.should_end, events
    # Savers run after the other callbacks, so that a checkpoint includes the state of these callbacks after the step.
    # The mirror and the exporter run after the savers, because they use the checkpoint. The record runs before the
    # savers: if the run is killed between these two callbacks, the batch is recorded again after the resume. In the
    # reverse order, the batch would not be recorded.
    saving = [record, *savers, *([mirror] if mirror else []), *([exporter] if exporter else [])]
    measuring = [build_throughput(config, gpu=gpu, precision=precision), *profile]
    trainer = build_trainer(
        config,
        model=model,
        optimizer=optimizer,
        device=device,
        train_loader=train_loader,
        eval_loader=eval_loader,
        clock=data.clock,
        plan=data.plan,
        callbacks=[*_data_callbacks(data), preemption, *generate, *callbacks, check, *saving, *measuring],
        run=logged_run(inputs),
        precision=precision,
        state=inputs.start.state if inputs.start is not None else None,
        console=context.console.begin(data.plan, data.clock),
    )
    if exporter is not None and inputs.resuming:
        exporter.catch_up(trainer.state.timestamp.batch.value)
    return _Built(
        trainer=trainer,
        inputs=inputs,
        precision=precision,
        savers=savers,
        exporter=exporter,
        preemption=preemption,
        loaders=[loader for loader in (train_loader, eval_loader) if loader is not None],
    )


def _fit(config: TrainConfig, built: _Built, context: _RunContext) -> HFCheckpointer | None:
    trainer, inputs, supervision = built.trainer, built.inputs, context.supervision
    with ExitStack() as stack:
        for loader in built.loaders:
            stack.enter_context(loader.worker_errors())
        stack.enter_context(supervision.signals.deferred())
        stack.callback(_report, inputs)  # called after `finishing`, and therefore after the last save
        stack.enter_context(finishing(built.savers))
        on_first_rank(lambda: _write_run_files(config, inputs))
        start = start_line(config, inputs, context.device.name, built.precision)
        stack.enter_context(lineage_written(run_lineage(config, inputs)))
        stack.enter_context(recorded(supervision.events, start, trainer))
        try:
            _train(trainer, config, inputs, context.mirror, evaluate=built.preemption.evaluation_due)
        except RunStopped as stop:  # raised on every rank
            supervision.signals.ignore_all()
            if stop.code == ExitCode.UNSTABLE:
                supervision.events.record("stopped", trainer.state.timestamp.batch.value, str(stop))
            with within(Section.UNTIMED):
                _close(trainer)
            raise
    with within(Section.UNTIMED):
        trainer.close()
    return built.exporter


def initialize(inputs: Inputs, config: TrainConfig, device: ComposerDevice) -> Inputs:
    """Initialize the process group after all ranks have opened their inputs, check that all ranks have the same config
    and data, and log the inputs. All ranks use rank 0's run name and checkpoint, because the disk of another node may
    have a different checkpoint or no checkpoint."""
    facts = partial(facts_of_start, config, device.name, _fingerprints(inputs))
    initialize_dist(device, config.dist_timeout, facts)
    chosen = [inputs.run_name, inputs.start, inputs.log_folder]
    dist.broadcast_object_list(chosen, src=0)
    inputs = replace(starting_from(inputs, config, *chosen[:2]), log_folder=chosen[2])
    for line in warnings_about(inputs):
        logger.warning(line)
    for line in describe(inputs, config):
        logger.info(line)
    return inputs


def _fingerprints(inputs: Inputs) -> dict[str, str]:
    """Return the fingerprint of each stream's rows, by loader and stream."""
    loaders = {"train_loader": inputs.data.streams, "eval_loader": inputs.eval_streams or {}}
    return {join(key, name): rows.fingerprint for key, streams in loaders.items() for name, rows in streams.items()}


def _nothing_to_do(config: TrainConfig, inputs: Inputs) -> HFCheckpointer | None:
    """Report that the run is already finished, and create the missing exports."""
    assert inputs.start is not None
    end = f"max_duration {config.max_duration} ends at batch {inputs.max_batches}"
    logger.info(f"nothing to do: {inputs.start.path} is at batch {inputs.first_batch}, and {end}")
    if not inputs.resuming:
        return None
    on_first_rank(partial(clean_up, inputs, inputs.start.path))
    exporter = build_hf_checkpointer(config, inputs.data.clock, inputs.run_name, inputs.folder, resuming=True)
    if exporter is not None:
        exporter.catch_up(inputs.first_batch)
        dist.barrier()  # rank 0 must not exit yet, because it hosts the store that the other ranks read
    return exporter


def _train(trainer: Trainer, config: TrainConfig, inputs: Inputs, mirror: Mirror | None, *, evaluate: bool) -> None:
    """Train the remaining steps. evaluate: whether to evaluate before the first remaining step."""
    for line in output_lines(config, inputs.run_name, inputs.folder, inputs.log_folder):
        logger.info(line)
    if mirror is not None:
        mirror.begin(resuming=inputs.resuming)
    with disk_full_as_data_error(config, inputs):
        if config.eval_loader is not None and (evaluate or (config.eval_first and not inputs.resuming)):
            trainer.eval()
        trainer.fit()


def _close(trainer: Trainer) -> None:
    """Close the trainer of a stopped run. Errors of loggers are only logged, so that they do not hide the reason why
    the run stopped."""
    try:
        trainer.close()
    except Exception as error:
        logger.warning(f"a logger or callback could not be closed: {error}")


def _report(inputs: Inputs) -> None:
    """Write the report of a run that ends, successfully or not."""
    with within(Section.UNTIMED):  # outside the condition, because every rank must enter the same sections
        if inputs.log_folder is not None and dist.get_global_rank() == 0:
            report.report_at_end(inputs.log_folder)


def _torch_device(device: ComposerDevice) -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if device.name == "gpu" else torch.device("cpu")


def _data_callbacks(run: RunData) -> list[Callback]:
    callbacks: list[Callback] = [StreamMonitor(run.plan, {name: rows.n_rows for name, rows in run.streams.items()})]
    if any(rows.is_remote for rows in run.streams.values()):
        callbacks.append(RemoteShards(run.cache))
    return callbacks


def _write_run_files(config: TrainConfig, inputs: Inputs) -> None:
    """Write the files of the save folder other than checkpoints, and start the log folder."""
    if inputs.folder is not None:
        furnish_save_folder(inputs.folder, config, inputs.tokenizer, run_id=inputs.run_id, resuming=inputs.resuming)
        if config.lora is not None:
            note_base(inputs.folder, frozen_weights(config, inputs.weights))
    if inputs.log_folder is not None:
        begin_log(inputs.log_folder, inputs.folder, resuming=inputs.resuming)
