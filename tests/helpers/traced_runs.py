"""Random runs with skipped steps, rollbacks and resumes: the record of the run, and what each checkpoint was trained on
according to a slow simulation."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers.curriculum import Shape
from tests.helpers.documented_folder import Documented, write_documented
from tests.helpers.replayed_run import Process, Replayed, random_run
from train.checkpoint.storage.manifest import MANIFEST

Batch = tuple[int, int]
"""The number of a process, and a batch that it trained."""


@dataclass
class Simulated:
    """A run. `weights` and `saved` contain each batch that is part of the weights, with the process that trained it."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    weights: frozenset[Batch] = frozenset()
    saved: dict[int, frozenset[Batch]] = field(default_factory=dict)
    after: dict[int, frozenset[Batch]] = field(default_factory=dict)
    """The weights after each batch of the newest attempt."""
    skipped: set[int] = field(default_factory=set)
    n_batches: int = 0

    def note(self, batch: int, **values: Any) -> None:
        self.lines.append({"batch": batch, "time": len(self.lines), **values})


def simulate(replayed: Replayed, seed: int, *, interval: int = 3, data: Any = None) -> Simulated:
    """Train the batches of each process one by one. A tenth of the steps are skipped, and sometimes a checkpoint's
    weights are restored. Each process resumes from a checkpoint, so its first batch must have one."""
    rng, run = np.random.default_rng(seed), Simulated()
    begins = {process.begin for process in replayed.processes}
    for number, process in enumerate(replayed.processes):
        run.weights = run.saved.get(process.begin, frozenset())
        run.skipped = {batch for batch in run.skipped if batch < process.begin}
        run.after = {batch: weights for batch, weights in run.after.items() if batch < process.begin}
        run.note(process.begin, event="start", run_name="traced", data_plan=process.plan, data=data)
        for batch in range(process.begin, process.end):
            run.after[batch] = run.weights
            _step(run, number, batch, float(rng.random()))
            if (batch + 1) % interval == 0 or batch + 1 in begins:
                run.note(batch + 1, rows={}, tokens={})
                run.saved[batch + 1] = run.weights
                run.note(batch + 1, event="saved", path=f"ep0-ba{batch + 1}")
        run.n_batches = process.end
        run.after[process.end] = run.weights
        if number % 2 == 0:
            run.note(process.end, event="end", outcome="stopped")
        else:
            run.note(process.end, eval={})
    return run


def _step(run: Simulated, number: int, batch: int, draw: float) -> None:
    committed = [each for each in run.saved if each <= batch]
    if draw < 0.05 and committed:
        newest = max(committed)
        run.weights = run.saved[newest]
        run.note(batch, event="rollback", message="spike", checkpoint=f"ep0-ba{newest}")
        draw = 0.1
    if draw < 0.15:
        if draw > 0.1:
            run.note(batch, event="nonfinite", message="NaN")
        run.note(batch, skipped=True)
        run.skipped.add(batch)
    else:
        run.weights |= {(number, batch)}


@dataclass(frozen=True)
class Traced:
    """A run on disk: its save folder, its prepared rows, and the simulation."""

    folder: Path
    replayed: Replayed
    simulated: Simulated
    documented: Mapping[str, Documented]

    def rows(self, batches: frozenset[Batch]) -> list[tuple[int, str, int]]:
        """The batch, the stream and the row of each row of these batches."""
        return [
            (batch, stream, row)
            for number, batch in sorted(batches, key=lambda each: each[1])
            for stream, row in self.replayed.processes[number].rows[batch]
        ]

    def documents(self, stream: str, row: int) -> list[str]:
        """The documents of a row, as `PATH:POSITION`."""
        return [f"/in/{stream}/file{file}.jsonl:{position}" for file, position, _ in self.documented[stream].rows[row]]


def write_traced_run(folder: Path, seed: int, n_rows: Mapping[str, int], n_processes: int = 3) -> Traced:
    """Write the rows of each stream, record.jsonl, and empty checkpoints."""
    documented = {
        name: write_documented(folder / "rows" / name, n, seed=seed, prefix=f"/in/{name}") for name, n in n_rows.items()
    }
    shapes = {
        name: OnDisk(n, n * 400, name, shard_rows=5, sizes=documented[name].mds.shard_sizes)
        for name, n in n_rows.items()
    }
    replayed = random_run(seed, shapes, n_processes)
    streams = {name: {"folder": str(each.folder)} for name, each in documented.items()}
    simulated = simulate(replayed, seed, data={"train_loader": streams})
    save_folder = folder / "traced"
    save_folder.mkdir()
    text = "".join(f"{json.dumps(line)}\n" for line in simulated.lines)
    (save_folder / "record.jsonl").write_text(text)
    for batch in simulated.saved:
        checkpoint = save_folder / f"ep0-ba{batch}"
        checkpoint.mkdir()
        (checkpoint / MANIFEST).write_text("{}")
    return Traced(save_folder, replayed, simulated, documented)


@dataclass(frozen=True)
class OnDisk(Shape):
    """A stream with the shards of a folder."""

    sizes: Any = None

    @property
    def shard_sizes(self) -> np.ndarray:
        return self.sizes


__all__ = ["Process", "Simulated", "Traced", "simulate", "write_traced_run"]
