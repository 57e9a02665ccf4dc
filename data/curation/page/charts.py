"""The charts of the page as Vega-Lite specifications that contain their data."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data.base.durations import format_seconds
from data.base.sizes import format_bytes
from data.curation.base.report import Counts, CurationReport, Flow, Histogram
from data.curation.page.tables import bin_names, label, share, sources
from data.pages.charts import bins_encoding
from data.pages.palette import COLORS

OTHERS = "other sources"
_HEIGHT = 24
"""Height of a bar, in pixels."""
_ROOM = 1.28
"""Length of the x axis divided by the longest bar, so that there is room for the text after the bar."""
_TIMES = ((7200.0, 3600.0, "hours"), (120.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))
_SIZES = ((2.0**40, "tb"), (2.0**30, "gb"), (2.0**20, "mb"), (2.0**10, "kb"), (1.0, "bytes"))


def funnel_chart(report: CurationReport, what: str, count: Callable[[Counts], int]) -> dict[str, Any]:
    """A bar for each step with the documents or tokens after the step, divided by source. The text after the bar is the
    change by this step."""
    names = sources(report)
    shown = names if len(names) <= len(COLORS) else [*names[: len(COLORS) - 1], OTHERS]
    bars, ends = list[dict[str, Any]](), list[dict[str, Any]]()
    for step in report.steps:
        for name, flow in _merged(step.flows, shown).items():
            before, after = count(flow.before), count(flow.after)
            kept = share(after, before)
            bar = {"step": label(step), "source": name, "place": shown.index(name)}
            bars.append({**bar, "count": after, "before": before, "kept": kept})
        before, after = count(step.total().before), count(step.total().after)
        ends.append({"step": label(step), "end": after, "text": _change(before, after)})
    color = {
        "field": "source",
        "type": "nominal",
        "sort": shown,
        "legend": {"orient": "top", "title": None, "labelLimit": 120} if len(shown) > 1 else None,
        "scale": {"domain": shown, "range": [*COLORS[: len(shown)]]},
    }
    tooltip = [
        {"field": "step", "type": "nominal"},
        {"field": "source", "type": "nominal"},
        {"field": "before", "type": "quantitative", "title": f"{what} before", "format": ","},
        {"field": "count", "type": "quantitative", "title": f"{what} after", "format": ","},
        {"field": "kept", "type": "nominal"},
    ]
    order = {"field": "place", "type": "quantitative"}
    title = f"{what.capitalize()} after each step"
    return _bars(title, what, bars, ends, {"color": color, "order": order, "tooltip": tooltip})


def _merged(flows: Mapping[str, Flow], shown: Sequence[str]) -> dict[str, Flow]:
    """The flows of the sources that are shown. The others are added up."""
    merged = {name: flows[name] for name in shown if name in flows}
    others = [flow for name, flow in flows.items() if name not in shown]
    if others:
        empty = Counts()
        merged[OTHERS] = Flow(
            before=sum((flow.before for flow in others), empty), after=sum((flow.after for flow in others), empty)
        )
    return merged


def _change(before: int, after: int) -> str:
    """The change as a percentage; empty if there is none."""
    if before == after:
        return ""
    sign, part = ("−", before - after) if after < before else ("+", after - before)
    return f"{sign}{share(part, before)}"


def time_chart(report: CurationReport) -> dict[str, Any]:
    longest = max((step.seconds for step in report.steps), default=0.0)
    _, size, unit = next(each for each in _TIMES if longest >= each[0])
    values = [(label(step), step.seconds / size, format_seconds(step.seconds)) for step in report.steps]
    return _cost_chart("Time of each step", unit, values)


def speed_chart(report: CurationReport) -> dict[str, Any]:
    speeds = [(label(step), step.total().before.documents / step.seconds) for step in report.steps if step.seconds]
    return _cost_chart(
        "Documents per second", "documents per second", [(name, speed, f"{speed:,.0f}") for name, speed in speeds]
    )


def size_chart(report: CurationReport) -> dict[str, Any]:
    largest = max((step.bytes_on_disk for step in report.steps), default=0)
    size, unit = next((each for each in _SIZES if largest >= each[0]), _SIZES[-1])
    values = [(label(step), step.bytes_on_disk / size, format_bytes(step.bytes_on_disk)) for step in report.steps]
    return _cost_chart("Size on disk of each step", unit, values)


def _cost_chart(title: str, unit: str, values: Sequence[tuple[str, float, str]]) -> dict[str, Any]:
    bars = [{"step": name, "count": value, "text": text} for name, value, text in values]
    ends = [{"step": name, "end": value, "text": text} for name, value, text in values]
    tooltip = [{"field": "step", "type": "nominal"}, {"field": "text", "type": "nominal", "title": title}]
    return _bars(title, unit, bars, ends, {"color": {"value": COLORS[0]}, "tooltip": tooltip})


def _bars(
    title: str, unit: str, bars: list[dict[str, Any]], ends: list[dict[str, Any]], encoding: Mapping[str, Any]
) -> dict[str, Any]:
    """Horizontal bars: `count` by `step`, with `text` at `end`."""
    steps, longest = [each["step"] for each in ends], max((each["end"] for each in ends), default=0)
    y = {
        "field": "step",
        "type": "nominal",
        "sort": steps,
        "title": None,
        "axis": {"labelLimit": 150, "ticks": False, "domain": False, "labelPadding": 6},
    }
    x = {
        "type": "quantitative",
        "title": unit,
        "scale": {"domain": [0, longest * _ROOM or 1], "nice": False},
        "axis": {"format": _format(longest), "tickCount": 4},
    }
    return {
        "description": title,
        "height": _HEIGHT * max(len(steps), 1),
        "width": "container",
        "layer": [
            {
                "data": {"values": bars},
                "mark": {"type": "bar"},
                "encoding": {"x": {**x, "field": "count"}, "y": y, **encoding},
            },
            {
                "data": {"values": ends},
                "mark": {"type": "text", "align": "left", "dx": 4, "fontSize": 11, "color": "#888888"},
                "encoding": {"x": {**x, "field": "end"}, "y": y, "text": {"field": "text"}},
            },
        ],
    }


def _format(largest: float) -> str:
    """The format of an axis. Large numbers have a prefix. Numbers below 1 do not, because 300m would be unusual."""
    return "~s" if largest >= 10_000 else ",.6~g"


def score_chart(histogram: Histogram) -> dict[str, Any]:
    """Kept and removed documents by score, with a dashed line at each threshold."""
    total = sum(histogram.kept) + sum(histogram.removed)
    names, edges = bin_names(histogram), histogram.edges
    values = [
        {
            "low": edges[n],
            "high": edges[n + 1],
            "bin": names[n],
            "count": count,
            "share": count / max(total, 1),
            "documents": kind,
        }
        for kind, counts in (("kept", histogram.kept), ("removed", histogram.removed))
        for n, count in enumerate(counts)
        if count
    ]
    encoding = bins_encoding(
        histogram.score, "documents", {"domain": [edges[0], edges[-1]], "nice": False}, _format(max(map(abs, edges)))
    )
    encoding["color"] = {
        "field": "documents",
        "type": "nominal",
        "legend": {"orient": "top", "title": None},
        "scale": {"domain": ["kept", "removed"], "range": [COLORS[0], COLORS[1]]},
    }
    encoding["tooltip"] = [{"field": "documents", "type": "nominal"}, *encoding["tooltip"]]
    largest = max((sum(pair) for pair in zip(histogram.kept, histogram.removed, strict=True)), default=0)
    return {
        "description": f"{histogram.score}: kept and removed documents",
        "height": 170,
        "width": "container",
        "usermeta": {"ticks": [0, *(10**n for n in range(len(str(largest))))]},
        "layer": [
            {"data": {"values": values}, "mark": {"type": "bar", "binSpacing": 1}, "encoding": encoding},
            *_rules(histogram, encoding["x"]["scale"]),
        ],
    }


def _rules(histogram: Histogram, scale: dict[str, Any]) -> list[dict[str, Any]]:
    """The layers of the thresholds. A threshold beyond the edges is not drawn."""
    first, last = histogram.edges[0], histogram.edges[-1]
    values = [
        {"limit": value, "text": f"{word} {value:.6g}"}
        for word, value in (("min", histogram.min), ("max", histogram.max))
        if value is not None and first <= value <= last
    ]
    if not values:
        return []
    x = {"field": "limit", "type": "quantitative", "scale": scale}
    middle = (first + last) / 2
    texts = [
        {
            "data": {"values": [each]},
            "mark": {
                "type": "text",
                "align": "left" if each["limit"] <= middle else "right",
                "baseline": "bottom",
                "fontSize": 11,
                "color": "#888888",
            },
            "encoding": {"x": x, "y": {"value": -3}, "text": {"field": "text"}},
        }
        for each in values
    ]
    rule = {"type": "rule", "strokeDash": [4, 3], "strokeWidth": 1.5, "color": "#888888"}
    return [{"data": {"values": values}, "mark": rule, "encoding": {"x": x}}, *texts]
