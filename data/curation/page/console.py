"""The funnel, the reasons and the tables of steps on the console."""

import sys
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.base.console import printable
from data.base.durations import format_seconds
from data.curation.base.report import CurationReport, Flow
from data.curation.base.report import Table as StepTable
from data.curation.page.tables import cell, label, ordered_reasons, share, sources, table_of_step

_REASONS = 3
"""Maximum number of reasons of a step."""


def print_tables(report: CurationReport, *, by_source: bool = False, console: Console | None = None) -> None:
    """Print the funnel, the most common reasons and the tables of the steps."""
    console = console or Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(funnel_table(report, by_source=by_source))
    tables = [reasons_table(report), *(_rich(table) for step in report.steps for table in step.tables)]
    for table in tables:
        if table.row_count:
            console.print(table)
    console.print(summary_line(report), markup=False, soft_wrap=True)


def funnel_table(report: CurationReport, *, by_source: bool = False) -> Table:
    """Documents before and after each step, and tokens after it; with `by_source`, also for each source."""
    names = sources(report) if by_source else []
    table = _table("steps", ["step"], ["documents in", "out", "kept", "tokens out", "time"])
    for step in report.steps:
        table.add_row(_text(label(step)), *_numbers(step.total()), format_seconds(step.seconds))
        for name in names:
            if name in step.flows:
                table.add_row(_text(f"  {name}"), *_numbers(step.flows[name]), "")
        if names:
            table.add_section()
    return table


def reasons_table(report: CurationReport) -> Table:
    """The most common reasons of each step."""
    table = _table(
        "removed documents, and their share of the step's documents", ["step", "reason"], ["documents", "share"]
    )
    for step in report.steps:
        reasons, n_before = ordered_reasons(step), step.total().before.documents
        for number, (reason, counts) in enumerate(reasons[:_REASONS]):
            name = label(step) if number == 0 else ""
            table.add_row(_text(name), _text(reason), f"{counts.documents:,}", share(counts.documents, n_before))
        if others := [counts.documents for _, counts in reasons[_REASONS:]]:
            text = f"{len(others)} other {'reason' if len(others) == 1 else 'reasons'}"
            table.add_row("", text, f"{sum(others):,}", share(sum(others), n_before))
    return table


def summary_line(report: CurationReport) -> str:
    """What all steps together have kept, and their duration."""
    if not report.steps:
        return "no steps"
    first, last = report.steps[0].total().before, report.steps[-1].total().after
    return (
        f"kept {last.documents:,} of {first.documents:,} documents ({share(last.documents, first.documents) or '0%'}) "
        f"and {last.tokens:,} of {first.tokens:,} tokens ({share(last.tokens, first.tokens) or '0%'}) "
        f"in {format_seconds(sum(step.seconds for step in report.steps))}"
    )


def _numbers(flow: Flow) -> Iterator[str]:
    before, after = flow.before, flow.after
    yield f"{before.documents:,}"
    yield f"{after.documents:,}"
    yield share(after.documents, before.documents)
    yield f"{after.tokens:,}"


def _table(title: str, texts: list[str], numbers: list[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in texts:
        table.add_column(_text(name), overflow="fold")
    for name in numbers:
        table.add_column(_text(name), justify="right", no_wrap=True)
    return table


def _rich(table: StepTable) -> Table:
    left = table_of_step(table).left
    shown = _table(printable(table.title), table.columns[:left], table.columns[left:])
    for row in table.rows:
        shown.add_row(*(_text(cell(value)) for value in row))
    return shown


def _text(text: str) -> Text:
    """A Text object, because rich would interpret brackets as markup."""
    return Text(printable(text))
