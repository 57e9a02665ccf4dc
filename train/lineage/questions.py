"""Questions about the documents of a run: which documents were in some steps, which steps and checkpoints saw some
documents, and how often each stream, file and license was seen. Steps are numbered from 1, as in metrics.jsonl."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from data.base.errors import ConfigError
from data.lineage.batches import Batches
from data.lineage.folder_documents import Document
from data.lineage.references import Reference, Wanted, find_documents
from data.lineage.run_rows import RunRows
from data.lineage.seen import FileSeen, files_seen
from train.lineage.history import Trained
from train.lineage.run import TracedRun


@dataclass(frozen=True, kw_only=True)
class RowOfStep:
    """A row of a step, and its documents as `PATH:POSITION`."""

    step: int
    status: str
    """`trained`, `skipped`, or that a rollback has undone the step."""
    stream: str
    row: int
    documents: list[str]


def rows_of_steps(run: TracedRun, first: int, last: int) -> Iterator[RowOfStep]:
    """The rows of the steps first..last, in the order of the global batch. Raises ConfigError for steps that the run
    has not completed, and for steps of the run from whose checkpoint this run continued."""
    history = run.history
    begin, end = history.first_batch + 1, history.n_batches
    if not begin <= first <= last <= end:
        raise ConfigError(
            f"--steps is {first}:{last}, but the run has completed the steps {begin} to {end}: specify steps in this "
            "range"
        )
    documents, rows = run.documents, run.rows(history.weights)
    for batch in range(first - 1, last):
        s_N, row_N = rows.rows(batch)
        for stream, row in zip(s_N.tolist(), row_N.tolist(), strict=True):
            folder = documents[rows.names[stream]]
            names = [folder.name_of(document) for document in folder.of_row(row)]
            status = history.status(batch)
            yield RowOfStep(step=batch + 1, status=status, stream=rows.names[stream], row=row, documents=names)


@dataclass(frozen=True, kw_only=True)
class Draw:
    """A step that drew a row."""

    step: int
    status: str
    stream: str
    row: int


@dataclass(frozen=True, kw_only=True)
class Found:
    """What is known about one reference."""

    reference: str
    documents: int
    """Number of documents that the reference refers to; 0 if none of them is in the rows of the run."""
    rows: int
    draws: list[Draw]

    @property
    def trained(self) -> list[int]:
        """The steps that trained on a document of this reference."""
        return sorted({draw.step for draw in self.draws if draw.status == "trained"})


@dataclass(frozen=True, kw_only=True)
class SeenBy:
    """How many of the references a checkpoint was trained on."""

    checkpoint: str
    """Path, or address in an object store."""
    step: int
    references: int


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The answer for a list of documents."""

    found: list[Found]
    checkpoints: list[SeenBy]

    @property
    def newest_without(self) -> SeenBy | None:
        """The newest checkpoint that was trained on none of the documents."""
        return next((each for each in reversed(self.checkpoints) if not each.references), None)


def trace(run: TracedRun, references: Sequence[Reference]) -> Trace:
    """Find the steps and the checkpoints that saw the documents. Raises ConfigError for an unknown file."""
    history = run.history
    places = _Places(run, find_documents(references, run.documents), len(references))
    stops = {id(run.rows(history.weights)): history.n_batches}
    for each in run.checkpoints:
        key = id(run.rows(each.trained))
        stops[key] = max(stops.get(key, 0), each.batch)
    # The draws are computed once for all weights with the same plan.
    draws = lru_cache(lambda rows: places.draws(rows, Batches.of(history.first_batch, stops[id(rows)])))
    found = [
        Found(reference=each.text, documents=places.documents[n], rows=len(places.rows[n]), draws=[])
        for n, each in enumerate(references)
    ]
    rows = run.rows(history.weights)
    now = draws(rows).of(Batches.of(history.first_batch, history.n_batches))
    for number, stream, row, batch in zip(*(values.tolist() for values in vars(now).values()), strict=True):
        status = history.status(batch)
        found[number].draws.append(Draw(step=batch + 1, status=status, stream=rows.names[stream], row=row))
    checkpoints = [
        SeenBy(
            checkpoint=each.place,
            step=each.batch,
            references=len(np.unique(draws(run.rows(each.trained)).of(each.trained.batches).number_M)),
        )
        for each in run.checkpoints
    ]
    return Trace(found=found, checkpoints=checkpoints)


@dataclass(frozen=True, eq=False)
class _Draws:
    """The draws of the wanted documents, sorted by batch; int64 [M] each."""

    number_M: np.ndarray
    """The index of the reference."""
    stream_M: np.ndarray
    row_M: np.ndarray
    batch_M: np.ndarray

    def of(self, batches: Batches) -> "_Draws":
        chosen = batches.contain(self.batch_M)
        return _Draws(*(values[chosen] for values in vars(self).values()))


class _Places:
    """The rows of the wanted documents."""

    def __init__(self, run: TracedRun, wanted: Sequence[Wanted], n_references: int) -> None:
        self.documents = [0] * n_references
        """For each reference, the number of its documents that are in the rows."""
        self.rows: list[set[tuple[str, int]]] = [set() for _ in range(n_references)]
        """For each reference, the streams and the rows of its documents."""
        for stream, folder in run.documents.items():
            of_stream = [each for each in wanted if each.stream == stream]
            found = set[tuple[int, Document]]()
            for index, document, row in folder.rows_of([(each.first, each.last) for each in of_stream]):
                number = of_stream[index].number
                found.add((number, document))
                self.rows[number].add((stream, row))
            for number, _ in found:
                self.documents[number] += 1

    def draws(self, rows: RunRows, batches: Batches) -> _Draws:
        """All draws of the rows in these batches."""
        parts = [np.empty((4, 0), dtype=np.int64)]
        for stream, name in enumerate(rows.names):
            pairs = [(row, number) for number, places in enumerate(self.rows) for where, row in places if where == name]
            row_N, number_N = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2).T
            index_M, batch_M = rows.batches_of(stream, row_N, batches)
            parts.append(np.stack([number_N[index_M], np.full_like(index_M, stream), row_N[index_M], batch_M]))
        every = np.concatenate(parts, axis=1)
        return _Draws(*every[:, np.lexsort((every[0], every[2], every[1], every[3]))])


@dataclass(frozen=True, kw_only=True)
class StreamSeen:
    """How often a stream was trained on."""

    stream: str
    rows: int
    """Number of times that a row was trained on."""
    epochs: float
    files: list[FileSeen]


def seen(run: TracedRun, until: int | None = None) -> list[StreamSeen]:
    """Count how often each stream and file was trained on in the newest weights or, with `until`, in the weights after
    this step. Raises ConfigError if the run has not completed this step."""
    trained = _weights_after(run, until)
    rows = run.rows(trained)
    drawn = rows.n_draws(trained.batches).tolist()
    return [
        StreamSeen(
            stream=name,
            rows=drawn[stream],
            epochs=drawn[stream] / rows.n_rows(stream),
            files=files_seen(run.documents[name], rows.times_drawn(stream, trained.batches)),
        )
        for stream, name in enumerate(rows.names)
    ]


def _weights_after(run: TracedRun, step: int | None) -> Trained:
    history = run.history
    if step is None or step == history.n_batches:
        return history.weights
    if not history.first_batch <= step <= history.n_batches:
        raise ConfigError(
            f"--until is {step}, but the run has completed the steps {history.first_batch + 1} to {history.n_batches}"
        )
    return history.after(step)


def by_license(streams: Sequence[StreamSeen]) -> dict[str, dict[str, Any]]:
    """Documents, pieces and tokens by license. The tokens are None if they are not known for every file."""
    sums: dict[str, dict[str, Any]] = {}
    for file in (file for stream in streams for file in stream.files):
        each = sums.setdefault(file.license or "unknown", {"documents": 0, "pieces": 0, "tokens": 0})
        each["documents"] += file.documents
        each["pieces"] += file.pieces
        each["tokens"] = None if each["tokens"] is None or file.tokens is None else each["tokens"] + file.tokens
    return sums
