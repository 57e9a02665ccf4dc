"""Stratified random samples."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from data.base.errors import ConfigError, raise_together
from data.config.sections import Defect, Rule
from data.config.suggest import near
from data.config.values import Range, Seed
from data.curation.base.document import COLUMNS, VERDICT_COLUMNS
from data.curation.base.report import Table
from data.curation.base.step import Context, Step
from data.curation.steps.smallest import Last, Limit, hash_of, last_documents
from data.curation.steps.strata import OTHER, ScoreRange, overlapping, parse_range, stratum_of

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

_FIELDS = ("source", "file")
_LIMITS = ("fractions", "documents", "tokens")


def _limited_once(step: "Sample") -> Iterator[Defect]:
    names = [(name, key) for key in _LIMITS for name in getattr(step, key)]
    if not names:
        yield Defect("fractions", "is empty, but a sample needs fractions, documents or tokens: set one of them")
    first: dict[str, str] = {}
    for name, key in names:
        if name in first:
            yield Defect(f"{key}.{name}", f"is set together with {first[name]}.{name}, but only one of them may be set")
        first.setdefault(name, key)


def _valid_limits(step: "Sample") -> Iterator[Defect]:
    # The types of fields are checked by Section, but not the types of the values of mappings.
    for key, valid in (("fractions", Range(ge=0, le=1)), ("documents", Range(ge=1)), ("tokens", Range(ge=1))):
        for name, value in getattr(step, key).items():
            if (text := valid.defect(value)) is not None:
                yield Defect(f"{key}.{name}", text)


def _valid_ranges(step: "Sample") -> Iterator[Defect]:
    if step.by in _FIELDS:
        return
    if "." not in step.by:
        yield Defect("by", f"is {step.by!r}, but it must be source, file or a score{near(step.by, _FIELDS)}")
        return
    for key in _LIMITS:
        for name in getattr(step, key):
            if name != OTHER and parse_range(name) is None:
                yield Defect(
                    f"{key}.{name}", "is not a range of the score: write MIN..MAX, such as 0.5..0.8, ..0.5 or 0.8.."
                )
    if (pair := overlapping(step.ranges())) is not None:
        a, b = pair
        yield Defect("by", f"has the ranges {a.text} and {b.text}, which overlap: a range ends below its MAX")


@dataclass(frozen=True, kw_only=True)
class Sample(Step):
    """Keeps a random sample of each stratum: the documents with the smallest hashes of the seed and the id.

    The sample depends only on the documents, the seed and the limits. A smaller limit selects a subset of the sample of
    a larger limit. The key `*` sets the limit of each stratum that is not named. All documents of strata without a
    limit are kept.
    """

    RULES: ClassVar[tuple[Rule, ...]] = (_limited_once, _valid_limits, _valid_ranges)
    USES_SEED: ClassVar[bool] = True

    by: str = "source"
    """What divides the documents into strata: `source`, `file`, or a score such as `gopher_quality.n_words`. The strata
    of a score are ranges `MIN..MAX`, which contain MIN and not MAX; `*` is then the stratum of all other documents."""
    fractions: dict[str, float] = field(default_factory=dict)
    """The fraction of the documents of a stratum, such as `{web: 0.5}`. The number of documents is rounded."""
    documents: dict[str, int] = field(default_factory=dict)
    """Number of documents of a stratum."""
    tokens: dict[str, int] = field(default_factory=dict)
    """Number of tokens of a stratum. The document with which the number is reached is kept."""
    seed: Seed = 0
    """Added to the seed of the config. With the same sum, a document has the same hash in all sample steps."""

    def ranges(self) -> list[ScoreRange]:
        """The ranges of a score."""
        names = [name for key in _LIMITS for name in getattr(self, key)]
        return [found for name in names if (found := parse_range(name)) is not None]

    def limit_of(self, stratum: str) -> Limit | None:
        """The limit of a stratum; None if all its documents are kept."""
        for name in (stratum, OTHER):
            if name in self.fractions:
                return Limit(fraction=self.fractions[name])
            if name in self.documents:
                return Limit(documents=self.documents[name])
            if name in self.tokens:
                return Limit(tokens=self.tokens[name])
        return None

    def check_names(self, sources: Sequence[str], scores: Sequence[str]) -> None:
        if self.by not in _FIELDS and self.by not in scores:
            known = ", ".join(dict.fromkeys(scores))
            raise ConfigError(
                f"is {self.by!r}, which no earlier step computes{near(self.by, scores)} (scores: {known or 'none'})",
                key="by",
            )
        if self.by == "source":
            raise_together(
                [
                    ConfigError(
                        f"is not a source{near(name, sources)} (sources: {', '.join(sources)})", key=f"{key}.{name}"
                    )
                    for key in _LIMITS
                    for name in getattr(self, key)
                    if name not in (*sources, OTHER)
                ]
            )

    def apply(self, documents: "DataFrame", context: Context) -> "DataFrame":
        from pyspark.sql import functions as F

        marked = self._marked(documents, context.seed)
        last = last_documents(marked.select("stratum", "hash", "id", "n_tokens"), self.limit_of)
        joined = marked.join(F.broadcast(_frame(context, last)), "stratum", "left")
        is_after = (F.col("hash") > F.col("last_hash")) | (
            (F.col("hash") == F.col("last_hash")) & (F.col("id") > F.col("last_id"))
        )
        verdict = {
            "reason": F.when(is_after, "sample"),
            "detail": F.when(is_after, F.concat(F.lit("is not in the sample of "), F.col("stratum"))),
            "other": F.lit(None).cast("long"),
            "changes": F.lit(0).cast("long"),
        }
        return joined.select(*COLUMNS, *(verdict[name].alias(name) for name in VERDICT_COLUMNS))

    def tables(self, result: "DataFrame", context: Context) -> list[Table]:
        """One table: documents and tokens of each stratum before and after the step, and the limit."""
        from pyspark.sql import functions as F

        is_kept = F.col("reason").isNull()
        counted = (
            result.withColumn("stratum", self._stratum())
            .groupBy("stratum")
            .agg(
                F.count("*").alias("documents"),
                F.sum(is_kept.cast("long")).alias("kept_documents"),
                F.sum("n_tokens").alias("tokens"),
                F.sum(F.when(is_kept, F.col("n_tokens")).otherwise(0)).alias("kept_tokens"),
            )
        )
        found = {row["stratum"]: list(row)[1:] for row in counted.collect()}
        named = {name for key in _LIMITS for name in getattr(self, key)} - {OTHER}
        names = sorted({*found, *named})
        columns = [self.by, "documents", "kept documents", "tokens", "kept tokens", "limit"]
        rows = [[name, *found.get(name, [0, 0, 0, 0]), _shown(self.limit_of(name))] for name in names]
        return [Table(title="Sample by stratum", columns=columns, rows=rows)]

    def _stratum(self) -> "Column":
        return stratum_of(self.by, self.ranges())

    def _marked(self, documents: "DataFrame", seed: int) -> "DataFrame":
        """The documents with the columns stratum and hash."""
        return documents.select(*COLUMNS, self._stratum().alias("stratum"), hash_of(seed + self.seed).alias("hash"))


def _frame(context: Context, last: list[Last]) -> "DataFrame":
    return context.spark.createDataFrame(last, "stratum string, last_hash long, last_id long")


def _shown(limit: Limit | None) -> str:
    if limit is None:
        return "none"
    if limit.fraction is not None:
        return f"{limit.fraction:g} of the documents"
    return f"{limit.documents:,} documents" if limit.documents is not None else f"{limit.tokens:,} tokens"
