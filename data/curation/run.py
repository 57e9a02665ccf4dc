"""Run the steps that are not complete, one after the other."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.base.console import logger
from data.base.errors import ConfigError, DataError
from data.base.paths import shown
from data.curation.base.report import StepReport
from data.curation.base.step import Context, ScoredStep, Step
from data.curation.base.tasks import DocumentError, errors_of_tasks
from data.curation.chain import TEMPORARY, Link, scored_before
from data.curation.reading import OpenSource, Work, check_files, read_documents, refuse_invalid
from data.curation.statistics.places import place_text
from data.curation.statistics.step_report import with_counts, with_histograms, with_samples
from data.curation.statistics.summary import summarize
from data.spark.progress import task_bar

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

ALREADY = "only the thresholds were applied again, to the scores of an earlier curation"


@dataclass(frozen=True, kw_only=True)
class Runner:
    """Runs the steps of a chain in a Spark session."""

    spark: "SparkSession"
    chain: list[Link]
    sources: list[OpenSource]
    work: Callable[[], Work]
    """What tasks need to read the sources."""
    count_tokens: Callable[[str], int]
    drops_invalid: bool
    """Whether invalid records are removed instead of reported as errors."""
    seed: int

    def run(self, link: Link, before: StepReport | None) -> StepReport:
        """Run the step, write its result, and return its report. before: the report of the previous step. Raises
        DataError for a step that raises an exception for a document."""
        started = time.monotonic()
        shutil.rmtree(link.folder, ignore_errors=True)
        (link.folder / TEMPORARY).mkdir(parents=True)
        with _spark_errors(link), task_bar(self.spark.sparkContext, f"{link.number}/{len(self.chain) - 1} {link.name}"):
            note = self._write(link)
            report = self._report(link, before, note)
        report = replace(report, seconds=time.monotonic() - started, bytes_on_disk=_size(link.documents))
        link.commit(report)
        return report

    def _write(self, link: Link) -> str:
        from pyspark.sql import functions as F

        result, note = self._apply(link)
        marked = result.withColumn("kept", F.col("reason").isNull())
        # Files are partitioned by `kept`, so that the next step reads only kept documents.
        marked.write.mode("overwrite").partitionBy("kept").parquet(str(link.documents))
        if link.named is None:
            check_files(link.result(self.spark), self.sources)
            if not self.drops_invalid:
                refuse_invalid(link.result(self.spark), place_text)
        return note

    def _apply(self, link: Link) -> tuple["DataFrame", str]:
        if link.named is None:
            return read_documents(self.spark, self.work()), ""
        step, context = link.named.step, self._context(link)
        scored = scored_before(link) if isinstance(step, ScoredStep) else None
        if scored is not None and isinstance(step, ScoredStep):
            return step.apply_again(self.spark.read.parquet(str(scored / link.documents.name)), context), ALREADY
        return step.apply(self.chain[link.number - 1].kept(self.spark), context), ""

    def _context(self, link: Link) -> Context:
        return Context(
            spark=self.spark,
            folder=link.folder / TEMPORARY,
            seed=self.seed,
            count_tokens=self.count_tokens,
        )

    def _report(self, link: Link, before: StepReport | None, note: str) -> StepReport:
        step = None if link.named is None else link.named.step
        result = link.result(self.spark)
        thresholds = [] if step is None else step.thresholds()
        counts = None if before is None else {name: flow.after for name, flow in before.flows.items()}
        n_documents = 0 if counts is None else sum(each.documents for each in counts.values())
        scores = list(dict.fromkeys(threshold.score for threshold in thresholds))
        summary = summarize(result, scores, n_documents, self.seed)
        report = StepReport(
            number=link.number,
            name=link.name,
            parameters=parameters_of(step),
            fingerprint=link.fingerprint,
            scores_fingerprint=link.scores_fingerprint,
            flows={},
            note=note,
        )
        report = with_counts(report, summary, counts)
        previous = self.chain[link.number - 1].kept(self.spark) if step is not None else None
        shows_originals = step is None or step.SHOWS_ORIGINALS
        report = with_samples(report, summary, result, previous, shows_originals=shows_originals)
        report = with_histograms(report, summary, thresholds)
        tables = [] if step is None else step.tables(result, self._context(link))
        return replace(report, tables=tables)


def parameters_of(step: Step | None) -> dict[str, Any]:
    """The parameters of the step, as plain values."""
    return {} if step is None else asdict(step)  # pyright: ignore[reportArgumentType]


def check_remaining(link: Link, report: StepReport) -> None:
    """Raises ConfigError if the step has removed all documents."""
    total = report.total()
    if total.after.documents:
        return
    if link.named is None:
        raise DataError("the sources contain no documents: all records were dropped or are invalid")
    reasons = ", ".join(f"{reason}: {counts.documents:,}" for reason, counts in list(report.reasons.items())[:3])
    first = next(iter(report.reasons))
    sample = next((each for each in report.removed if each.reason == first), None)
    such_as = f", such as {sample.place}: {sample.detail}" if sample is not None and sample.detail else ""
    name, parameters = first.rpartition(".")[2], report.parameters
    threshold = f" (now {shown(parameters[name])})" if name in parameters else ""
    key = f"{link.named.key}.{name}" if name in parameters else link.named.key
    raise ConfigError(
        f"removes all {total.before.documents:,} documents ({reasons}{such_as}): change the "
        f"{'threshold' + threshold if threshold else 'parameters of the step'}, or remove the step",
        key=key,
    )


@contextmanager
def _spark_errors(link: Link) -> Iterator[None]:
    """Convert errors with which Spark ends a job."""
    try:
        with errors_of_tasks(f"the step {link.name}"):
            yield
    except (ConfigError, DataError) as error:
        raise _named(link, error) from None


def _named(link: Link, error: ConfigError | DataError) -> ConfigError | DataError:
    """The error with the step and the document in which it occurred."""
    if isinstance(error, DocumentError):
        place = place_text(error.source, error.file, error.position)
        return DataError(f"{place}: the step {link.name} raised {error}")
    if isinstance(error, ConfigError) and link.named is not None and error.key is not None:
        try:
            with link.named.errors_placed():
                raise error
        except ConfigError as named:
            return named
    return error


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def report_lines(report: StepReport) -> str:
    """One line about a complete step."""
    total = report.total()
    share = total.after.documents / max(total.before.documents, 1)
    changed = f", {total.changed:,} changed" if total.changed else ""
    return (
        f"{report.number} {report.name}: {total.before.documents:,} -> {total.after.documents:,} documents "
        f"({share:.1%}{changed}), {total.after.tokens:,} tokens, {report.seconds:.1f} s"
    )


def log_step(report: StepReport, warnings: list[str], *, is_new: bool) -> None:
    logger.info(report_lines(report) + ("" if is_new else " (complete before)"))
    if warnings:
        logger.warning("\n".join(warnings))
