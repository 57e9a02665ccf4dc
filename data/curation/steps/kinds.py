"""The number of changes by kind: stored as scores of the changed documents, and shown as a table."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from data.curation.base.document import Document
from data.curation.base.report import Table

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def scores_of(rule: str, counts: Mapping[str, int], document: Document) -> dict[str, float] | None:
    """The counts as scores with the keys `rule.kind`. Zeros are stored only if an earlier step with the same rule has
    stored the score."""
    scores = {f"{rule}.{kind}": float(count) for kind, count in counts.items()}
    return {key: value for key, value in scores.items() if value or key in document.scores} or None


def table_of(result: "DataFrame", rule: str, kinds: Iterable[str], title: str) -> Table:
    """The number of kept documents and of changes by kind, in one pass over the result of a step."""
    from pyspark.sql import functions as F

    kinds = list(kinds)
    # A score of an earlier step remains in documents that this step has not changed.
    changed = result.where(F.col("reason").isNull() & (F.col("changes") > 0))
    values = {kind: F.coalesce(F.col("scores")[f"{rule}.{kind}"], F.lit(0.0)) for kind in kinds}
    columns = [
        column
        for kind, value in values.items()
        for column in (F.sum((value > 0).cast("long")).alias(f"{kind}_documents"), F.sum(value).alias(kind))
    ]
    totals = changed.agg(*columns).first()
    assert totals is not None  # an aggregation without groups has one row
    rows = [[kind, int(totals[f"{kind}_documents"] or 0), int(totals[kind] or 0)] for kind in kinds]
    return Table(title=title, columns=["kind", "documents", "changes"], rows=rows)
