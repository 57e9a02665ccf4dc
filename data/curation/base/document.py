"""Documents as they pass from step to step.

Between steps, documents are rows of a Spark DataFrame with the columns of SCHEMA. A step adds the columns of
VERDICT_SCHEMA. Documents whose `reason` is null are kept.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

SCHEMA = "id long, source string, file string, position long, text string, n_tokens long, scores map<string,double>"
"""The columns of documents between steps, as Spark's DDL. They are described in `Document`."""
COLUMNS = tuple(column.split()[0] for column in SCHEMA.split(", "))
VERDICT_SCHEMA = "reason string, detail string, other long, changes long"
"""The columns that a step adds. They are described in `Verdict`."""
VERDICT_COLUMNS = tuple(column.split()[0] for column in VERDICT_SCHEMA.split(", "))

ID_BITS = 40
"""An id is `slice << ID_BITS | number`, where `slice` counts the slices of all sources, and `number` counts the records
of the slice. Ids therefore increase in the order of the input, and depend only on the input."""


class Document(NamedTuple):
    """One document."""

    id: int
    """Identifies the document in this curation. See ID_BITS."""
    source: str
    """The name of the source in the config."""
    file: str
    """The input file, as named in the source's `inputs`."""
    position: int
    """For lines and text files: the offset of the record's first byte in the decompressed file. For other formats: the
    number of the record, from 0."""
    text: str
    n_tokens: int
    """Number of tokens of the text, without bos and eos."""
    scores: Mapping[str, float]
    """The scores that earlier steps have computed. Keys are written as `rule.score`."""


class Verdict(NamedTuple):
    """The result of a step for one document."""

    reason: str | None = None
    """Why the document is removed, as a short name by which removals are counted, such as `gopher.min_doc_words`; None:
    the document is kept."""
    detail: str | None = None
    """Why the document is removed, with its value and the threshold: `has 12 words, but at least 50 are required`."""
    text: str | None = None
    """The new text; None if the text is not changed."""
    changes: int = 0
    """Number of changes in the text, such as masked addresses. Positive if `text` is set."""
    scores: Mapping[str, float] | None = None
    """Scores to add to the document's scores."""
    other: int | None = None
    """The id of the document to which the step has compared this document, such as the kept duplicate."""


KEPT = Verdict()
Judge = Callable[[Document], Verdict]
"""A function that judges a document."""
