"""Write the report page: one HTML file that contains all data of the runs and makes no external requests."""

import datetime
import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.base.errors import os_errors_named
from train.report import charts, configs, experts, figures, tables, timeline
from train.report.library import library
from train.report.reading.run import Run
from train.report.reading.thinning import POINTS, chosen, rounded, thin

_ASSETS = Path(__file__).parent / "assets"


def write_page(runs: Sequence[Run], output: Path) -> None:
    """Write the file atomically, so that a reader sees either the old page or the new one. Raises ConfigError if the
    file cannot be written."""
    text = render(runs)
    part = output.with_name(f".part-{uuid.uuid4().hex[:8]}-{output.name}")
    with os_errors_named(output, "written", hint="specify another file with --output"):
        try:
            part.write_text(text, encoding="utf-8")
            part.replace(output)
        finally:
            part.unlink(missing_ok=True)


def render(runs: Sequence[Run]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = charts.run_charts(runs)
    sections = [_section(run, number) for number, run in enumerate(runs)]
    payload = {
        "runs": [_numbers(run, number, shown, sections[number]) for number, run in enumerate(runs)],
        "charts": {
            each["key"]: each for each in [*shown, *(each for section in sections for each in section["charts"])]
        },
    }
    return environment.get_template("page.html").render(
        title=", ".join(run.name for run in runs),
        several=len(runs) > 1,
        overview=tables.runs(runs),
        config_differences=tables.config_differences(runs),
        shown=shown,
        sections=sections,
        written=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        style=(_ASSETS / "page.css").read_text(encoding="utf-8"),
        script=(_ASSETS / "page.js").read_text(encoding="utf-8"),
        library=library(),
        payload=_json(payload),
    )


def _section(run: Run, number: int) -> dict[str, Any]:
    """Return the template values of one run."""
    streams, health = charts.stream_charts(run), charts.expert_charts(run)
    for chart in (*streams, *health):
        chart["key"] = f"{number}-{chart['key']}"
        for line in chart["lines"]:
            line["run"] = number
    measured, events = experts.expert_data(run), timeline.timeline_rows(run)
    return {
        "number": number,
        "name": run.name,
        "folder": str(run.files.folder),
        "state": figures.state(run),
        "state_class": run.state,
        "figures": [*figures.key_figures(run)],
        "alarms": figures.alarms(run),
        "charts": [*streams, *health],
        "stream_charts": streams,
        "expert_charts": health,
        "streams": tables.streams(run),
        "layers": tables.layers(run),
        "loads": tables.loads(measured),
        "measured": measured,
        "worst_layer": experts.worst_layer(measured) if measured else 0,
        "measured_names": experts.LAYER_METRICS,
        "timeline": events,
        "events": tables.events(run),
        "event_counts": tables.event_counts(run),
        "steps": tables.steps(run),
        "evaluations": tables.evaluations(run),
        "data_overview": tables.data_overview(run),
        "data": tables.data(run),
        "changed": tables.Table(columns=["from step", "key", "was", "is"], rows=[*configs.between_starts(run)], left=4),
        "from_defaults": tables.Table(columns=["key", "value"], rows=configs.from_defaults(run), left=2),
        "config": tables.Table(columns=["key", "value"], rows=configs.whole(run), left=2),
        "environment": tables.environment(run),
        "versions": tables.versions(run),
        "samples": tables.samples(run),
        "time_spent": tables.time_spent(run),
        "unreadable": run.metrics.unreadable + run.record.unreadable,
        "hidden_streams": max(0, len(charts.streams_of(run)) - charts.MOST_STREAMS),
    }


def _numbers(run: Run, number: int, shown: Sequence[dict[str, Any]], section: dict[str, Any]) -> dict[str, Any]:
    """Return the data of a run's charts."""
    names = sorted(charts.metrics_of([*shown, *section["charts"]], number))
    places = chosen(run.metrics.steps.tolist(), POINTS)
    times = run.metrics.times[places]
    measured, events = section["measured"], section["timeline"]
    return {
        "name": run.name,
        "axis": {
            "b": run.metrics.steps[places].tolist(),
            "tok": run.metrics.tokens[places].tolist(),
            "h": rounded(run.hours(times), 6),
        },
        "series": {name: thin(run.metrics.series[name]) for name in names},
        "stages": [{"name": name, "b": first} for name, first in run.stages],
        "timeline": events,
        "timelineSpec": timeline.timeline_spec(events) if events else None,
        "experts": measured,
        "expertSpecs": experts.expert_specs(measured) if measured else None,
    }


def _json(value: Any) -> str:
    """Return JSON for a script element. The JSON is escaped so that a text with `</script>` cannot end the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), default=_plain)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be converted to JSON")
