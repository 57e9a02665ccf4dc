"""The verdicts on duplicates, and the table of the sizes of their clusters."""

from typing import TYPE_CHECKING

from data.curation.base.document import COLUMNS
from data.curation.base.report import Table

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

REMOVED_SCHEMA = "id long, other long, detail string"
"""Documents to remove: the id, the id of the kept document, and the detail of the verdict."""
_SIZES = ((2, 2), (3, 5), (6, 10), (11, 100), (101, None))


def with_verdicts(documents: "DataFrame", removed: "DataFrame", reason: str) -> "DataFrame":
    """Add the columns of VERDICT_SCHEMA. `removed` has the columns of REMOVED_SCHEMA; all other documents are kept.

    If `removed` is small, Spark sends it to all executors, so that the texts are not shuffled.
    """
    from pyspark.sql import functions as F

    found = documents.select(*COLUMNS).join(removed.select("id", "other", "detail"), "id", "left")
    return found.select(
        *COLUMNS,
        F.when(F.col("other").isNotNull(), F.lit(reason)).alias("reason"),
        "detail",
        "other",
        F.lit(0).cast("long").alias("changes"),
    )


def cluster_sizes(result: "DataFrame", reason: str, title: str) -> Table:
    """The number of clusters by size. `result` has the columns of VERDICT_SCHEMA."""
    from pyspark.sql import functions as F

    removed = result.where(F.col("reason") == reason).groupBy("other").agg((F.count("*") + 1).alias("size"))
    counts = {
        row["size"]: row["clusters"] for row in removed.groupBy("size").agg(F.count("*").alias("clusters")).collect()
    }
    rows: list[list[str | int | float]] = []
    for low, high in _SIZES:
        found = {size: n for size, n in counts.items() if size >= low and (high is None or size <= high)}
        name = f"{low}" if high == low else f"{low}-{high}" if high is not None else f"more than {low - 1}"
        n_documents = sum(size * n for size, n in found.items())
        rows.append([name, sum(found.values()), n_documents, n_documents - sum(found.values())])
    return Table(title=title, columns=["documents in the cluster", "clusters", "documents", "removed"], rows=rows)
