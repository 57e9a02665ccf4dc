"""The step `exact_duplicates`: of documents with the same text, keep the first."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from data.curation.base.report import Table
from data.curation.base.step import Context, Step
from data.curation.duplicates.verdicts import REMOVED_SCHEMA, cluster_sizes, with_verdicts

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

REASON = "exact_duplicate"


@dataclass(frozen=True, kw_only=True)
class ExactDuplicates(Step):
    """Removes documents whose text is equal to the text of an earlier document.

    Texts are compared by their 128-bit hashes (MD5). Only ids and hashes are shuffled.
    """

    def apply(self, documents: "DataFrame", context: Context) -> "DataFrame":
        from pyspark.sql import Window
        from pyspark.sql import functions as F

        hashes = documents.select("id", F.unhex(F.md5(F.col("text").cast("binary"))).alias("hash"))
        found = hashes.withColumn("other", F.min("id").over(Window.partitionBy("hash"))).where("id != other")
        removed = found.select("id", "other", F.lit("has the same text as the kept document").alias("detail"))
        # When the table is read from files, Spark knows its size before it chooses how to join it.
        folder = f"{context.folder}/removed"
        removed.write.parquet(folder)
        return with_verdicts(documents, context.spark.read.schema(REMOVED_SCHEMA).parquet(folder), REASON)

    def tables(self, result: "DataFrame", context: Context) -> list[Table]:
        return [cluster_sizes(result, REASON, "Documents with the same text")]
