"""The actions after a spike of the loss: report it, skip its steps, or roll back to a checkpoint."""

from collections.abc import Mapping
from typing import Any

from composer.core import State
from composer.loggers import Logger
from torch import nn

from train.config.schema import TrainConfig
from train.stability.nonfinite import Saver
from train.stability.rollback import roll_back
from train.stability.spikes import SpikeDetector
from train.supervision.events import Events
from train.supervision.exit_codes import ExitCode, RunStopped
from train.supervision.hangs.deadlines import Section
from train.supervision.hangs.sections import within

OWNER = "StepCheck"
"""The callback that stores the state of SpikeActions in its own state, under the key `spikes`."""


class SpikeActions:
    """Checks the loss of each step for spikes and handles them. Its state consists of JSON values."""

    def __init__(self, config: TrainConfig, events: Events, saver: Saver | None) -> None:
        self._config, self._events, self._saver = config, events, saver
        self._detector = SpikeDetector(config.spikes)
        self._highest = 0.0
        """The highest loss of the current spike."""
        self._rollbacks = 0
        self._mix: list[Any] | None = None

    def enter(self, batch: int, mix: list[Any], logger: Logger) -> None:
        """Begin a batch. mix: JSON values that describe the data mixture. If the mixture changes, the level of the loss
        changes too. Earlier losses are then discarded, and the current spike, if any, ends."""
        if self._mix is not None and mix != self._mix:
            if self._detector.length:
                self._report_end(batch, logger, "the data mixture has changed")
            self._detector.restart()
        self._mix = mix

    def handle(self, state: State, loss: float, logger: Logger, model: nn.Module) -> bool:
        """Handle a step with a finite loss before the optimizer step. Returns whether to skip the step. Every rank must
        call this with the same loss. Raises RunStopped on every rank if the run has to end."""
        batch, detector = state.timestamp.batch.value, self._detector
        before, median, limit = detector.length, detector.median, detector.limit
        if not detector.is_spike(loss):
            if before:
                self._report_end(batch, logger, f"the loss is {loss:.4g}", steps=before)
            return False
        self._highest = max(self._highest, loss) if before else loss
        what = f"batch {batch}: the loss is {loss:.4g}, a spike: the median of earlier losses is {median:.4g}, "
        what += f"and the limit is {limit:.4g}"
        leave_out = self._config.on_spike != "log"
        if before == 0:
            if self._config.on_spike == "rollback":
                self._roll_back(state, what, logger, model)
            else:
                left_out = ". Steps are skipped until the spike ends" if leave_out else ""
                self._events.report("spike", batch, what + left_out, logger=logger, loss=loss, limit=limit)
        if detector.length >= self._config.spikes.max_steps:
            self._end_long_spike(batch, loss, logger)
        return leave_out

    @within(Section.UNTIMED)  # loading a large checkpoint may take longer than the deadline of a step
    def _roll_back(self, state: State, what: str, logger: Logger, model: nn.Module) -> None:
        batch, most = state.timestamp.batch.value, self._config.spikes.max_rollbacks
        if self._rollbacks >= most:
            text = f"{what}. The number of rollbacks is already {self._rollbacks} (spikes.max_rollbacks: {most})"
            self._events.report("spike", batch, text, logger=logger)
            raise RunStopped(ExitCode.UNSTABLE, f"{text}: lower optimizer.lr, or inspect the data around this batch")
        assert self._saver is not None, "TrainConfig checks it"
        (optimizer,) = state.optimizers
        back = roll_back(self._saver.committed(state), model, optimizer)
        if back is None:
            text = f"{what}. There is no checkpoint to roll back to: steps are skipped until the spike ends"
            self._events.report("spike", batch, text, logger=logger)
            return
        self._rollbacks += 1
        then = back.callbacks.get(OWNER)
        if then is not None and then["spikes"]["mix"] == self._mix:
            self._detector.return_to(then["spikes"]["detector"])
        text = (
            f"{what}. Model and optimizer were restored from {back.checkpoint} (rollback {self._rollbacks} of {most}): "
            "the rows used since this checkpoint are skipped, and further steps are skipped until the spike ends"
        )
        self._events.report("rollback", batch, text, logger=logger, checkpoint=back.checkpoint.name)

    def _end_long_spike(self, batch: int, loss: float, logger: Logger) -> None:
        """Handle a spike that has lasted for spikes.max_steps steps."""
        steps, key = self._detector.length, f"spikes.max_steps: {self._config.spikes.max_steps}"
        if self._config.on_spike == "log":
            self._report_end(batch, logger, f"a loss of {loss:.4g} is accepted as the new normal level ({key})")
            self._detector.restart()
            return
        raise RunStopped(
            ExitCode.UNSTABLE,
            f"batch {batch}: the loss spike has lasted for {steps} steps ({key}; on_spike: {self._config.on_spike}): "
            "resume from an earlier checkpoint with a lower optimizer.lr, or inspect the data",
        )

    def _report_end(self, batch: int, logger: Logger, why: str, *, steps: int | None = None) -> None:
        steps = self._detector.length if steps is None else steps
        length = "1 step" if steps == 1 else f"{steps} steps"
        text = f"batch {batch}: the loss spike ended after {length}, with a maximum of {self._highest:.4g}: {why}"
        self._events.report("spike_end", batch, text, logger=logger, steps=steps, highest=self._highest)

    def state_dict(self) -> dict[str, Any]:
        return {
            "detector": self._detector.state_dict(),
            "highest": self._highest,
            "rollbacks": self._rollbacks,
            "mix": self._mix,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._detector.load_state_dict(state["detector"])
        self._highest, self._rollbacks, self._mix = state["highest"], state["rollbacks"], state["mix"]
