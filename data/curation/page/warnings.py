"""The warning about a step that has removed most of its documents."""

from data.base.console import printable
from data.base.problems import listed
from data.curation.base.report import Sample, StepReport
from data.curation.page.tables import label, ordered_reasons, share

MOST_REMOVED = 0.5
"""A step that removes more than this share of its documents causes a warning."""
_SAMPLES, _CHARACTERS = 3, 160
"""Maximum number of samples in a warning, and of characters of a sample."""


def warning_lines(step: StepReport) -> list[str]:
    """A warning if the step has removed more than half of its documents, with its most common reason and a few samples,
    or all documents of a source; otherwise no lines."""
    flow = step.total()
    before, removed = flow.before.documents, flow.before.documents - flow.after.documents
    emptied = [name for name, each in step.flows.items() if each.before.documents and not each.after.documents]
    of_sources = [printable(f"step {label(step)} removed all documents of {listed(emptied)}")] if emptied else []
    if removed <= MOST_REMOVED * before:
        return of_sources
    reasons = ordered_reasons(step)
    common = f"; the most common reason is {reasons[0][0]} ({reasons[0][1].documents:,})" if reasons else ""
    line = f"step {label(step)} removed {removed:,} of {before:,} documents ({share(removed, before)}){common}"
    return [printable(line), *map(_line, step.removed[:_SAMPLES]), *of_sources]


def _line(sample: Sample) -> str:
    words = " ".join(sample.text[: 4 * _CHARACTERS].split())
    text = words if len(words) <= _CHARACTERS else f"{words[:_CHARACTERS]}…"
    return printable("  " + ": ".join(filter(None, (sample.place, sample.detail or sample.reason, text))))
