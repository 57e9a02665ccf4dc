"""The command-line interface: reads the config, reports what will run, checks that the run fits on this machine, and
trains.

Large packages are imported only after the config has been read, so that help and errors appear quickly.
"""

import gc
import json
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from data.base.console import is_first, logger, show_on_console
from data.base.errors import ConfigError, DataError
from data.base.paths import refuse_path
from data.base.workers import signalled_at_end_of
from data.secrets.redaction import redacted
from train.config.load import LoadedConfig, load_config
from train.config.schema import TrainConfig
from train.console.start import config_lines, machine_lines, model_lines
from train.console.warnings import silence_expected_warnings
from train.distributed.slurm import ranks_of_srun
from train.hardware.device import Device, choose_device
from train.planning.checks import check_config, config_problems
from train.planning.machine import check_machine
from train.supervision.error_report import report
from train.supervision.resume_command import resume_command
from train.supervision.signals import StopSignals, stop_signals

USAGE = """\
usage: composer train.py CONFIG [key=value ...]       one rank per GPU, or one rank on a machine without GPUs
       composer -n 2 train.py CONFIG [key=value ...]  2 ranks
       srun python train.py CONFIG [key=value ...]    under Slurm: one rank per task
       python train.py CONFIG [key=value ...]         1 rank, without the launcher

       python train.py --explain KEY                  type, default and documentation of a key of CONFIG
       python train.py --schema                       the JSON schema of CONFIG, for editors
       python train.py --keys                         all keys of CONFIG as a Markdown page (docs/keys.md)

CONFIG is a YAML file: see yamls/finetune/.
--rehash reads all input files again, even if they seem unchanged since an earlier start.
--dry-run opens everything and shows the plan and the first batch, but trains nothing and does not change save_folder.
--debug also shows the traceback of a configuration or data error.
key=value changes a key of CONFIG; the value is YAML, and dots separate nested keys:

  composer -n 2 train.py yamls/finetune/dbrx_tiny.yaml run_name=mine max_duration=20ba optimizer.lr=1e-4
  composer train.py yamls/finetune/dbrx.yaml train_loader.dataset.hf_kwargs.data_files=$DATA
  composer train.py yamls/finetune/dbrx.yaml model.preset=9b 'callbacks={lr_monitor: {}}' eval_loader=null
"""

_REHASH, _DRY_RUN, _DEBUG = _FLAGS = "--rehash", "--dry-run", "--debug"
"""These flags may be at any position on the command line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0; 2 for errors that the user can fix (one `error:` line, no traceback); the code of
    RunStopped; or 128 + n if signal n was received before training."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        # Loggers such as wandb record the command line, so secrets in the arguments are masked.
        sys.argv[1:] = map(redacted, arguments)
    show_on_console()
    silence_expected_warnings()
    # When a rank ends, torch logs a C++ stack trace for each connection to this rank, unless the log level is ERROR.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with stop_signals() as signals:
        try:
            return _run_or_report(arguments, signals, launched=argv is None)
        except BaseException as error:
            if not signals.caused(error):
                raise
        return signals.report()


def _run_or_report(arguments: list[str], signals: StopSignals, *, launched: bool) -> int:
    try:
        if launched:
            _join_launcher()
        if {"-h", "--help"} & set(arguments):
            if is_first():
                print(USAGE, end="")
        elif arguments[:1] in (["--schema"], ["--explain"], ["--keys"]):
            if is_first():
                _describe(*arguments)
        else:
            _run(arguments, signals)
    except Exception as error:
        if signals.raised and isinstance(error, ConfigError | DataError):
            raise  # the error may be a consequence of the signal, for example if it interrupted reading a checkpoint
        if (code := report(error, debug=_DEBUG in arguments)) is None:
            raise
        return code
    return 0


def _join_launcher() -> None:
    os.environ.update(ranks_of_srun(os.environ))
    if "RANK" in os.environ:
        # Otherwise, ranks would continue to train after their launcher has ended, when the scheduler no longer tracks
        # them.
        signalled_at_end_of(os.getppid(), signal.SIGTERM)


def _describe(flag: str, *keys: str) -> None:
    """Print the documentation of all keys of a config, or of the given keys."""
    from train.config.json_schema import explain, json_schema, key_reference

    if flag != "--explain" and keys:
        raise ConfigError(
            f"{flag} does not accept a key, but {' '.join(keys)} is given: use --explain to show a single key"
        )
    if flag == "--schema":
        print(json.dumps(json_schema(), indent=2))
    elif flag == "--keys":
        print(key_reference(), end="")
    elif not keys:
        raise ConfigError(
            "--explain needs a key: python train.py --explain KEY, such as train_loader.dataset.excess_length"
        )
    for key in keys:
        print(explain(key))


def _run(arguments: list[str], signals: StopSignals) -> None:
    flags = {argument for argument in arguments if argument in _FLAGS}
    loaded = _load([argument for argument in arguments if argument not in flags])
    try:
        _train(loaded, signals, resume_command(arguments), rehash=_REHASH in flags, dry=_DRY_RUN in flags)
    except ConfigError as error:
        raise loaded.placed(error) from error


def _train(loaded: LoadedConfig, signals: StopSignals, command: str, *, rehash: bool, dry: bool) -> None:
    """The main program: check the config, choose the device, open the inputs, and train."""
    problems, device = config_problems(), None
    config = check_config(loaded, _world_size(), problems)
    if not problems:
        device = _show_start(config)

    from train.distributed.process_group import sharing_failures
    from train.run.inputs import open_inputs

    with sharing_failures(problems):
        if dry:
            from train.dry_run.opening import opened

            with opened(config, problems, rehash=rehash) as inputs:
                from train.dry_run.dry_run import dry_run

                dry_run(config, inputs, device=device)
            return
        inputs = open_inputs(config, problems, rehash=rehash)

        # Imported only after all checks, because importing Composer takes 10 seconds.
        from train.run.fit import fit

        signals.install()
        # Objects created by imports stay in memory, so garbage collection during the run need not traverse them.
        gc.collect()
        gc.freeze()
        try:
            fit(config, inputs=inputs, device=device, signals=signals, command=command)
        finally:
            # Otherwise Triton reports uncollected objects as leaks at exit.
            gc.unfreeze()


def _show_start(config: TrainConfig) -> Device:
    """Log the lines that depend only on the config and the machine, and return the device. Raises ConfigError if the
    run does not fit on this machine."""
    _show(model_lines(config))
    device = choose_device(config.device)
    memory = check_machine(config, _world_size(), device)
    _show(machine_lines(config, _world_size(), device, memory))
    _show(config_lines(config))
    return device


def _show(lines: Iterable[str]) -> None:
    for line in lines:
        logger.info(line)


def _load(arguments: list[str]) -> LoadedConfig:
    if not arguments:
        raise ConfigError(
            "no config is given: run `python train.py CONFIG [key=value ...]`, where CONFIG is a YAML file such as "
            "yamls/finetune/dbrx_tiny.yaml; --help shows all options"
        )
    path, *overrides = arguments
    refuse_path("the config", path)
    if path.startswith("-") or ("=" in path and not Path(path).exists()):
        raise ConfigError(
            f"the first argument must be the config, but {path!r} is not a file: python train.py CONFIG [key=value ...]"
        )
    return load_config(path, overrides)


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
