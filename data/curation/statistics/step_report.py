"""The report of a step, computed from its summary."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from data.curation.base.report import CUT, SHOWN_CHARACTERS, Counts, Flow, Histogram, Sample, StepReport, shortened
from data.curation.base.step import Threshold
from data.curation.statistics.places import place_text
from data.curation.statistics.summary import MAX_REASONS, Summary

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

MOST_CHARACTERS = 1 << 20
"""Number of characters of a changed document in which the first change is searched."""
_CONTEXT = 200
"""Number of characters that a sample shows before the first change."""
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


def with_samples(
    report: StepReport,
    summary: Summary,
    result: "DataFrame",
    before: "DataFrame | None",
    *,
    shows_originals: bool = True,
) -> StepReport:
    """Add samples of removed, kept and changed documents.

    before: the documents before the step; None for step 0. With `shows_originals`, samples of changed documents also
    show the text before the change.
    """
    shown = list(report.reasons)[:MAX_REASONS]
    removed = [id for reason in shown for _, id in summary.samples[reason]]
    kept = [id for _, id in summary.samples.get(None, [])]
    changed = [id for _, id in summary.changed_samples]
    rows = _rows(result, [*removed, *kept])
    others = {row["other"] for row in rows.values() if row["other"] is not None}
    rows |= _rows(result, [id for id in others if id not in rows])
    new = _rows(result, changed, MOST_CHARACTERS)
    old = {} if before is None else _rows(before, changed, MOST_CHARACTERS)
    return replace(
        report,
        removed=[_sample(rows[id], rows.get(rows[id]["other"])) for id in removed],
        kept=[_sample(rows[id], None) for id in kept],
        changed=[_changed(new[id], old[id]["text"], shows_originals) for id in changed if id in old],
    )


def with_histograms(report: StepReport, summary: Summary, thresholds: Sequence[Threshold]) -> StepReport:
    """Add the histogram of each score that has a threshold."""
    kept = np.concatenate(summary.kept) if summary.kept else np.zeros(0, dtype=bool)
    by_score: dict[str, list[Threshold]] = {}
    for threshold in thresholds:
        by_score.setdefault(threshold.score, []).append(threshold)
    drawn = [_histogram(_combined(of_score), summary, kept) for of_score in by_score.values()]
    return replace(report, histograms=[each for each in drawn if each is not None])


def _combined(thresholds: Sequence[Threshold]) -> Threshold:
    """One threshold with the limits of several thresholds of the same score."""
    mins = [threshold.min for threshold in thresholds if threshold.min is not None]
    maxs = [threshold.max for threshold in thresholds if threshold.max is not None]
    return Threshold(
        score=thresholds[0].score,
        key=", ".join(threshold.key for threshold in thresholds),
        min=max(mins) if mins else None,
        max=min(maxs) if maxs else None,
    )


def _rows(documents: "DataFrame", ids: Sequence[int], n_characters: int = SHOWN_CHARACTERS + 1) -> dict[int, Any]:
    """The documents with these ids. Texts are cut after n_characters."""
    from pyspark.sql import functions as F

    if not ids:
        return {}
    text = F.substring("text", 1, n_characters).alias("text")
    rest = [name for name in documents.columns if name not in ("text", "scores")]
    return {row["id"]: row for row in documents.where(F.col("id").isin(list(ids))).select(text, *rest).collect()}


def _sample(row: Any, other: Any) -> Sample:
    return Sample(
        place=_place(row),
        text=shortened(row["text"]),
        reason=row["reason"],
        detail=row["detail"],
        other_place=None if other is None else _place(other),
        other_text=None if other is None else shortened(other["text"]),
    )


def _changed(row: Any, before: str, shows_original: bool) -> Sample:
    """A sample that begins shortly before the first change."""
    pairs = enumerate(zip(before, row["text"], strict=False))
    start = max(next((index for index, (old, new) in pairs if old != new), 0) - _CONTEXT, 0)
    cut = CUT.strip() + " " if start else ""
    return Sample(
        place=_place(row),
        text=cut + shortened(row["text"][start:]),
        other_text=cut + shortened(before[start:]) if shows_original else None,
    )


def _place(row: Any) -> str:
    return place_text(row["source"], row["file"], row["position"])


def _histogram(threshold: Threshold, summary: Summary, kept: np.ndarray) -> Histogram | None:
    values = np.concatenate(summary.scores[threshold.score]) if summary.scores.get(threshold.score) else kept[:0]
    is_known = np.isfinite(values)
    values, kept = values[is_known], kept[is_known]
    if not len(values):
        return None
    low, high = np.percentile(values, _INNER)
    # A limit far from all scores is not in the histogram, because it would leave no space for the scores.
    span = max(high - low, 1e-9)
    near = [each for each in (threshold.min, threshold.max) if each is not None and low - span <= each <= high + span]
    low, high = min([low, *near]), max([high, *near])
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
