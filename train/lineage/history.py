"""Which batches are part of a run's weights, according to record.jsonl.

A batch is drawn by the run, but is not part of the weights, if its step was skipped (the loss or a gradient was not
finite, or the loss had a spike), or if a later rollback restored the weights of a checkpoint before it. If a run
resumes from a checkpoint, the batches after this checkpoint are drawn again, and only the later attempt counts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.base.errors import DataError
from data.lineage.batches import Batches
from train.checkpoint.save_folder import RECORD, named_batch


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The batches that are part of some weights."""

    batches: Batches
    plan: Mapping[str, Any]
    """The plan of the rows of these batches, in the format of the data state in checkpoints."""


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """The weights of a checkpoint were restored before the step of a batch."""

    batch: int
    checkpoint: str
    undone: Batches
    """The batches that were part of the weights before, but are not part of the weights of the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class History:
    """What a run did with its batches. Batches are numbered from 0."""

    n_batches: int
    """Number of batches that the run has completed."""
    weights: Trained
    """The batches that are part of the newest weights."""
    first_batch: int
    """The batch at which the record begins. If it is not 0, the run continued from the checkpoint of another run."""
    skipped: frozenset[int]
    rollbacks: tuple[Rollback, ...]
    moments: tuple[tuple[int, Batches, int], ...]
    """`(n, batches, since)`: the weights after n batches, and after later batches until the next moment, consist of
    these batches and of all batches from `since` on."""
    saved: Mapping[int, Trained]
    """Number of batches in the name of a checkpoint -> the batches that are part of its weights. The record has an
    entry for each checkpoint that was saved, also for those that were deleted later."""

    def after(self, n_batches: int) -> Trained:
        """The weights after this number of batches, in the attempt that led to the newest weights."""
        _, batches, since = next(moment for moment in reversed(self.moments) if moment[0] <= n_batches)
        return Trained(batches=batches.followed_by(since, n_batches), plan=self.weights.plan)

    def status(self, batch: int) -> str:
        """`trained`, `skipped`, or `undone by the rollback at step N`, where steps are numbered from 1."""
        if batch in self.skipped:
            return "skipped"
        for rollback in self.rollbacks:
            if any(first <= batch < stop for first, stop in rollback.undone.ranges):
                return f"undone by the rollback at step {rollback.batch + 1}"
        return "trained"


@dataclass
class _Attempt:
    """The state of the run at one line of the record."""

    plan: Mapping[str, Any] = field(default_factory=dict)
    trained: Batches = field(default_factory=Batches)
    """The batches before `since` that are part of the weights."""
    since: int = 0
    """All batches from this batch to the current batch are part of the weights."""
    skipped: list[int] = field(default_factory=list)
    rollbacks: list[Rollback] = field(default_factory=list)
    moments: list[tuple[int, Batches, int]] = field(default_factory=list)
    """See History.moments."""

    def change(self, batch: int, trained: Batches, since: int) -> None:
        """Note that the weights after the step of this batch no longer consist of all batches so far."""
        self.trained, self.since = trained, since
        self.moments.append((batch + 1, trained, since))

    def at(self, batch: int) -> Batches:
        """The batches that are part of the weights before the batch, if nothing happens until then."""
        return self.trained.followed_by(self.since, batch)


def read_history(lines: Iterable[Mapping[str, Any]], n_batches: int) -> History:
    """Read the lines of record.jsonl. n_batches: number of batches that the newest start has completed.

    Raises DataError if the record has no start line, if an earlier version wrote it, or if a line is missing.
    """
    now, saved, first_batch = _Attempt(), dict[int, Trained](), None
    for line in lines:
        batch, event = line["batch"], line.get("event")
        if event == "start":
            first_batch = batch if first_batch is None else first_batch
            now = _started(now, line, saved)
        elif event == "rollback":
            _roll_back(now, batch, str(line.get("checkpoint")), saved)
        elif line.get("skipped") is True:
            now.change(batch, now.at(batch), batch + 1)
            now.skipped.append(batch)
        elif event is None and isinstance(line.get("rows"), Mapping):
            saved[batch] = Trained(batches=now.at(batch), plan=now.plan)
    if first_batch is None:
        raise DataError(f"{RECORD} has no line for the start of the run, so it is not known what the run did")
    return History(
        n_batches=n_batches,
        weights=Trained(batches=now.at(n_batches), plan=now.plan),
        first_batch=first_batch,
        skipped=frozenset(now.skipped),
        rollbacks=tuple(now.rollbacks),
        moments=tuple(now.moments),
        saved=saved,
    )


def _started(before: _Attempt, line: Mapping[str, Any], saved: Mapping[int, Trained]) -> _Attempt:
    """The state at the start of a process, which resumes from a checkpoint or begins at the line's batch."""
    batch, plan = line["batch"], line.get("data_plan")
    if not isinstance(plan, Mapping):
        raise DataError(
            f"{RECORD} does not contain the run's data plan, because an earlier version started the run at step "
            f"{batch + 1}: only runs that this version starts can be traced"
        )
    trained = Batches()
    if batch in saved:
        trained = saved[batch].batches
    elif before.plan and before.since <= batch:  # a process can be killed after a save, but before it adds the line
        trained = before.at(batch)
    elif before.plan and batch:
        raise DataError(f"{RECORD} has no line for the checkpoint at step {batch}, from which the run resumed")
    return _Attempt(
        plan=plan,
        trained=trained,
        since=batch,
        skipped=[each for each in before.skipped if each < batch],
        rollbacks=[each for each in before.rollbacks if each.batch < batch],
        moments=[*(moment for moment in before.moments if moment[0] < batch), (batch, trained, batch)],
    )


def _roll_back(now: _Attempt, batch: int, checkpoint: str, saved: Mapping[int, Trained]) -> None:
    number = named_batch(Path(checkpoint))
    if number is None or number not in saved:
        raise DataError(
            f"{RECORD} has no line for the checkpoint {checkpoint}, whose weights were restored at step {batch + 1}"
        )
    undone = now.at(batch).without(saved[number].batches)
    now.change(batch, saved[number].batches, batch)
    now.rollbacks.append(Rollback(batch=batch, checkpoint=checkpoint, undone=undone))
