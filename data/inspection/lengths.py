"""Describe the lengths of documents with a summary, a histogram in text, and a histogram in a PNG file."""

from pathlib import Path
from typing import Any

import numpy as np

from data.inspection.survey import Survey

BINS = 20


def summary_lines(own: Survey) -> list[str]:
    n, share = own.n_documents, own.trained_tokens / max(own.tokens, 1)
    read = f"{own.n_rows:,} of {own.n_all_rows:,}" if own.n_rows < own.n_all_rows else f"{own.n_rows:,}"
    counts = f"{read} rows, {n:,} documents, {own.tokens:,} tokens"
    ends = np.cumsum(own.lengths)
    median, longest = int(np.searchsorted(ends, n / 2)), int(np.searchsorted(ends, n))
    return [
        f"{own.name}: {counts}, {own.trained_tokens:,} of them trained on ({share:.1%})",
        f"tokens per document: mean {own.tokens / max(n, 1):.1f}, median {median}, longest {longest}",
    ]


def histogram(lengths: np.ndarray) -> list[tuple[int, int, int]]:
    """`(shortest, longest, documents)` for each of at most BINS bins of equal width. `lengths[n]` is the number of
    documents with n tokens."""
    there = np.flatnonzero(lengths)
    shortest, longest = int(there.min(initial=len(lengths))), int(there.max(initial=0))
    width = max(-(-(longest - shortest + 1) // BINS), 1)
    starts = range(shortest, longest + 1, width)
    return [(start, min(start + width - 1, longest), int(lengths[start : start + width].sum())) for start in starts]


def histogram_lines(lengths: np.ndarray, columns: int = 50) -> list[str]:
    bins = histogram(lengths)
    most, total = max((count for *_, count in bins), default=1), max(int(lengths.sum()), 1)
    digits = len(str(bins[-1][1])) if bins else 1
    return [
        f"  {start:>{digits}} to {end:>{digits}}  {'█' * round(columns * count / most):<{columns}}  "
        f"{count:,} ({count / total:.1%})"
        for start, end, count in bins
    ]


def draw_histogram(surveys: list[Survey], path: Path) -> None:
    """Write a PNG with a histogram of the document lengths of each source."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.5 * len(surveys)), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(len(surveys), 1, squeeze=False)
    for axis, own in zip(axes[:, 0], surveys, strict=True):
        bins = histogram(own.lengths)
        axis.bar(
            [start for start, *_ in bins],
            [count for *_, count in bins],
            width=[end - start + 1 for start, end, _ in bins],
            align="edge",
        )
        axis.set(title=own.name, xlabel="tokens", ylabel="documents")
    figure.savefig(path, format="png")
