"""Finds the ranks that the other ranks wait for, from the heartbeats of all ranks."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """The heartbeat that a rank publishes about itself."""

    number: int
    section: str
    batch: int
    """Number of completed batches."""
    marks: int
    """See sections.Place."""
    age: float
    """Seconds since the rank entered the section."""
    overdue: bool
    """Whether the section's deadline has passed."""
    function: str
    """Innermost function of the main thread; empty while the rank makes progress."""
    waits: bool
    """Whether the rank waits in a collective."""
    left: bool = False
    """Whether the rank has announced that it ends."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str | bytes) -> "Heartbeat":
        return Heartbeat(**json.loads(text))

    def __str__(self) -> str:
        if self.left:
            return f"has ended after batch {self.batch}"
        at = f", at {self.function}" if self.function else ""
        return f"in the same section for {self.age:.0f} s after batch {self.batch}: {SECTION_NAMES[self.section]}{at}"


SECTION_NAMES = {
    "setup": "set-up",
    "step": "the step",
    "data": "waiting for its data",
    "evaluation": "an evaluation",
    "save": "saving a checkpoint",
    "send": "saving or uploading a checkpoint",
    "generate": "generating texts",
    "untimed": "an export or another section without a deadline",
}
"""Names of the sections in messages, by the values of Section."""


def stragglers(beats: Mapping[int, Heartbeat], silent: Collection[int]) -> list[int]:
    """Return the ranks that the other ranks wait for.

    The result is the first of these lists that is not empty: the ranks without a heartbeat; the ranks that have ended;
    the ranks with the least progress; the ranks outside a collective. The result is empty if no rank differs from the
    others."""
    if silent:
        return sorted(silent)
    if left := [rank for rank, beat in beats.items() if beat.left]:
        return sorted(left)
    for progress in ({rank: beat.marks for rank, beat in beats.items()}, {r: int(b.waits) for r, b in beats.items()}):
        least = min(progress.values(), default=0)
        behind = sorted(rank for rank, value in progress.items() if value == least)
        if len(behind) < len(progress):
            return behind
    return []
