"""Which ranks the others wait for, as their heartbeats tell it."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class Beat:
    """What a rank publishes about itself."""

    number: int
    section: str
    batch: int
    """Batches that are done."""
    marks: int
    """See sections.Place."""
    age: float
    """Seconds in the section."""
    overdue: bool
    """The section's deadline has passed."""
    function: str
    """Innermost function of the main thread; empty while the rank makes progress."""
    waits: bool
    """In a collective."""
    left: bool = False
    """The rank has ended by itself."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str | bytes) -> "Beat":
        return Beat(**json.loads(text))

    def __str__(self) -> str:
        if self.left:
            return f"has ended after batch {self.batch}"
        at = f", at {self.function}" if self.function else ""
        return f"in {IN_WORDS[self.section]} after batch {self.batch} for {self.age:.0f} s{at}"


IN_WORDS = {
    "setup": "set-up",
    "step": "the step",
    "data": "waiting for its data",
    "evaluation": "an evaluation",
    "save": "saving a checkpoint",
    "send": "saving or sending a checkpoint",
    "generate": "generating texts",
    "untimed": "an export or another section without deadline",
}
"""By the values of Section."""


def laggards(beats: Mapping[int, Beat], silent: Collection[int]) -> list[int]:
    """The ranks without a heartbeat; or else those that have come less far than the others; or else, where all have
    come equally far, those that do not wait for others. None where all of them do, or none."""
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
