"""Write the page about a curation."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data.base.durations import format_seconds
from data.base.sizes import format_bytes
from data.curation.base.report import Counts, CurationReport, Histogram, StepReport
from data.curation.page import charts, samples, tables
from data.curation.page.warnings import warning_lines
from data.pages import page
from data.pages.charts import chart
from data.pages.table import Table
from data.secrets.redaction import redacted

_ASSETS = Path(__file__).parent / "assets"


def write_page(report: CurationReport, output: Path) -> None:
    """Write the page. Raises ConfigError if the file cannot be written."""
    page.write(render(report), output, hint="specify another folder as output")


def render(report: CurationReport) -> str:
    steps = [_step(step) for step in report.steps]
    funnel, costs = [*_funnel(report)], [*_costs(report)]
    values = {
        "title": f"Curation: {report.name}",
        "alarms": [lines[0] for lines in map(warning_lines, report.steps) if lines],
        "figures": [*_figures(report)],
        "funnel": tables.funnel(report),
        "funnel_charts": funnel,
        "by_source": [*_by_source(report)],
        "cost_charts": costs,
        "reason_columns": tables.REASONS,
        "steps": steps,
        "config": _yaml(report.config),
        "versions": [*report.versions.items()],
        "output": redacted(report.output),
    }
    shown = [*funnel, *costs, *(each for step in steps for each in step["charts"])]
    return page.render(_ASSETS, "curation.html", values, {"charts": {each["key"]: each["spec"] for each in shown}})


def _documents(counts: Counts) -> int:
    return counts.documents


def _tokens(counts: Counts) -> int:
    return counts.tokens


_COUNTS = {"Documents": _documents, "Tokens": _tokens}


def _figures(report: CurationReport) -> Iterator[tuple[str, str, str]]:
    """The key figures: (name, value, note)."""
    if not report.steps:
        return
    first, last = report.steps[0].total().before, report.steps[-1].total().after
    for name, before, after in (
        ("documents", first.documents, last.documents),
        ("tokens", first.tokens, last.tokens),
    ):
        yield name, f"{after:,}", f"{tables.share(after, before) or '0%'} of {before:,}"
    yield "bytes of text", format_bytes(last.bytes), f"of {format_bytes(first.bytes)}"
    yield "time of all steps", format_seconds(sum(step.seconds for step in report.steps)), ""
    yield "size of all steps on disk", format_bytes(sum(step.bytes_on_disk for step in report.steps)), ""


def _funnel(report: CurationReport) -> Iterator[dict[str, Any]]:
    for what, count in _COUNTS.items():
        title = f"{what} after each step"
        yield chart(f"funnel-{what.lower()}", title, charts.funnel_chart(report, what.lower(), count))


def _by_source(report: CurationReport) -> Iterator[tuple[str, Table]]:
    if len(tables.sources(report)) > 1:
        for what, count in _COUNTS.items():
            yield f"{what} of each source after each step", tables.by_source(report, count)


def _costs(report: CurationReport) -> Iterator[dict[str, Any]]:
    yield chart("time", "Time", charts.time_chart(report))
    yield chart("speed", "Documents per second", charts.speed_chart(report))
    yield chart("size", "Size on disk", charts.size_chart(report))


def _step(step: StepReport) -> dict[str, Any]:
    """The template values of one step."""
    flow = step.total()
    histograms = [each for each in step.histograms if each.kept]
    counts = f"{flow.before.documents:,} → {flow.after.documents:,} documents"
    part = tables.share(flow.after.documents, flow.before.documents)
    return {
        "title": tables.label(step),
        "counts": f"{counts} ({part} kept)" if part else counts,
        "note": step.note,
        "fingerprint": step.fingerprint,
        "parameters": _yaml(step.parameters) if step.parameters else "",
        "flows": tables.flows(step),
        "reasons": tables.reasons(step),
        "tables": [(table.title, tables.table_of_step(table)) for table in step.tables],
        "charts": [
            chart(f"score-{step.number}-{n}", _score_title(each), charts.score_chart(each))
            for n, each in enumerate(histograms)
        ],
        "sampled": _sampled(step),
        "bins": [(each.score, tables.bins(each)) for each in histograms],
        "samples": samples.compared(step),
        "changed": samples.changed(step),
        "n_hidden": samples.n_hidden(step),
    }


def _sampled(step: StepReport) -> str:
    """A remark if the histograms do not contain all documents."""
    n_documents = max((each.n_documents for each in step.histograms), default=0)
    total = step.total().before.documents
    return f"The scores are those of {n_documents:,} sampled documents of {total:,}." if n_documents < total else ""


def _score_title(histogram: Histogram) -> str:
    limits = tables.limits(histogram)
    return f"{histogram.score}: {limits}" if limits else histogram.score


def _yaml(values: Mapping[str, Any]) -> str:
    import yaml

    return redacted(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=100).strip())
