"""Profiles a few steps: a trace by torch.profiler for each rank, and a table of the time by category."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from data.base.console import logger as console
from data.base.console import rank_logger
from data.base.errors import cannot_be
from train.config.supervision import ProfileConfig
from train.models.attention.attention import Attention
from train.models.experts.experts import Experts
from train.supervision.hangs.deadlines import Section
from train.supervision.hangs.sections import within
from train.throughput.timeline import ATTENTION, BATCH, EXPERTS, read_timeline, table

_RANGES = ((Attention, "forward", ATTENTION), (Attention, "attend", ATTENTION), (Experts, "forward", EXPERTS))


class Profile(Callback):
    """For each rank in profile.ranks, writes a Chrome trace (stepA-B-rankR.json.gz) and a table (.txt). The table of
    the lowest of these ranks is also logged to the console.

    A step lasts from the end of the previous step to its own end, including evaluations, saves, and the time spent
    waiting for data. The step before the first profiled step is a warm-up of the profiler and is not recorded. This
    callback must come after the other callbacks.
    """

    def __init__(self, config: ProfileConfig, folder: Path) -> None:
        """folder: the folder in which the files are written."""
        self._config, self._folder = config, folder
        self._end = config.step + config.steps - 1
        self._running: tuple[profile, ExitStack] | None = None
        self._batch = record_function(BATCH)

    @property
    def name(self) -> str:
        """The name of this rank's files, without suffix."""
        last = f"-{self._end}" if self._config.steps > 1 else ""
        return f"step{self._config.step}{last}-rank{dist.get_global_rank()}"

    def fit_start(self, state: State, logger: Logger) -> None:
        done = state.timestamp.batch.value
        if done >= self._config.step:
            console.info(
                f"profile.step is {self._config.step}, but the run resumes at batch {done}: nothing is profiled"
            )
        elif done >= self._config.step - 2:
            self._start(warm_up=done == self._config.step - 2)

    def before_train_batch(self, state: State, logger: Logger) -> None:
        if self._running is not None:
            self._batch.__enter__()

    def after_train_batch(self, state: State, logger: Logger) -> None:
        if self._running is not None:
            self._batch.__exit__(None, None, None)

    def batch_end(self, state: State, logger: Logger) -> None:
        done = state.timestamp.batch.value
        if done == self._config.step - 2:
            self._start(warm_up=True)
        elif done == self._end:
            self._finish()
        elif self._running is not None:
            self._running[0].step()

    def close(self, state: State, logger: Logger) -> None:
        """If the run ends before the last profiled step, stop profiling without writing a trace."""
        if self._running is not None:
            self._stop()

    # Every rank enters these sections, whether it is profiled or not, because the watchdog compares the number of
    # sections to find ranks that are behind.
    @within(Section.UNTIMED)
    def _start(self, *, warm_up: bool) -> None:
        if dist.get_global_rank() not in self._config.ranks:
            return
        stack = ExitStack()
        stack.enter_context(_named_ranges())
        gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        if not gpu:
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise, Kineto logs that there is no GPU
        running = profile(
            activities=[ProfilerActivity.CPU, *gpu],
            schedule=schedule(wait=0, warmup=int(warm_up), active=self._config.steps, repeat=1),
            on_trace_ready=self._write,
        )
        running.start()
        self._running = running, stack

    @within(Section.UNTIMED)
    def _finish(self) -> None:
        if self._running is not None:
            self._running[0].step()  # writes the trace
            self._stop()

    def _stop(self) -> None:
        assert self._running is not None
        (running, stack), self._running = self._running, None
        with stack:
            running.stop()

    def _write(self, profiled: profile) -> None:
        if self._running is None:
            return
        try:
            self._write_files(profiled)
        except OSError as error:
            rank_logger.warning(
                f"profile: {cannot_be('written', self._folder, error)}. The run continues without the profile"
            )

    def _write_files(self, profiled: profile) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        trace = self._folder / f"{self.name}.json.gz"
        profiled.export_chrome_trace(str(trace))
        rank, first, last = dist.get_global_rank(), self._config.step, self._end
        steps = f"steps {first} to {last}" if last > first else f"step {first}"
        text = table(read_timeline(trace), f"profile of {steps}, rank {rank}")
        (self._folder / f"{self.name}.txt").write_text(text + "\n")
        if rank == min(self._config.ranks):
            rank_logger.info(f"{text}\n  trace: {trace} (for https://ui.perfetto.dev)")


@contextmanager
def _named_ranges() -> Iterator[None]:
    """Within this context, the trace contains a named range for each call of attention and experts."""
    before = [(kind, name, getattr(kind, name)) for kind, name, _ in _RANGES]
    for kind, name, range_name in _RANGES:
        setattr(kind, name, record_function(range_name)(getattr(kind, name)))
    try:
        yield
    finally:
        for kind, name, function in before:
            setattr(kind, name, function)
