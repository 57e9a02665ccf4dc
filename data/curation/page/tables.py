"""The tables of the page."""

from collections.abc import Callable, Iterator
from typing import Any

from data.base.durations import format_seconds
from data.base.sizes import format_bytes
from data.curation.base.report import Counts, CurationReport, Flow, Histogram, StepReport
from data.curation.base.report import Table as StepTable
from data.pages.table import Table


def label(step: StepReport) -> str:
    """The name of the step with its number, because a curation may contain the same step several times."""
    return f"{step.number} {step.name}"


def share(part: float, whole: float) -> str:
    """The share as a percentage. Only 0 is shown as 0.0%, and only the whole as 100.0%."""
    if not whole:
        return ""
    text = f"{part / whole:.1%}"
    if text == "0.0%" and part > 0:
        return "<0.1%"
    return ">99.9%" if text == "100.0%" and part < whole else text


def sources(report: CurationReport) -> list[str]:
    """The names of the sources, the largest first."""
    names = dict.fromkeys(name for step in report.steps for name in step.flows)
    first = report.steps[0].flows if report.steps else {}
    return sorted(names, key=lambda name: -first[name].before.documents if name in first else 0)


def funnel(report: CurationReport) -> Table:
    """Documents and tokens after each step, and the costs of the step."""
    columns = ["step", "documents in", "documents out", "kept", "tokens out", "kept", "changed", "time", "documents/s"]
    rows = []
    for step in report.steps:
        flow = step.total()
        speed = f"{flow.before.documents / step.seconds:,.0f}" if step.seconds else ""
        rows.append([label(step), *_kept(flow), f"{flow.changed:,}", format_seconds(step.seconds), speed])
        rows[-1].append(format_bytes(step.bytes_on_disk))
    return Table(columns=[*columns, "size on disk"], rows=rows)


def _kept(flow: Flow) -> Iterator[str]:
    before, after = flow.before, flow.after
    yield f"{before.documents:,}"
    yield f"{after.documents:,}"
    yield share(after.documents, before.documents)
    yield f"{after.tokens:,}"
    yield share(after.tokens, before.tokens)


def by_source(report: CurationReport, count: Callable[[Counts], int]) -> Table:
    """The documents or tokens of each source after each step, with the share that the step has kept."""
    names = sources(report)
    rows = [[label(step), *(_cell(step.flows.get(name), count) for name in names)] for step in report.steps]
    return Table(columns=["step", *names], rows=rows)


def _cell(flow: Flow | None, count: Callable[[Counts], int]) -> str:
    if flow is None:
        return ""
    part = share(count(flow.after), count(flow.before))
    return f"{count(flow.after):,}" + (f" ({part})" if part else "")


def flows(step: StepReport) -> Table:
    """The documents and tokens of each source before and after the step."""
    columns = ["source", "documents in", "documents out", "kept", "tokens out", "kept", "changed"]
    named = [*step.flows.items()]
    if len(named) > 1:
        named.append(("all sources", step.total()))
    return Table(columns=columns, rows=[[name, *_kept(flow), f"{flow.changed:,}"] for name, flow in named])


REASONS = ["reason", "documents", "tokens", "share"]


def reasons(step: StepReport) -> list[tuple[str, str, str, float]]:
    """The rows of the macro `bars` with the columns REASONS."""
    found = ordered_reasons(step)
    total = sum(counts.documents for _, counts in found)
    return [
        (reason, f"{counts.documents:,}", f"{counts.tokens:,}", counts.documents / max(total, 1))
        for reason, counts in found
    ]


def ordered_reasons(step: StepReport) -> list[tuple[str, Counts]]:
    """The reasons of a step and their removed documents, the most common reason first."""
    return sorted(step.reasons.items(), key=lambda item: -item[1].documents)


def bins(histogram: Histogram) -> Table:
    """The numbers of a histogram."""
    counts = zip(bin_names(histogram), histogram.kept, histogram.removed, strict=True)
    rows = [[name, f"{kept:,}", f"{removed:,}"] for name, kept, removed in counts]
    return Table(columns=[histogram.score, "kept", "removed"], rows=rows)


def bin_names(histogram: Histogram) -> list[str]:
    """The range of each bin. The first and the last bin also contain all values beyond their edges."""
    edges, n = [f"{edge:.6g}" for edge in histogram.edges], len(histogram.kept)
    if n == 1:
        return ["all values"]
    inner = [f"{edges[number]} to {edges[number + 1]}" for number in range(1, n - 1)]
    return [f"below {edges[1]}", *inner, f"{edges[-2]} and above"]


def limits(histogram: Histogram) -> str:
    """The thresholds of a score, such as `at least 50 (min_doc_words)`."""
    parts = [
        f"{word} {value:.6g}"
        for word, value in (("at least", histogram.min), ("at most", histogram.max))
        if value is not None
    ]
    key = f" ({histogram.key})" if parts and histogram.key else ""
    return " and ".join(parts) + key


def table_of_step(table: StepTable) -> Table:
    """A table that the step has added. Columns of numbers are right-aligned."""
    texts = (all(isinstance(row[n], str) for row in table.rows) for n in range(len(table.columns)))
    left = next((n for n, is_text in enumerate(texts) if not is_text), len(table.columns))
    return Table(columns=table.columns, rows=[[cell(value) for value in row] for row in table.rows], left=left)


def cell(value: Any) -> str:
    """A cell of a step's table as text."""
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
