"""Flips random bits of random files of a run's checkpoints, and resumes the run."""

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from scripts.bench.faults.damage import flip_bit
from scripts.bench.faults.runs import FELL_BACK, REFUSED, SAME, Lab

GOOD = (FELL_BACK, REFUSED, SAME)
"""Accepted outcomes: an error that contains the name of the file, or the same model as without the flipped bit."""


def flips(lab: Lab, count: int) -> Iterator[tuple[str, str]]:
    """Flip `count` bits, each in a copy of a run, and yield the kind of the file and the outcome. Runs with one rank
    and runs with two ranks alternate."""
    for number in range(count):
        draw, ranks = random.Random(f"flip {number}"), number % 2 + 1
        copy = lab.copy(ranks)
        file = draw.choice(sorted(path for path in copy.glob("ep*/*") if path.is_file()))
        kind = _kind(file, copy)
        flip_bit(file, draw)
        seen = lab.outcome(lab.resume(copy, ranks=ranks), copy, file.parent.name, file.name, ranks=ranks)
        yield kind, seen


def table(outcomes: Counter[tuple[str, str]]) -> list[dict[str, str]]:
    """Return the table of outcomes, with a row for each kind of file and a column for each outcome."""
    kinds, seen = sorted({kind for kind, _ in outcomes}), sorted({outcome for _, outcome in outcomes})
    return [{"bit in": kind, **{name: str(outcomes[kind, name]) for name in seen}} for kind in kinds]


def _kind(file: Path, run: Path) -> str:
    newest = max(run.glob("ep*"), key=lambda path: int(path.name.rpartition("ba")[2]))
    name = "shard" if file.suffix == ".distcp" else file.name
    return f"{name} of {'the newest' if file.parent == newest else 'an older'} checkpoint"
