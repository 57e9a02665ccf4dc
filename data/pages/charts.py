"""Charts that several pages show, as Vega-Lite specifications that contain their data. assets/charts.js draws them."""

from collections.abc import Mapping, Sequence
from typing import Any

from data.pages.palette import COLORS


def chart(key: str, title: str, spec: Mapping[str, Any], *, wide: bool = False) -> dict[str, Any]:
    """A chart for the macro `charts` of assets/macros.html. The payload of the page must contain the specification
    under `charts` and this key."""
    return {"key": key, "title": title, "wide": wide, "spec": spec}


def histogram(
    title: str, bins: Sequence[tuple[float, float, str, int]], unit: str, what: str, scale: dict[str, Any], form: str
) -> dict[str, Any]:
    """A histogram of bins (low, high, name, count). `unit` is the title of the x axis, and `what` is counted."""
    total = sum(count for *_, count in bins)
    values = [
        {"low": low, "high": high, "bin": name, "count": count, "share": count / total}
        for low, high, name, count in bins
    ]
    return {
        "description": title,
        "height": 170,
        "width": "container",
        "data": {"values": values},
        "mark": {"type": "bar", "color": COLORS[0], "binSpacing": 1},
        "encoding": bins_encoding(unit, what, scale, form),
    }


def bins_encoding(unit: str, what: str, scale: dict[str, Any], form: str) -> dict[str, Any]:
    """The encoding of a histogram with the fields `low`, `high`, `bin`, `count` and `share`."""
    return {
        "x": {
            "field": "low",
            "type": "quantitative",
            "bin": {"binned": True},
            "scale": scale,
            "axis": {"format": form, "grid": False},
            "title": unit,
        },
        "x2": {"field": "high"},
        "y": {"field": "count", "type": "quantitative", "axis": {"format": "~s"}, "title": what},
        "tooltip": [
            {"field": "bin", "type": "nominal", "title": unit},
            {"field": "count", "type": "quantitative", "title": what, "format": ","},
            {"field": "share", "type": "quantitative", "title": "share", "format": ".1%"},
        ],
    }
