"""Write the report page: one HTML file that contains all data of the runs and makes no external requests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.pages import page
from data.pages.table import Table
from train.report import charts, configs, experts, figures, tables, timeline
from train.report.reading.run import Run
from train.report.reading.thinning import POINTS, chosen, rounded, thin

_ASSETS = Path(__file__).parent / "assets"


def write_page(runs: Sequence[Run], output: Path) -> None:
    """Write the file atomically. Raises ConfigError if the file cannot be written."""
    page.write(render(runs), output, hint="specify another file with --output")


def render(runs: Sequence[Run]) -> str:
    shown = charts.run_charts(runs)
    sections = [_section(run, number) for number, run in enumerate(runs)]
    payload = {
        "runs": [_numbers(run, number, shown, sections[number]) for number, run in enumerate(runs)],
        "charts": {
            each["key"]: each for each in [*shown, *(each for section in sections for each in section["charts"])]
        },
    }
    values = {
        "title": ", ".join(run.name for run in runs),
        "several": len(runs) > 1,
        "overview": tables.runs(runs),
        "config_differences": tables.config_differences(runs),
        "shown": shown,
        "sections": sections,
    }
    return page.render(_ASSETS, "report.html", values, payload)


def _section(run: Run, number: int) -> dict[str, Any]:
    """Return the values of one run that report.html shows."""
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
        "changed": Table(columns=["from step", "key", "was", "is"], rows=[*configs.between_starts(run)], left=4),
        "from_defaults": Table(columns=["key", "value"], rows=configs.from_defaults(run), left=2),
        "config": Table(columns=["key", "value"], rows=configs.whole(run), left=2),
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
