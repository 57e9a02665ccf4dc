"""The exact Jaccard similarity of pairs of documents."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import pyarrow as pa

from data.curation.duplicates.shingles import shingles
from data.spark.executors import arrow_function

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

SIMILARITY_SCHEMA = "a long, b long, similarity double"
"""Ids of two documents, where a < b, and their Jaccard similarity."""
SET_SCHEMA = "id long, shingles array<long>"
"""The id of a document, and the hashes of its shingles, which are distinct."""


def shingle_sets(documents: "DataFrame", pairs: "DataFrame", n_grams: int) -> "DataFrame":
    """The sets of the documents that are in at least one pair, with the columns of SET_SCHEMA. `documents` has the
    columns id and text."""
    ids = pairs.selectExpr("explode(array(a, b)) as id").distinct()
    found = documents.select("id", "text").join(ids, "id", "left_semi")
    return found.mapInArrow(arrow_function(sets_of_batches, n_grams), SET_SCHEMA)


def sets_of_batches(batches: Iterable[pa.RecordBatch], n_grams: int) -> Iterator[pa.RecordBatch]:
    """The function of a task: compute the sets of the documents again from their texts."""
    kind = pa.list_(pa.int64())
    for batch in batches:
        sets = [shingles(text, n_grams).view("int64") for text in batch["text"].to_pylist()]
        yield pa.RecordBatch.from_arrays([batch["id"], pa.array(sets, type=kind)], names=["id", "shingles"])


def similarities(pairs: "DataFrame", sets: "DataFrame") -> "DataFrame":
    """The similarity of each pair, with the columns of SIMILARITY_SCHEMA."""
    from pyspark.sql import functions as F

    of_a, of_b = (sets.select(F.col("id").alias(id), F.col("shingles").alias(f"set_{id}")) for id in ("a", "b"))
    n_common = F.size(F.array_intersect("set_a", "set_b"))
    n_all = F.size("set_a") + F.size("set_b") - n_common
    return pairs.join(of_a, "a").join(of_b, "b").select("a", "b", (n_common / n_all).alias("similarity"))
