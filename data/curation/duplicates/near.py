"""The step `near_duplicates`: of documents with similar texts, keep one.

1. Documents with an equal MinHash key in at least one bucket are candidate pairs (candidates.py).
2. The exact Jaccard similarity of each candidate pair is computed (similarity.py).
3. Pairs with at least the similarity `threshold` are the edges of a graph, whose connected components are the clusters
   (components.py).
4. In each cluster, one document is kept.

The result depends only on the documents and the parameters.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import pyarrow as pa

from data.base.errors import ConfigError, EngineError
from data.config.sections import Defect, Rule
from data.config.values import Count, Range
from data.curation.base.report import Table
from data.curation.base.step import Context, Step
from data.curation.duplicates.candidates import PAIR_SCHEMA, candidate_pairs
from data.curation.duplicates.components import connected_components
from data.curation.duplicates.minhash import buckets_for, recall
from data.curation.duplicates.similarity import SET_SCHEMA, SIMILARITY_SCHEMA, shingle_sets, similarities
from data.curation.duplicates.verdicts import REMOVED_SCHEMA, cluster_sizes, with_verdicts

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

REASON = "near_duplicate"
_CONNECTED = "was not compared with the kept document, but is in the same cluster"
MIN_RECALL = 0.9
"""Required probability that two documents whose similarity is equal to the threshold are compared."""


def _check_recall(step: "NearDuplicates") -> Iterator[Defect]:
    found = recall(step.threshold, step.num_buckets, step.hashes_per_bucket)
    if found < MIN_RECALL:
        needed = buckets_for(step.threshold, step.hashes_per_bucket, MIN_RECALL)
        yield Defect(
            "num_buckets",
            f"is {step.num_buckets}, but with hashes_per_bucket: {step.hashes_per_bucket}, only {found:.0%} of the "
            f"pairs with a similarity of {step.threshold:g} would be compared: set num_buckets to at least {needed}, "
            "or reduce hashes_per_bucket",
        )


def _check_score(step: "NearDuplicates") -> Iterator[Defect]:
    if step.keep == "highest_score" and step.score is None:
        yield Defect("score", "is missing, but keep is highest_score: set it to the name of a score of an earlier step")
    if step.keep != "highest_score" and step.score is not None:
        yield Defect("score", f"is {step.score}, but keep is {step.keep}: remove score, or set keep: highest_score")


@dataclass(frozen=True, kw_only=True)
class NearDuplicates(Step):
    """Removes documents whose set of word n-grams is similar to the set of a kept document.

    Documents without any word are kept. Similarity is not transitive: if a document is similar to two documents, all
    three are in the same cluster, and one of them is kept.
    """

    RULES: ClassVar[tuple[Rule, ...]] = (_check_recall, _check_score)

    threshold: Annotated[float, Range(gt=0, le=1)] = 0.8
    """The Jaccard similarity from which two documents are near-duplicates."""
    n_grams: Count = 5
    """Number of words of an n-gram. Documents with fewer words are near-duplicates only if all their words are
    equal."""
    num_buckets: Count = 20
    """Number of keys of a document. Documents are compared if at least one key is equal."""
    hashes_per_bucket: Count = 6
    """Number of MinHash values that form a key. With s as the similarity, the probability that two documents are
    compared is 1 - (1 - s^hashes_per_bucket)^num_buckets."""
    max_comparisons: Count = 20
    """In each bucket, a document is compared with at most this number of documents that have the same key, so that the
    time grows linearly if many documents are similar, such as pages with the same template."""
    keep: Literal["longest", "first", "highest_score"] = "longest"
    """The document of a cluster that is kept: the document with the most tokens, the first document of the input, or
    the document with the highest score. Of equal documents, the first is kept."""
    score: str | None = None
    """For `keep: highest_score`: the name of the score, such as `language.score`. Documents without this score are
    kept only if no document of the cluster has it."""

    def check(self) -> None:
        if find_spec("scipy") is None:
            raise EngineError("near_duplicates requires SciPy, which is not installed: pip install -e '.[spark]'")

    def apply(self, documents: "DataFrame", context: Context) -> "DataFrame":
        self._check_scores(documents)
        store = _Store(context)
        pairs = candidate_pairs(
            documents,
            n_grams=self.n_grams,
            num_buckets=self.num_buckets,
            hashes_per_bucket=self.hashes_per_bucket,
            threshold=self.threshold,
            max_comparisons=self.max_comparisons,
        )
        pairs = store.write(pairs, "candidates", PAIR_SCHEMA)
        sets = store.write(shingle_sets(documents, pairs, self.n_grams), "sets", SET_SCHEMA)
        compared = store.write(similarities(pairs, sets), "compared", SIMILARITY_SCHEMA)
        clusters = store.write_clusters("compared", self.threshold)
        removed = _removed(documents, clusters, compared, self._rank())
        return with_verdicts(documents, store.write(removed, "removed", REMOVED_SCHEMA), REASON)

    def tables(self, result: "DataFrame", context: Context) -> list[Table]:
        compared = _Store(context).read("compared", SIMILARITY_SCHEMA)
        n_pairs, n_similar = compared.count(), compared.where(compared.similarity >= self.threshold).count()
        rows: list[list[str | int | float]] = [
            ["pairs of documents with an equal key", n_pairs],
            [f"with a Jaccard similarity of at least {self.threshold:g}", n_similar],
            ["less similar", n_pairs - n_similar],
        ]
        counts = Table(title="Compared documents", columns=["", "pairs"], rows=rows)
        return [counts, cluster_sizes(result, REASON, "Clusters of near-duplicates")]

    def _rank(self) -> "Column":
        """In each cluster, the document with the highest rank is kept."""
        from pyspark.sql import functions as F

        if self.keep == "highest_score":
            return F.nanvl(F.col("scores")[self.score], F.lit(None).cast("double"))
        return F.col("n_tokens").cast("double") if self.keep == "longest" else F.lit(0.0)

    def _check_scores(self, documents: "DataFrame") -> None:
        if self.score is not None and documents.where(documents.scores[self.score].isNotNull()).isEmpty():
            raise ConfigError(
                f"is {self.score}, but no document has this score: set it to a score of an earlier step", key="score"
            )


@dataclass(frozen=True)
class _Store:
    """Tables in the step's folder. When a table is written, it is not computed again for each later use."""

    context: Context

    def write(self, table: "DataFrame", name: str, schema: str) -> "DataFrame":
        table.write.parquet(self._folder(name))
        return self.read(name, schema)

    def read(self, name: str, schema: str) -> "DataFrame":
        return self.context.spark.read.schema(schema).parquet(self._folder(name))

    def write_clusters(self, compared: str, threshold: float) -> "DataFrame":
        """Compute clusters from the pairs of the table `compared`, in this process."""
        import pyarrow.dataset as ds
        import pyarrow.parquet as pq

        schema = pa.schema([("a", pa.int64()), ("b", pa.int64()), ("similarity", pa.float64())])
        pairs = ds.dataset(self._folder(compared), schema=schema, format="parquet")
        edges = pairs.to_table(columns=["a", "b"], filter=ds.field("similarity") >= threshold)
        ids, clusters = connected_components(edges["a"].to_numpy(), edges["b"].to_numpy())
        folder = Path(self._folder("clusters"))
        folder.mkdir()
        pq.write_table(pa.table({"id": ids, "cluster": clusters}), folder / "clusters.parquet")
        return self.read("clusters", "id long, cluster long")

    def _folder(self, name: str) -> str:
        return str(self.context.folder / name)


def _removed(documents: "DataFrame", clusters: "DataFrame", compared: "DataFrame", rank: "Column") -> "DataFrame":
    """The documents to remove, with the columns of REMOVED_SCHEMA."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    members = documents.select("id", rank.alias("rank")).join(clusters, "id")
    order = Window.partitionBy("cluster").orderBy(F.desc_nulls_last("rank"), "id")
    found = members.withColumn("other", F.first("id").over(order)).where("id != other")
    ends = found.select("id", "other", F.least("id", "other").alias("a"), F.greatest("id", "other").alias("b"))
    return ends.join(compared, ["a", "b"], "left").select("id", "other", _detail().alias("detail"))


def _detail() -> "Column":
    from pyspark.sql import functions as F

    measured = F.format_string("has a Jaccard similarity of %.3f to the kept document", "similarity")
    return F.when(F.col("similarity").isNull(), F.lit(_CONNECTED)).otherwise(measured)
