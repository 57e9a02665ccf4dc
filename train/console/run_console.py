"""Console output of one run while it trains and when it ends."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from composer.loggers import LoggerDestination
from composer.utils import dist

from data.base.console import logger
from data.base.durations import Clock, format_seconds
from data.mixing.row_plan import RowPlan
from data.secrets.redaction import is_address
from train.checkpoint.save_folder import REPORT, checkpoints, fill_name
from train.config.schema import TrainConfig
from train.console.bar import LiveBar, is_terminal
from train.console.columns import eval_text, lines_interval, shown
from train.console.facts import command_fact, fact
from train.console.lines import ConsoleLines
from train.supervision.exit_codes import RunStopped
from train.supervision.wall_time import process_seconds


class RunConsole:
    """The console output of a run. Only rank 0 shows anything."""

    def __init__(
        self, config: TrainConfig, run_name: str, folder: Path | None, log_folder: Path | None, resume_command: str
    ) -> None:
        self._config, self._run_name, self._resume = config, run_name, resume_command
        self._folder, self._log_folder = folder, log_folder
        self._lines: ConsoleLines | None = None
        self._max_batches = 0
        self._stack = ExitStack()

    def begin(self, plan: RowPlan, clock: Clock) -> list[LoggerDestination]:
        """Return the logger that shows the steps, and start the bar. Loggers that copy stdout must be created after
        this call."""
        if dist.get_global_rank() != 0:
            return []
        assert clock.max_batches is not None
        self._max_batches, bar = clock.max_batches, None
        if self._config.progress_bar and self._config.log_to_console != "composer" and is_terminal():
            bar = self._stack.enter_context(LiveBar(sys.stdout, self._max_batches).shown())
        self._lines = ConsoleLines(plan, self._max_batches, interval=log_interval(self._config, clock), bar=bar)
        return [self._lines]

    def end(self, error: BaseException | None) -> None:
        """Remove the bar and, if training has begun, show how the run ended."""
        self._stack.__exit__(type(error) if error is not None else None, error, None)
        if self._lines is not None and (self._lines.metrics or error is None):
            for line in self._end_lines(self._lines, error):
                logger.info(line)

    def _end_lines(self, lines: ConsoleLines, error: BaseException | None) -> Iterator[str]:
        is_stopped = isinstance(error, RunStopped)
        word = "finished" if error is None else "stopped" if is_stopped else "failed"
        took = format_seconds(process_seconds())
        yield fact(word, f"at batch {lines.batch:,} of {self._max_batches:,}, {took} after the start")
        if train := [f"{each.header} {each.show(lines.metrics[each.metric])}" for each in shown(lines.metrics)[:2]]:
            yield fact("training", ", ".join(train))
        if lines.evaluation:
            yield fact("evaluation", eval_text(lines.evaluation))
        saved = checkpoints(self._folder) if self._folder is not None else []
        if saved and not is_stopped:  # the message of RunStopped contains the path
            yield fact("checkpoint", f"{self._address or self._folder}/{saved[-1].name}")
        if self._log_folder is not None and (self._log_folder / REPORT).exists():
            yield fact("report", str(self._log_folder / REPORT))
        if error is None and saved:
            yield command_fact("next", self._export_command())
        elif saved and not is_stopped:
            yield command_fact("next", self._resume)

    @property
    def _address(self) -> str | None:
        """The address of a save folder in an object store; None for a local folder."""
        folder = self._config.save_folder or ""
        return fill_name(folder, self._run_name, "save_folder") if is_address(folder) else None

    def _export_command(self) -> str:
        source = f"{self._address}/latest" if self._address is not None else str(self._folder)
        output = f"runs/{self._run_name}/hf" if self._folder is None else str(self._folder.parent / "hf")
        script = ["python", "scripts/convert_checkpoint_to_hf.py"]
        return shlex.join([*script, "--composer_path", source, "--hf_output_path", output])


@contextmanager
def run_console(
    config: TrainConfig, run_name: str, folder: Path | None, log_folder: Path | None, resume_command: str
) -> Iterator[RunConsole]:
    """A context manager for the whole run, so that the result of the run is printed last. folder: the save folder."""
    console = RunConsole(config, run_name, folder, log_folder, resume_command)
    try:
        yield console
    except BaseException as error:
        console.end(error)
        raise
    console.end(None)


def log_interval(config: TrainConfig, clock: Clock) -> int | None:
    """Return the number of batches between two step lines, or None if no lines are shown."""
    assert clock.max_batches is not None
    instead_of_bar = config.progress_bar and not config.log_to_console and not is_terminal()
    if config.log_to_console is not True and not instead_of_bar:
        return None
    written = config.console_log_interval
    return clock.batches(written) if written is not None else lines_interval(clock.max_batches)
