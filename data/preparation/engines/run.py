"""Prepare the slices of a job with an engine."""

from collections.abc import Callable

from data.base.errors import EngineError, setting
from data.base.problems import Reading
from data.preparation.engines.choice import Engine
from data.preparation.engines.local import run_local
from data.preparation.engines.spark import run_spark, store_errors
from data.preparation.parts.part import Part
from data.preparation.parts.plan import Job
from data.preparation.parts.remote import RemoteParts
from data.sources.source import Source
from data.spark.session import check_installed

RUNNERS: dict[str, Callable[[Job, Engine], list[Part]]] = {
    "local": lambda job, engine: run_local(job),
    "spark": run_spark,
}
"""The functions that prepare all slices of a job that are not prepared yet. Each returns the parts of slices that were
not written, because rows are invalid and on_bad_example is `error`."""


def check(engine: Engine, source: Source) -> None:
    """Raises EngineError if the engine is not installed, or if it cannot prepare the source. Called before anything is
    written."""
    if engine.name != "spark":
        return
    check_installed()
    if source.is_local_only:
        raise EngineError(
            "only the `datasets` library can read this dataset, in one process on this machine: use "
            f"{setting('engine', 'local')}"
        )


def run(job: Job, engine: Engine) -> list[Part]:
    """Prepare all slices, and return the parts that were not written (see RUNNERS)."""
    return [] if engine.merge_only else RUNNERS[engine.name](job, engine)


def clean_remote(url: str, *, discard: bool = False) -> None:
    """Delete the unfinished files of tasks in an object store. With `discard`, also delete their shards."""
    with store_errors():
        parts = RemoteParts(url)
        parts.discard() if discard else parts.clean()


def run_share(job: Job, index: int, count: int) -> None:
    """Prepare every count-th slice, beginning with the slice `index`. Raises a DataError that lists the invalid rows of
    these slices, unless on_bad_example is `drop`."""
    reading = Reading()
    for part in run_local(job, range(index, len(job.slices), count)):
        reading.merge(part.reading)
    reading.raise_if_any()
