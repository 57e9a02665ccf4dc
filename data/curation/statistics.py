"""The report of a step, computed from its summary."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from data.curation.base.report import Counts, Flow, Histogram, Sample, StepReport
from data.curation.base.step import Threshold
from data.curation.places import place_text
from data.curation.summary import MAX_REASONS, Summary

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

SHOWN = 2000
"""Number of characters of a text in a sample."""
BINS = 40
"""Number of bins of a histogram."""
_INNER = (0.5, 99.5)
"""The percentiles between which a histogram has its edges, so that a few extreme values do not determine its scale."""


def with_counts(report: StepReport, summary: Summary, before: Mapping[str, Counts] | None) -> StepReport:
    """Add counts. before: the documents before the step, by source; None: all documents of the summary."""
    names = list(before) if before is not None else sorted({source for source, _ in summary.counts})
    flows, reasons = {}, dict[str, Counts]()
    for name in names:
        of_source = {reason: counts for (source, reason), counts in summary.counts.items() if source == name}
        flows[name] = Flow(
            before=sum(of_source.values(), Counts()) if before is None else before[name],
            after=of_source.get(None, Counts()),
            changed=summary.changed[name],
        )
    for (_, reason), counts in summary.counts.items():
        if reason is not None:
            reasons[reason] = reasons.get(reason, Counts()) + counts
    ordered = sorted(reasons.items(), key=lambda item: (-item[1].documents, item[0]))
    return replace(report, flows=flows, reasons=dict(ordered))


def with_samples(report: StepReport, summary: Summary, result: "DataFrame", before: "DataFrame | None") -> StepReport:
    """Add samples of removed, kept and changed documents. before: the documents before the step."""
    shown = list(report.reasons)[:MAX_REASONS]
    removed = [id for reason in shown for _, id in summary.samples[reason]]
    kept = [id for _, id in summary.samples.get(None, [])]
    changed = [id for _, id in summary.changed_samples]
    rows = _rows(result, [*removed, *kept, *changed])
    others = {row["other"] for row in rows.values() if row["other"] is not None}
    rows |= _rows(result, [id for id in others if id not in rows])
    old = _rows(before, changed) if before is not None else {}
    return replace(
        report,
        removed=[_sample(rows[id], rows.get(rows[id]["other"])) for id in removed],
        kept=[_sample(rows[id], None) for id in kept],
        changed=[_sample(rows[id], old[id]) for id in changed if id in old],
    )


def with_histograms(report: StepReport, summary: Summary, thresholds: Sequence[Threshold]) -> StepReport:
    """Add the histogram of each score that has a threshold."""
    kept = np.concatenate(summary.kept) if summary.kept else np.zeros(0, dtype=bool)
    drawn = [_histogram(threshold, summary, kept) for threshold in thresholds]
    return replace(report, histograms=[each for each in drawn if each is not None])


def _rows(documents: "DataFrame", ids: Sequence[int]) -> dict[int, Any]:
    """The documents with these ids, with shortened texts."""
    from pyspark.sql import functions as F

    if not ids:
        return {}
    text = F.substring("text", 1, SHOWN).alias("text")
    rest = [name for name in documents.columns if name not in ("text", "scores")]
    return {row["id"]: row for row in documents.where(F.col("id").isin(list(ids))).select(text, *rest).collect()}


def _sample(row: Any, other: Any) -> Sample:
    return Sample(
        place=_place(row),
        text=row["text"],
        reason=row["reason"],
        detail=row["detail"],
        other_place=None if other is None else _place(other),
        other_text=None if other is None else other["text"],
    )


def _place(row: Any) -> str:
    return place_text(row["source"], row["file"], row["position"])


def _histogram(threshold: Threshold, summary: Summary, kept: np.ndarray) -> Histogram | None:
    values = np.concatenate(summary.scores[threshold.score]) if summary.scores.get(threshold.score) else kept[:0]
    is_known = np.isfinite(values)
    values, kept = values[is_known], kept[is_known]
    if not len(values):
        return None
    limits = [limit for limit in (threshold.min, threshold.max) if limit is not None]
    low, high = np.percentile(values, _INNER)
    low, high = min(low, *limits) if limits else low, max(high, *limits) if limits else high
    edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
    inside = np.clip(values, edges[0], edges[-1])
    return Histogram(
        score=threshold.score,
        edges=edges.tolist(),
        kept=np.histogram(inside[kept], edges)[0].tolist(),
        removed=np.histogram(inside[~kept], edges)[0].tolist(),
        n_documents=len(values),
        key=threshold.key,
        min=threshold.min,
        max=threshold.max,
    )
