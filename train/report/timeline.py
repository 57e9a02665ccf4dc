"""The events of a run, for the timeline chart and the table."""

from collections import Counter
from pathlib import Path
from typing import Any

from data.base.sizes import format_bytes
from train.report.charts import X
from train.report.reading.record import Entry
from train.report.reading.run import Run

MOST = 300
"""Maximum number of events shown. Further events are only counted."""
_GROUPS = {"start": "start or resume", "saved": "checkpoint", "stage": "stage", "end": "end", "stopped": "end"}
_ALERT = "alert"
_SHAPES = {
    "start or resume": "triangle-right",
    "stage": "diamond",
    "checkpoint": "M0,-1L0,1",
    "end": "square",
    _ALERT: "cross",
}


def shown_events(run: Run) -> list[Entry]:
    """Return at most MOST events. If there are more, checkpoints are omitted first, and then the oldest events."""
    events = run.record.events()
    by_rank = sorted(range(len(events)), key=lambda place: (events[place].event == "saved", -place))
    return [events[place] for place in sorted(by_rank[:MOST])]


def counts(run: Run) -> Counter[str]:
    """Count the events by kind, including events that a later resume has superseded."""
    return Counter(kind(each) for each in run.record.events())


def timeline_rows(run: Run) -> list[dict[str, Any]]:
    """Return the data of the timeline chart."""
    return [
        {"b": each.batch, "kind": kind(each), "group": group(each), "message": text(each)} for each in shown_events(run)
    ]


def timeline_spec(rows: list[dict[str, Any]]) -> dict[str, Any]:
    kinds = list(dict.fromkeys(row["kind"] for row in sorted(rows, key=lambda row: [*_SHAPES].index(row["group"]))))
    shape = {"domain": [*_SHAPES], "range": [*_SHAPES.values()]}
    color = {"domain": [*_SHAPES], "range": ["#009E73", "#CC79A7", "#0072B2", "#7F7F7F", "#D55E00"]}
    return {
        "width": "container",
        "height": 22 * len(kinds),
        "mark": {"type": "point", "size": 90, "strokeWidth": 2, "filled": False},
        "encoding": {
            "x": X,
            "y": {
                "field": "kind",
                "type": "nominal",
                "sort": kinds,
                "title": None,
                "axis": {"grid": True, "minExtent": 84, "labelLimit": 150},
            },
            "shape": {"field": "group", "type": "nominal", "scale": shape, "legend": None},
            "color": {"field": "group", "type": "nominal", "scale": color, "legend": None},
            "tooltip": [
                {"field": "b", "type": "quantitative", "title": "step", "format": ","},
                {"field": "kind", "type": "nominal", "title": "event"},
                {"field": "message", "type": "nominal", "title": "what"},
            ],
        },
    }


def group(entry: Entry) -> str:
    return _GROUPS.get(str(entry.event), _ALERT)


def kind(entry: Entry) -> str:
    event = str(entry.event)
    if event == "start":
        return "resume" if entry.values.get("resumed_from") else "start"
    return {"saved": "checkpoint", "nonfinite": "not finite"}.get(event, event.replace("_", " "))


def text(entry: Entry) -> str:
    """Return a description of the event on one line."""
    values = entry.values
    if entry.event == "saved":
        size, seconds = values.get("bytes"), values.get("seconds")
        parts = [Path(str(values.get("path", ""))).name]
        parts += [format_bytes(round(size))] if isinstance(size, int | float) else []
        parts += [f"{seconds:.1f} s"] if isinstance(seconds, int | float) else []
        return ", ".join(parts)
    if entry.event == "stage":
        return str(values.get("name", ""))
    return entry.message
