"""The report of a step: counts, samples and histograms. It is stored as `step.json`, and shown on the page."""

from dataclasses import dataclass, field
from typing import Any

SHOWN_CHARACTERS = 1500
"""Maximum number of characters of a sample's text."""
CUT = " […]"
"""The end of a shortened text."""


def shortened(text: str) -> str:
    """The first characters of the text, followed by CUT if it is longer."""
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + CUT


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Number of documents and their size."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    """Bytes of the texts in UTF-8."""

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            documents=self.documents + other.documents,
            tokens=self.tokens + other.tokens,
            bytes=self.bytes + other.bytes,
        )


@dataclass(frozen=True, kw_only=True)
class Flow:
    """Documents of one source before and after a step."""

    before: Counts
    after: Counts
    changed: int = 0
    """Number of kept documents whose text was changed."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A document that the page shows. Long texts are `shortened`."""

    place: str
    """Location of the document, such as `web: a.jsonl:12`."""
    text: str
    reason: str | None = None
    detail: str | None = None
    other_place: str | None = None
    """Location of the document with which this document was compared, such as the kept duplicate."""
    other_text: str | None = None
    """For a removed document: the text of that document. For a changed document: its text before the change."""


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Number of documents by score."""

    score: str
    """The key in `Document.scores`."""
    edges: list[float]
    """n + 1 edges of n bins with equal widths, except that the first and the last bin also count all values beyond
    their edges."""
    kept: list[int]
    removed: list[int]
    """Documents that this step removes, for any reason."""
    n_documents: int
    """Number of documents that are counted: all, or a random sample of a large number of documents."""
    key: str = ""
    """The parameter of the step that sets the threshold."""
    min: float | None = None
    max: float | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table that a step adds to the page and to the console, such as contamination by task."""

    title: str
    columns: list[str]
    rows: list[list[str | int | float]]


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """The report of one step."""

    number: int
    """Position of the step; 0 is the step `read`."""
    name: str
    parameters: dict[str, Any]
    fingerprint: str
    """Hash of everything that determines the result of the step, including earlier steps."""
    scores_fingerprint: str = ""
    """For a ScoredStep: hash of everything that determines its scores."""
    flows: dict[str, Flow]
    """By name of the source."""
    reasons: dict[str, Counts] = field(default_factory=dict)
    """Removed documents by reason."""
    removed: list[Sample] = field(default_factory=list)
    kept: list[Sample] = field(default_factory=list)
    changed: list[Sample] = field(default_factory=list)
    histograms: list[Histogram] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    seconds: float = 0.0
    """Duration of the step."""
    bytes_on_disk: int = 0
    """Size of the documents of the step: those that it has kept, and those that it has removed."""
    note: str = ""
    """A remark on how the step was computed, such as `only thresholds were applied again`."""

    def total(self) -> Flow:
        flows = self.flows.values()
        return Flow(
            before=sum((flow.before for flow in flows), Counts()),
            after=sum((flow.after for flow in flows), Counts()),
            changed=sum(flow.changed for flow in flows),
        )


@dataclass(frozen=True, kw_only=True)
class CurationReport:
    """The report of a curation, with which the page is drawn."""

    name: str
    """The name of the config."""
    config: dict[str, Any]
    steps: list[StepReport]
    """Step 0 is `read`."""
    output: str
    """The folder of the curated documents."""
    versions: dict[str, str]
