"""Handling of steps whose loss or gradient norm is NaN or infinite."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from composer.core import State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor, nn

from data.base.errors import ConfigError, DataError
from data.mixing.row_plan import RowPlan
from train.checkpoint.state import encode_random
from train.config.schema import TrainConfig
from train.distributed.clipping import not_finite_gradients
from train.stability.incidents import Incident, RankPart, write_incident
from train.supervision.events import Events
from train.supervision.exit_codes import ExitCode, RunStopped
from train.supervision.resume_command import replay_command

_SHOWN = 8
"""Maximum number of names, and of row ids per stream, in a message."""


class Saver(Protocol):
    """Saves checkpoints (see train/callbacks/checkpoint_saver.py)."""

    def save_now(self, state: State, *, random: Mapping[str, Any] | None = None) -> Path | None:
        """Save and commit a checkpoint of the current batch."""
        ...

    def committed(self, state: State) -> list[Path]:
        """Wait until no checkpoint is being written, and return the checkpoints up to the current batch, oldest
        first."""
        ...


class NonFiniteSteps:
    """Reports non-finite steps, writes their batches to the save folder, and either ends the run or counts these
    steps."""

    def __init__(
        self, config: TrainConfig, plan: RowPlan, events: Events, *, folder: Path | None, saver: Saver | None
    ) -> None:
        self._config, self._plan, self._events = config, plan, events
        self._folder, self._saver = folder, saver
        self.length = 0
        """Number of consecutive non-finite steps so far."""

    def handle(
        self,
        state: State,
        logger: Logger,
        *,
        loss: float,
        params: Sequence[tuple[str, nn.Parameter]],
        batch: Mapping[str, Tensor],
        random: Mapping[str, Any],
    ) -> None:
        """Handle a non-finite step before the optimizer step. Every rank must call this. The caller drops the
        gradients.

        loss: this rank's part of the loss. params: the parameters with their gradients. random: this rank's random
        state at the start of the batch. Raises RunStopped on every rank if on_nonfinite is stop, or after too many
        consecutive non-finite steps.
        """
        number = state.timestamp.batch.value
        mine = RankPart(
            loss=float.hex(loss),
            gradients=not_finite_gradients(params),
            rows=self._rows(number),
            random=encode_random(random),
        )
        incident = Incident(batch=number, run_name=state.run_name, ranks=dist.all_gather_object(mine))
        written = "there is no save_folder" if self._folder is None else write_incident(self._folder, incident, batch)
        self._report(incident, written, logger)
        if self._config.on_nonfinite == "stop":
            # The step is not counted yet, so the checkpoint contains the state before the step.
            raise self._stopped(state, incident, written, random)
        self.length += 1
        most = self._config.spikes.max_steps
        if self.length >= most:
            raise RunStopped(
                ExitCode.UNSTABLE,
                f"the loss or gradient norm was not finite in {self.length} consecutive steps up to batch {number} "
                f"(spikes.max_steps: {most}): lower optimizer.lr, or inspect the batches",
            )

    def _rows(self, number: int) -> dict[str, list[int]]:
        """Return the row ids of this rank by stream."""
        size = self._plan.global_batch_size // dist.get_world_size()
        start = dist.get_global_rank() * size
        s_N, id_N = self._plan.rows(number, start, start + size)
        return {
            name: id_N[s_N == place].tolist() for place, name in enumerate(self._plan.names) if (s_N == place).any()
        }

    def _report(self, incident: Incident, written: Path | str, logger: Logger) -> None:
        message = (
            f"the loss or gradient norm of batch {incident.batch} is not finite: {'; '.join(_findings(incident))}. "
            "The gradients of this batch are dropped"
        )
        if isinstance(written, Path):
            message += f"; the batch is saved in {written}; recompute it with: {replay_command(written)}"
        else:
            message += f"; the batch is not saved: {written}"
        self._events.report(
            "nonfinite",
            incident.batch,
            message,
            logger=logger,
            losses=[part.loss for part in incident.ranks],
            gradients=[list(part.gradients[:_SHOWN]) for part in incident.ranks],
            rows=[dict(part.rows) for part in incident.ranks],
            incident=str(written) if isinstance(written, Path) else None,
        )

    def _stopped(self, state: State, incident: Incident, written: Path | str, random: Mapping[str, Any]) -> RunStopped:
        saved, why = None, "there is no save_folder"
        if self._saver is not None:
            try:
                saved, why = self._saver.save_now(state, random=random), "the checkpoint could not be written"
            except (ConfigError, DataError, RunStopped) as error:  # every rank raises the same error
                why = str(error)
        lines = [f"the loss or gradient norm of batch {incident.batch} is not finite (on_nonfinite: stop)"]
        lines.append(
            f"the state before this batch is in {saved}"
            if saved
            else f"the state before this batch is not saved: {why}"
        )
        if isinstance(written, Path):
            lines.append(f"to recompute this batch, run: {replay_command(written)}")
        lines.append("to continue without this batch, run the same command with autoresume=true on_nonfinite=skip")
        return RunStopped(ExitCode.UNSTABLE, "\n  ".join(lines))


def _findings(incident: Incident) -> Iterator[str]:
    """Describe the values that are not finite, with their ranks, and the rows of these ranks."""
    losses: dict[str, list[int]] = {}
    for rank, part in enumerate(incident.ranks):
        loss = float.fromhex(part.loss)
        if not math.isfinite(loss):
            losses.setdefault(str(loss), []).append(rank)
    for loss, ranks in losses.items():
        yield f"the loss is {loss} on {_ranks(ranks, len(incident.ranks))}"
    on_ranks = [rank for rank, part in enumerate(incident.ranks) if part.gradients]
    if on_ranks:
        first = incident.ranks[on_ranks[0]].gradients[0]
        n_params = len({name for part in incident.ranks for name in part.gradients})
        more = f" and of {n_params - 1} more parameters" if n_params > 1 else ""
        yield f"the gradient of {first}{more} is not finite on {_ranks(on_ranks, len(incident.ranks))}"
    if not losses and not on_ranks:
        yield "the norm of all gradients is infinite"
    blamed = [rank for ranks in losses.values() for rank in ranks] or range(len(incident.ranks))
    rows: dict[str, list[int]] = {}
    for rank in sorted(blamed):
        for stream, ids in incident.ranks[rank].rows.items():
            rows.setdefault(stream, []).extend(ids)
    yield "the rows are " + ", ".join(_some_rows(stream, ids) for stream, ids in rows.items())


def _ranks(ranks: Sequence[int], n_ranks: int) -> str:
    if len(ranks) == n_ranks:
        return "all ranks" if n_ranks > 1 else "rank 0"
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _some_rows(stream: str, ids: Sequence[int]) -> str:
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return f"{' '.join(map(str, ids[:_SHOWN]))}{more}{f' of stream {stream}' if stream else ''}"
