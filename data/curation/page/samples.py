"""The samples of a step, in the order in which the page shows them in two columns."""

from collections.abc import Iterator
from dataclasses import dataclass

from data.base.console import printable
from data.curation.base.report import Sample, StepReport, shortened
from data.curation.page.diff import Piece, differences, similarity

MOST_SAMPLES = 60
"""Maximum number of samples of each kind."""
_ALIKE = 0.4
"""Differences between a removed document and the document with which it was compared are marked if at least this share
of its text is the same."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A text in one of the two columns."""

    kind: str
    """`removed`, `compared with`, `kept`, `before` or `after`."""
    place: str
    pieces: list[Piece]
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Removed and kept documents."""

    pairs: list[Cell]
    """A removed document, the document with which it was compared or else a kept document, and so on."""
    removed: list[Cell]
    """The remaining removed documents, if there are more of them than kept documents."""
    kept: list[Cell]
    """The remaining kept documents."""

    @property
    def title(self) -> str:
        """The title of the pairs."""
        kinds = {cell.kind for cell in self.pairs}
        beside = "the documents with which they were compared" if "compared with" in kinds else "kept documents"
        return f"Removed documents, beside {beside}"


def compared(step: StepReport) -> Compared:
    kept = [Cell(kind="kept", place=each.place, pieces=_plain(each.text)) for each in step.kept[:MOST_SAMPLES]]
    found = Compared(pairs=[], removed=[], kept=kept)
    for sample in step.removed[:MOST_SAMPLES]:
        if sample.other_text is not None:
            found.pairs.extend(_with_other(sample))
        elif kept:
            found.pairs.extend([_removed(sample), kept.pop(0)])
        else:
            found.removed.append(_removed(sample))
    return found


def changed(step: StepReport) -> list[Cell]:
    """The cells of changed documents: before the change on the left, after the change on the right."""
    return [cell for sample in step.changed[:MOST_SAMPLES] for cell in _change(sample)]


def n_hidden(step: StepReport) -> int:
    """Number of samples that are not shown."""
    return sum(max(len(each) - MOST_SAMPLES, 0) for each in (step.removed, step.kept, step.changed))


def _removed(sample: Sample, pieces: list[Piece] | None = None) -> Cell:
    return Cell(
        kind="removed",
        place=sample.place,
        pieces=_plain(sample.text) if pieces is None else pieces,
        reason=sample.reason or "",
        detail=sample.detail or "",
    )


def _with_other(sample: Sample) -> Iterator[Cell]:
    removed, other = differences(_clean(sample.text), _clean(sample.other_text or ""))
    if similarity(removed) < _ALIKE:
        removed, other = _plain(sample.text), _plain(sample.other_text or "")
    yield _removed(sample, removed)
    yield Cell(kind="compared with", place=sample.other_place or "", pieces=other)


def _change(sample: Sample) -> Iterator[Cell]:
    if sample.other_text is None:
        before, after = [Piece("(not shown)")], _plain(sample.text)
    else:
        before, after = differences(_clean(sample.other_text), _clean(sample.text))
    yield Cell(kind="before", place=sample.place, pieces=before)
    yield Cell(kind="after", place=sample.place, pieces=after, reason=sample.reason or "", detail=sample.detail or "")


def _clean(text: str) -> str:
    return printable(shortened(text))


def _plain(text: str) -> list[Piece]:
    return [Piece(_clean(text))]
