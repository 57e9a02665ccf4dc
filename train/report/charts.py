"""Charts as Vega-Lite specifications.

A specification refers to its data as `rows`. train/report/assets/report.js builds the rows from the series, and sets
the x axis, which the reader can switch between steps, tokens and time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data.pages.palette import COLORS
from train.report.reading.run import EVAL_LOSS, EVALUATIONS, LOSS, Run

_DASHES = ([1, 0], [6, 3], [2, 2], [9, 3, 2, 3], [4, 1], [12, 4], [1, 3], [8, 2, 2, 2, 2, 2])
"""Dash patterns of lines, so that the lines do not differ only in their colours."""
_TICKS = ".6~g"
"""Format of ticks: enough digits to distinguish the ticks of a flat curve, without trailing zeros."""
MOST_STREAMS = 12
"""Maximum number of streams with their own chart; tables contain all streams."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A line chart of metrics over the course of a run."""

    key: str
    title: str
    lines: tuple[tuple[str, str], ...]
    """Metric and label of each line. In a report of several runs, only the first metric is drawn."""
    format: str = "~g"
    """Format of values, in d3 notation."""
    zero: bool = False
    """Whether the axis begins at 0."""
    log: bool = False
    """Whether the reader may switch to a logarithmic axis."""
    height: int = 200
    wide: bool = False
    stages: bool = False
    """Whether to mark the boundaries of stages."""
    limit: float | None = None
    """Value at which to draw a horizontal line."""


def run_charts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the charts of loss, speed and memory, for one run or for several runs together."""
    speed = _MFU if any(_MFU.lines[0][0] in run.metrics.series for run in runs) else _FLOPS
    losses = [_LOSS] if len(runs) == 1 else [replace(_LOSS, title="Training loss"), _EVAL_LOSS]
    charts = [*losses, *_other_evaluations(runs), _learning_rate(runs), _NORM, _TOKENS, speed, _memory(runs)]
    return [*_non_empty(charts, runs)]


def stream_charts(run: Run) -> list[dict[str, Any]]:
    names = streams_of(run)
    losses = tuple((f"streams/{name}/loss", name) for name in names)
    charts = [
        Chart(key="stream-loss", title="Loss by stream", lines=losses, format=_TICKS, log=True, wide=True, stages=True)
    ]
    for number, name in enumerate(names[:MOST_STREAMS]):
        shares = (f"streams/{name}/token_share", "actual"), (f"streams/{name}/planned_token_share", "planned")
        title = f"{name}: share of the tokens"
        charts.append(
            Chart(key=f"share-{number}", title=title, lines=shares, format=".0%", zero=True, height=130, stages=True)
        )
    return [*_non_empty(charts, [run])]


def expert_charts(run: Run) -> list[dict[str, Any]]:
    charts = [
        Chart(
            key="imbalance",
            title="Load imbalance of the worst layer (maximum / mean)",
            lines=(("experts/load_imbalance", ""),),
            format=_TICKS,
        ),
        Chart(key="dead", title="Dead experts, all layers", lines=(("experts/dead", ""),), zero=True),
        Chart(key="lbl", title="Load-balancing loss", lines=(("loss/train/load_balancing", ""),), format=_TICKS),
        Chart(key="z", title="Router z-loss", lines=(("loss/train/router_z", ""),), format=_TICKS),
    ]
    return [*_non_empty(charts, [run])]


def streams_of(run: Run) -> list[str]:
    """Return the names of the streams, sorted by the number of tokens that they have contributed, largest first."""
    tokens = run.metrics.matching("streams/", "/tokens")
    return sorted(tokens, key=lambda name: -tokens[name].last)


def metrics_of(charts: Sequence[dict[str, Any]], run: int = 0) -> set[str]:
    """Return the names of the metrics that the charts show for the run with index `run`."""
    return {line["metric"] for chart in charts for line in chart["lines"] if line["run"] == run}


_LOSS = Chart(
    key="loss",
    title="Loss",
    lines=((LOSS, "train"), (EVAL_LOSS, "evaluation")),
    format=_TICKS,
    log=True,
    height=280,
    wide=True,
    stages=True,
)
_EVAL_LOSS = Chart(key="eval", title="Evaluation loss", lines=((EVAL_LOSS, ""),), format=_TICKS)
_NORM = Chart(
    key="norm", title="Gradient norm before clipping", lines=(("l2_norm/grad/global", ""),), format=_TICKS, log=True
)
_TOKENS = Chart(
    key="throughput",
    title="Tokens per second, excluding evaluation and saving",
    lines=(
        ("throughput/real_tokens_per_sec", "without padding"),
        ("throughput/tokens_per_sec", "with padding"),
        ("throughput/trained_tokens_per_sec", "trained on"),
    ),
    format="~s",
    zero=True,
)
_MFU = Chart(key="mfu", title="Model FLOPs utilization", lines=(("throughput/device/mfu", ""),), format=".1%")
_FLOPS = Chart(
    key="flops", title="FLOP/s of a device", lines=(("throughput/device/flops_per_sec", ""),), format="~s", zero=True
)


def _learning_rate(runs: Sequence[Run]) -> Chart:
    names = sorted(name for name in runs[0].metrics.series if name == "lr" or name.startswith("lr-"))
    return Chart(key="lr", title="Learning rate", lines=((names[0] if names else "lr", ""),), format=".1e", zero=True)


def _memory(runs: Sequence[Run]) -> Chart:
    limit = runs[0].planned_gib if len(runs) == 1 else None
    title = "Peak memory of the rank with the highest peak, GiB" + (" (dashed: planned)" if limit is not None else "")
    return Chart(key="memory", title=title, lines=(("memory/peak_gib", ""),), format=_TICKS, limit=limit)


def _other_evaluations(runs: Sequence[Run]) -> Iterator[Chart]:
    names = {name for run in runs for name in run.metrics.matching(EVALUATIONS)}
    for number, name in enumerate(sorted(names)):
        # The perplexity contains the same information as the loss.
        if f"{EVALUATIONS}{name}" != EVAL_LOSS and "Perplexity" not in name:
            yield Chart(
                key=f"eval-{number}", title=f"Evaluation: {name}", lines=((f"{EVALUATIONS}{name}", ""),), format=_TICKS
            )


def _non_empty(charts: Sequence[Chart], runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """Yield the charts that have data."""
    for chart in charts:
        lines = [*_lines(chart, runs)]
        if lines:
            labels = [line["label"] for line in lines] if len(runs) == 1 else [run.name for run in runs]
            yield {
                "key": chart.key,
                "title": chart.title,
                "wide": chart.wide,
                "log": chart.log,
                "stages": chart.stages and len(runs) == 1,
                "lines": lines,
                "spec": _spec(chart, labels if any(labels) else []),
            }


def _lines(chart: Chart, runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    for number, run in enumerate(runs):
        for metric, label in chart.lines if len(runs) == 1 else chart.lines[:1]:
            if metric in run.metrics.series:
                points = metric.startswith(EVALUATIONS)
                shown = label if len(runs) == 1 else run.name
                yield {"run": number, "metric": metric, "label": shown, "points": points}


def _spec(chart: Chart, labels: list[str]) -> dict[str, Any]:
    colors: dict[str, Any] = {"value": COLORS[0]}
    dashes: dict[str, Any] = {"value": _DASHES[0]}
    if labels:
        colors = {**_label(labels), "scale": {"domain": labels, "range": _cycled(COLORS, labels)}}
        dashes = {**_label(labels), "scale": {"domain": labels, "range": _cycled(_DASHES, labels)}}
    layers = _layers(chart, colors, dashes, [_LINE] if labels else [])
    if chart.stages:
        layers += _STAGES
    if chart.limit is not None:
        layers.append(_limit(chart.limit))
    return {
        "description": chart.title,
        "height": chart.height,
        "width": "container",
        "encoding": {"x": X},
        "layer": layers,
    }


def _layers(
    chart: Chart, colors: dict[str, Any], dashes: dict[str, Any], line: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the layers of the chart's specification. report.js removes the layers `band` and `points` if no line has a
    band or points."""
    axis = {"format": chart.format}
    values = {"type": "quantitative", "scale": {"zero": chart.zero}, "axis": axis, "title": None}
    y, low = {"field": "y", **values}, {"field": "lo", **values}
    number = ".2%" if chart.format.endswith("%") else ".5~g"
    tooltip = [*line, {"field": "y", "type": "quantitative", "format": number, "title": "value"}, *_PLACE]
    shown_when_near = {"condition": {"param": "near", "empty": False, "value": 1}, "value": 0}
    return [
        {
            "name": "band",
            "transform": [{"filter": "isValid(datum.hi) && datum.hi > datum.lo"}],
            "mark": {"type": "area", "opacity": 0.25, "line": False},
            "encoding": {"y": low, "y2": {"field": "hi"}, "color": colors},
        },
        {
            "mark": {"type": "line", "strokeWidth": 1.6, "clip": True},
            "encoding": {
                "y": y,
                "color": colors,
                "strokeDash": dashes,
                "detail": {"field": "label", "type": "nominal"},
            },
        },
        {
            "name": "points",
            "transform": [{"filter": "datum.points"}],
            "mark": {"type": "point", "filled": True, "size": 28},
            "encoding": {"y": y, "color": colors},
        },
        {
            "transform": [{"filter": "isValid(datum.y)"}],
            "params": [_NEAR],
            "mark": {"type": "point", "filled": True, "size": 60},
            "encoding": {"y": y, "color": colors, "opacity": shown_when_near, "tooltip": tooltip},
        },
    ]


def _limit(value: float) -> dict[str, Any]:
    return {
        "data": {"values": [{"limit": value}]},
        "mark": {"type": "rule", "strokeDash": [4, 4], "color": "#888888"},
        "encoding": {"y": {"field": "limit", "type": "quantitative"}, "x": {"value": 0}, "x2": {"value": "width"}},
    }


def _label(labels: list[str]) -> dict[str, Any]:
    legend = {
        "orient": "top",
        "title": None,
        "symbolType": "stroke",
        "symbolSize": 500,
        "symbolOpacity": 1,
        "symbolStrokeWidth": 2,
        "labelLimit": 220,
    }
    return {"field": "label", "type": "nominal", "sort": labels, "legend": legend if len(labels) > 1 else None}


def _cycled(values: Sequence[Any], labels: list[str]) -> list[Any]:
    """Return one value per label. There are as many colours as dash patterns. In each further cycle the dash patterns
    are shifted by one, so that every combination is unique."""
    shift = 1 if values is _DASHES else 0
    return [values[(number + shift * (number // len(values))) % len(values)] for number in range(len(labels))]


X: dict[str, Any] = {"field": "x", "type": "quantitative", "scale": {"zero": False, "nice": False}}
"""The x axis. report.js adds the title and the format."""
_LABEL = {"field": "label", "type": "nominal"}
_LINE = {**_LABEL, "title": "line"}
_NEAR = {
    "name": "near",
    "select": {"type": "point", "nearest": True, "on": "pointerover", "clear": "pointerout"},
}
_PLACE = [
    {"field": "b", "type": "quantitative", "title": "step", "format": ","},
    {"field": "tok", "type": "quantitative", "title": "tokens", "format": ".4~s"},
    {"field": "h", "type": "quantitative", "title": "hours", "format": ".3~f"},
]
_STAGES: list[dict[str, Any]] = [
    {"data": {"name": "stages"}, "mark": {"type": "rule", "strokeDash": [2, 3], "color": "#888888"}, "encoding": {}},
    {
        "data": {"name": "stages"},
        "mark": {"type": "text", "align": "left", "baseline": "top", "dx": 4, "fontSize": 11, "color": "#888888"},
        "encoding": {"y": {"value": 2}, "text": {"field": "name"}},
    },
]
