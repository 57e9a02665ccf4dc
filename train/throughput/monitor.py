"""The callback that logs throughput, token counts, memory, and where a run spends its time."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from data.base import console
from train.config.callbacks import CallbacksConfig
from train.supervision.hangs.deadlines import Section
from train.supervision.hangs.sections import seconds_so_far
from train.supervision.wall_time import process_seconds
from train.throughput.composer_names import composer_metrics
from train.throughput.memory import peak_memory
from train.throughput.window import Interruptions, Progress, Window

_SECONDS = {
    Section.SETUP: "startup",
    Section.DATA: "data",
    Section.STEP: "train",
    Section.SAVE: "save",
    Section.SEND: "save",
    Section.EVALUATION: "eval",
    Section.GENERATE: "generate",
    Section.UNTIMED: "other",
}
"""For each Section of a run, the name of its metric after `seconds/`."""
_STEPS = ("train", "data")
_INTERRUPTIONS = ("eval", "save", "generate", "other")

_runs = itertools.count()


class Throughput(Callback):
    """At the end of each step, logs (see docs/metrics.md): `throughput/*` over a window of steps, without the time for
    evaluations, saves and text generation; `tokens/*` and `seconds/*` since the beginning of the run; `memory/peak_gib`
    of the rank with the highest peak; and `time/remaining_seconds`.

    This callback must be the last in the list of callbacks, because other callbacks wait for saves at the end of a run.
    Requires the token counts that callbacks/global_batch.py adds to the batch. It reads only values that are already
    computed, so that no step has to wait for the device.
    """

    def __init__(
        self,
        config: CallbacksConfig,
        *,
        window_size: int,
        rows_per_batch: int,
        flops_per_token: int,
        device_flops: float | None,
        seconds: Callable[[], Mapping[Section, float]] = seconds_so_far,
    ) -> None:
        """window_size: number of steps. rows_per_batch: rows of all ranks. flops_per_token: FLOPs per token of a
        training step. device_flops: peak FLOPs per second of a device, or None if unknown. seconds: returns the time
        that this process has spent in each section so far."""
        self._config, self._rows_per_batch = config, rows_per_batch
        self._flops_per_token, self._device_flops, self._of_sections = flops_per_token, device_flops, seconds
        self._window, self._interruptions = Window(window_size), Interruptions()
        self._real_tokens = self._trained_tokens = 0
        # In the first run of a process, the time before its first section is also counted as startup. In later runs,
        # this time is not counted.
        before = process_seconds() - sum(seconds().values()) if next(_runs) == 0 else 0.0
        self._before = dict.fromkeys(_SECONDS.values(), 0.0) | {"startup": max(before, 0.0)}
        self._loaded = False

    def fit_start(self, state: State, logger: Logger) -> None:
        batch = state.timestamp.batch.value
        if batch and not self._loaded and dist.get_global_rank() == 0:
            console.logger.info(
                f"tokens/real, tokens/trained and seconds/*: the checkpoint has no values for the first {batch} batches"
            )

    def batch_end(self, state: State, logger: Logger) -> None:
        counts = state.batch["trained_tokens"][0], state.batch["routed_tokens"][0]
        trained, real = torch.stack(counts).tolist()
        self._trained_tokens += trained
        self._real_tokens += real
        progress = Progress(
            batches=state.timestamp.batch.value,
            tokens=state.timestamp.token.value,
            real_tokens=self._real_tokens,
            trained_tokens=self._trained_tokens,
        )
        here = self._seconds_here()
        self._window.add(sum(here[name] for name in _STEPS), progress)
        self._interruptions.add(progress.batches, sum(here[name] for name in _INTERRUPTIONS))
        speeds = self._window.per_second()
        metrics = {
            "tokens/total": progress.tokens,
            "tokens/real": progress.real_tokens,
            "tokens/trained": progress.trained_tokens,
            "memory/peak_gib": _peak_of_ranks(state) / 2**30,
            **self._speed_metrics(speeds),
            **self._seconds_metrics(here),
        }
        if speeds:
            assert state.max_duration is not None
            left = state.max_duration.value - progress.batches
            metrics["time/remaining_seconds"] = left * (1 / speeds["batches"] + self._interruptions.per_batch)
        also = composer_metrics(
            self._config, metrics, rows_per_batch=self._rows_per_batch, devices=dist.get_world_size()
        )
        logger.log_metrics(metrics | also)

    def fit_end(self, state: State, logger: Logger) -> None:
        logger.log_metrics(self._seconds_metrics(self._seconds_here()))

    def _seconds_here(self) -> dict[str, float]:
        """The seconds that this process has spent in each section, by metric name."""
        here = dict.fromkeys(_SECONDS.values(), 0.0)
        for section, seconds in self._of_sections().items():
            here[_SECONDS[section]] += seconds
        return here

    def _seconds_metrics(self, here: Mapping[str, float]) -> dict[str, float]:
        return {f"seconds/{name}": self._before[name] + seconds for name, seconds in here.items()}

    def _speed_metrics(self, speeds: Mapping[str, float]) -> dict[str, float]:
        """Return the throughput metrics. speeds: the rates that Window returns."""
        if not speeds:
            return {}
        flops, devices = speeds["real_tokens"] * self._flops_per_token, dist.get_world_size()
        metrics = {f"throughput/{name}_per_sec": speed for name, speed in speeds.items()}
        metrics["throughput/flops_per_sec"] = flops
        for name in ("tokens", "real_tokens"):
            metrics[f"throughput/device/{name}_per_sec"] = speeds[name] / devices
        metrics["throughput/device/flops_per_sec"] = flops / devices
        if self._device_flops is not None:
            metrics["throughput/device/mfu"] = flops / devices / self._device_flops
        return metrics

    def state_dict(self) -> dict[str, Any]:
        here = self._seconds_here()
        return {
            "real_tokens": self._real_tokens,
            "trained_tokens": self._trained_tokens,
            "seconds": {name: self._before[name] + seconds for name, seconds in here.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._loaded = True
        self._real_tokens, self._trained_tokens = state["real_tokens"], state["trained_tokens"]
        for name, seconds in state["seconds"].items():
            self._before[name] += seconds


def _peak_of_ranks(state: State) -> float:
    """The peak memory, in bytes, of the rank with the highest peak."""
    peak = torch.tensor(peak_memory(gpu=state.device.name == "gpu"), dtype=torch.float64)
    peak = state.device.tensor_to_device(peak)
    dist.all_reduce(peak, "MAX")
    return peak.item()
