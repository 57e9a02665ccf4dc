"""The summary of a step: counts, samples and scores, computed in one pass over the step's result.

Tasks summarize batches, and the driver merges their summaries. The result does not depend on how documents are divided
into batches.
"""

import pickle
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from data.base.hashing import splitmix64
from data.curation.base.report import Counts
from data.spark.executors import arrow_function

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

MAX_SAMPLES = 3
"""Number of sampled documents per reason, and of sampled documents whose text was changed."""
MAX_KEPT = 12
"""Number of sampled documents that are kept."""
MAX_REASONS = 20
"""Maximum number of reasons with samples."""
MAX_SCORED = 20_000
"""Approximate number of documents in histograms."""

Key = tuple[str, str | None]
"""The name of a source, and the reason for which documents were removed; None: kept documents."""


@dataclass
class Summary:
    """Counts and samples of documents."""

    counts: dict[Key, Counts] = field(default_factory=dict)
    changed: Counter[str] = field(default_factory=Counter)
    """Kept documents whose text was changed, by source."""
    samples: dict[str | None, list[tuple[int, int]]] = field(default_factory=dict)
    """Reason -> the `(hash, id)` pairs with the smallest hashes."""
    changed_samples: list[tuple[int, int]] = field(default_factory=list)
    scores: dict[str, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    """Score -> values of sampled documents, float64."""
    kept: list[np.ndarray] = field(default_factory=list)
    """Whether the sampled documents are kept, in the order of the values in `scores`."""

    def merge(self, other: "Summary") -> None:
        for key, counts in other.counts.items():
            self.counts[key] = self.counts.get(key, Counts()) + counts
        self.changed.update(other.changed)
        for reason, pairs in other.samples.items():
            n = MAX_KEPT if reason is None else MAX_SAMPLES
            self.samples[reason] = sorted([*self.samples.get(reason, []), *pairs])[:n]
        self.changed_samples = sorted([*self.changed_samples, *other.changed_samples])[:MAX_SAMPLES]
        for score, values in other.scores.items():
            self.scores[score] += values
        self.kept += other.kept


def summarize(result: "DataFrame", scores: Sequence[str], n_documents: int, seed: int) -> Summary:
    """The summary of a step's result. scores: the scores that are sampled. n_documents: number of documents."""
    from pyspark.sql import functions as F

    columns = ["id", "source", "reason", "changes", "n_tokens", F.octet_length("text").alias("n_bytes")]
    if scores:
        columns.append("scores")
    every = max(n_documents // MAX_SCORED, 1)
    task = arrow_function(summarize_batches, tuple(scores), every, seed)
    total = Summary()
    for row in result.select(*columns).mapInArrow(task, "summary binary").toLocalIterator():
        total.merge(pickle.loads(row["summary"]))
    return total


def summarize_batches(
    batches: Iterator[pa.RecordBatch], scores: Sequence[str], every: int, seed: int
) -> Iterator[pa.RecordBatch]:
    """The function of a task. The scores of about one in `every` documents are sampled."""
    total = Summary()
    for batch in batches:
        total.merge(_of_batch(batch, scores, every, seed))
    yield pa.RecordBatch.from_pydict({"summary": [pickle.dumps(total)]})


def hashes_of(ids: np.ndarray, seed: int) -> np.ndarray:
    """A hash of each id, uint64. Samples are the documents with the smallest hashes."""
    return splitmix64(ids.astype(np.uint64) ^ splitmix64(np.array([seed], dtype=np.uint64)))


def _of_batch(batch: pa.RecordBatch, scores: Sequence[str], every: int, seed: int) -> Summary:
    found = Summary()
    column = {name: batch.column(name) for name in batch.schema.names}
    ids = column["id"].to_numpy()
    hashes = hashes_of(ids, seed)
    changes = column["changes"].to_numpy()
    sources, reasons = column["source"].to_pylist(), column["reason"].to_pylist()
    tokens, n_bytes = column["n_tokens"].to_numpy(), column["n_bytes"].to_numpy()
    rows: dict[Key, list[int]] = defaultdict(list)
    for index, key in enumerate(zip(sources, reasons, strict=True)):
        rows[key].append(index)
    for (source, reason), indices in rows.items():
        at = np.array(indices)
        found.counts[source, reason] = Counts(
            documents=len(at), tokens=int(tokens[at].sum()), bytes=int(n_bytes[at].sum())
        )
        n = MAX_KEPT if reason is None else MAX_SAMPLES
        found.samples[reason] = sorted([*found.samples.get(reason, []), *_pairs(hashes, ids, at, n)])[:n]
        if reason is None:
            at = at[changes[at] > 0]
            found.changed[source] += len(at)
            changed = [*found.changed_samples, *_pairs(hashes, ids, at, MAX_SAMPLES)]
            found.changed_samples = sorted(changed)[:MAX_SAMPLES]
    if scores:
        _add_scores(found, batch, np.flatnonzero(hashes % np.uint64(every) == 0), scores)
    return found


def _add_scores(found: Summary, batch: pa.RecordBatch, at: np.ndarray, scores: Sequence[str]) -> None:
    rows = batch.column("scores").take(pa.array(at)).to_pylist(maps_as_pydicts="strict")
    for score in scores:
        found.scores[score].append(np.array([(row or {}).get(score, np.nan) for row in rows], dtype=np.float64))
    reasons = batch.column("reason").take(pa.array(at))
    found.kept.append(reasons.is_null().to_numpy(zero_copy_only=False))


def _pairs(hashes: np.ndarray, ids: np.ndarray, at: np.ndarray, n: int) -> list[tuple[int, int]]:
    at = at[np.argsort(hashes[at], kind="stable")[:n]]
    return list(zip(hashes[at].tolist(), ids[at].tolist(), strict=True))
