"""The base classes of steps. A step is a section of the config, and adds a verdict to each document."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from data.config.sections import Section
from data.curation.base.document import COLUMNS, SCHEMA, VERDICT_SCHEMA, Document, Judge, Verdict
from data.curation.base.report import Table
from data.curation.base.tasks import judge_batches
from data.spark.executors import arrow_function

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a step needs in addition to its documents."""

    spark: "SparkSession"
    folder: Path
    """An empty folder for files that the step needs while it runs. It is on a file system that all executors share, and
    is removed after the step."""
    seed: int
    """The seed of the config."""
    count_tokens: Callable[[str], int]
    """The number of tokens of a text, without bos and eos. Can be pickled."""


class Threshold(NamedTuple):
    """The valid range of a score. A document with a score outside the range is removed."""

    score: str
    """The key in `Document.scores`."""
    key: str
    """The parameter of the step that sets this threshold."""
    min: float | None = None
    max: float | None = None


class Step(Section):
    """One step of a curation. Subclasses are frozen dataclasses whose fields are the parameters of the step.

    Raise VERSION in a subclass when a change of the code leads to other verdicts, so that finished steps are repeated.
    """

    VERSION: ClassVar[int] = 1
    USES_SEED: ClassVar[bool] = False
    """Whether the verdicts depend on the seed of the config."""
    SHOWS_ORIGINALS: ClassVar[bool] = True
    """Whether samples of changed documents may show the text before the change."""

    def check(self) -> None:
        """Raises ConfigError if a file, a model or a package that the step needs is missing. Called before Spark
        starts. Keys in errors are relative to the step. Heavy imports belong here and in the methods below, not at the
        top of the module."""

    def check_names(self, sources: Sequence[str], scores: Sequence[str]) -> None:
        """Raises ConfigError if a parameter refers to a source or a score that does not exist. `sources` are the names
        of the sources, and `scores` are the scores that earlier steps compute."""

    def made_from(self) -> dict[str, Any]:
        """Everything that determines the verdicts, as plain JSON values, such as parameters and hashes of files. The
        location of files is not included. The version is added by the caller."""
        return asdict(self)  # pyright: ignore[reportArgumentType] - subclasses are dataclasses

    @abstractmethod
    def apply(self, documents: "DataFrame", context: Context) -> "DataFrame":
        """Add the columns of VERDICT_SCHEMA to `documents`, which has the columns of SCHEMA. Each document must be in
        the result exactly once. The result must not depend on the partitions or the order of the documents."""

    def tables(self, result: "DataFrame", context: Context) -> list[Table]:
        """Additional tables for the page. `result` is the result of `apply`, read from disk."""
        return []

    def thresholds(self) -> list[Threshold]:
        """The thresholds of the scores that this step computes, for histograms and error messages."""
        return []


class DocumentStep(Step):
    """A step whose verdict on a document depends only on this document."""

    @abstractmethod
    def judge(self) -> Judge:
        """The function that judges a document. Called once per process on the executors, so that the function can use
        objects that cannot be pickled or that are large. If the function raises an exception, the curation ends, and
        the error contains the document's file and line."""

    def modules(self) -> tuple[ModuleType, ...]:
        """The user's own modules that the step uses. They are sent to the executors."""
        return ()

    def apply(self, documents: "DataFrame", context: Context) -> "DataFrame":
        return _judged(documents, self, context)


class ScoredStep(DocumentStep):
    """A step that computes scores, and then decides by comparing the scores with thresholds.

    Scores are stored. If only thresholds were changed since the last run, the scores are not computed again.
    """

    @abstractmethod
    def scorer(self) -> Callable[[Document], Mapping[str, float]]:
        """The function that computes the scores of a document. Called once per process on the executors."""

    @abstractmethod
    def scores_made_from(self) -> dict[str, Any]:
        """Everything that determines the scores, as in `made_from`, without the thresholds."""

    def decide(self, scores: Mapping[str, float]) -> Verdict:
        """The verdict for a document with these scores: the first threshold that is not met."""
        for threshold in self.thresholds():
            if (found := violated(threshold, scores)) is not None:
                return found
        return Verdict()

    def judge(self) -> Judge:
        score = self.scorer()

        def judge(document: Document) -> Verdict:
            scores = score(document)
            return self.decide(scores)._replace(scores=scores)

        return judge

    def apply_again(self, documents: "DataFrame", context: Context) -> "DataFrame":
        """As `apply`, for documents that already have the scores of this step."""
        return _judged(documents, self, context, again=True)


def _judged(documents: "DataFrame", step: DocumentStep, context: Context, *, again: bool = False) -> "DataFrame":
    """Add the step's verdicts to the documents. With `again`, the documents already have the scores of the step, which
    must be a ScoredStep, and only the thresholds are applied."""
    task = arrow_function(judge_batches, step, context.count_tokens, again, modules=step.modules())
    return documents.select(*COLUMNS).mapInArrow(task, f"{SCHEMA}, {VERDICT_SCHEMA}")


def violated(threshold: Threshold, scores: Mapping[str, float]) -> Verdict | None:
    """The verdict if the score is outside the range of the threshold. A missing score is never outside."""
    value = scores.get(threshold.score)
    if value is None:
        return None
    rule = threshold.score.rpartition(".")[0]
    reason = f"{rule}.{threshold.key}" if rule else threshold.key
    if threshold.min is not None and value < threshold.min:
        limit = f"at least {threshold.min:.6g} is required"
    elif threshold.max is not None and value > threshold.max:
        limit = f"at most {threshold.max:.6g} is allowed"
    else:
        return None
    return Verdict(reason=reason, detail=f"{threshold.score} is {value:.6g}, but {limit}")
