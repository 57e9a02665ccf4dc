"""The charts of the page as Vega-Lite specifications that contain their data, and the histograms that they show."""

from itertools import pairwise
from typing import Any

import numpy as np

from data.inspection.page.source import InspectedSource
from data.inspection.planned_shares import Curves
from data.mixing.row_plan import RowPlan
from data.pages.charts import histogram
from data.pages.palette import COLORS

LENGTH_BINS, FILL_BINS = 30, 20
"""Maximum number of bins."""
Bins = list[tuple[float, float, int]]
"""(low, high, count) for each bin of a histogram."""


def length_bins(lengths: np.ndarray) -> Bins:
    """The first and last length of each bin, and its number of documents. `lengths[n]` is the number of documents with
    n tokens. The bins have equal widths on a logarithmic axis, except that their edges are rounded to integers."""
    present = np.flatnonzero(lengths)
    if not len(present):
        return []
    first, end = max(int(present[0]), 1), int(present[-1]) + 1
    edges = np.unique(np.rint(np.geomspace(first, end, LENGTH_BINS + 1)).astype(int)).tolist()
    return [(low, high - 1, int(lengths[low:high].sum())) for low, high in pairwise(edges)]


def fill_bins(row_tokens: np.ndarray) -> Bins:
    """The shares of the positions that contain tokens, and the number of rows, in bins of equal width."""
    max_seq_len = len(row_tokens) - 1
    number = np.minimum(np.arange(max_seq_len + 1) * FILL_BINS // max_seq_len, FILL_BINS - 1)
    counts = np.bincount(number, weights=row_tokens, minlength=FILL_BINS).astype(int).tolist()
    return [(n / FILL_BINS, (n + 1) / FILL_BINS, count) for n, count in enumerate(counts)]


def length_chart(source: InspectedSource) -> dict[str, Any]:
    found = [(low, high + 1, f"{low:,} to {high:,}", count) for low, high, count in length_bins(source.survey.lengths)]
    scale = {"type": "log", "base": 2, "nice": False}
    return histogram(f"{source.name}: lengths of the documents", found, "tokens per document", "documents", scale, ",d")


def fill_chart(source: InspectedSource) -> dict[str, Any]:
    found = [(low, high, f"{low:.0%} to {high:.0%}", n) for low, high, n in fill_bins(source.survey.row_tokens)]
    scale = {"domain": [0, 1], "nice": False}
    return histogram(
        f"{source.name}: fill of the rows", found, "share of the positions with tokens", "rows", scale, "%"
    )


def mixture_chart(plan: RowPlan, drawn: Curves, total: int) -> dict[str, Any]:
    """Each stream's planned share of the tokens over the run, as stacked areas. Dashed lines are the starts of
    stages."""
    names = [name or "train" for name in plan.names]
    # A boundary between stages has two points. The second is shifted so that the areas have a step there.
    batches = drawn.batches + np.append(0.0, np.diff(drawn.batches) == 0) * total * 1e-6
    values = [
        {"batch": batch, "stream": name, "share": share}
        for batch, shares in zip(batches.tolist(), drawn.shares_PS.tolist(), strict=True)
        for name, share in zip(names, shares, strict=True)
    ]
    stages = [{"batch": first, "name": name} for name, first, _ in plan.stages() if first < total and name]
    legend = {"orient": "top", "title": None, "labelLimit": 220}
    x = {"field": "batch", "type": "quantitative", "scale": {"domain": [0, total], "nice": False}}
    return {
        "description": "Planned share of the tokens of each stream",
        "height": 240,
        "width": "container",
        "layer": [
            {
                "data": {"values": values},
                "mark": {"type": "area", "opacity": 0.85},
                "encoding": {
                    "x": {**x, "title": "batch", "axis": {"format": ",.10~g", "grid": False}},
                    "y": {
                        "field": "share",
                        "type": "quantitative",
                        "stack": "zero",
                        "scale": {"domain": [0, 1]},
                        "axis": {"format": "%"},
                        "title": None,
                    },
                    "color": {
                        "field": "stream",
                        "type": "nominal",
                        "sort": names,
                        "legend": legend,
                        "scale": {"domain": names, "range": [COLORS[n % len(COLORS)] for n in range(len(names))]},
                    },
                    "tooltip": [
                        {"field": "stream", "type": "nominal", "title": "stream"},
                    ],
                },
            },
            {
                "data": {"values": stages},
                "mark": {"type": "rule", "strokeDash": [4, 3], "color": "#000000", "opacity": 0.6},
                "encoding": {"x": x},
            },
            {
                "data": {"values": stages},
                "mark": {"type": "text", "align": "left", "baseline": "bottom", "fontSize": 11, "color": "#888888"},
                "encoding": {"x": x, "y": {"value": -3}, "text": {"field": "name"}},
            },
        ],
    }
