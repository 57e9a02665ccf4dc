"""Prepare the slices of a job with an engine."""

from collections.abc import Callable

from data.base.problems import Reading
from data.preparation.engines.choice import Engine
from data.preparation.engines.local import run_local
from data.preparation.parts.part import Part
from data.preparation.parts.plan import Job

RUNNERS: dict[str, Callable[[Job, Engine], list[Part]]] = {"local": lambda job, engine: run_local(job)}
"""The functions that prepare all slices of a job that are not prepared yet. Each returns the parts of slices that were
not written, because rows are invalid and on_bad_example is `error`."""


def run(job: Job, engine: Engine) -> list[Part]:
    """Prepare all slices, and return the parts that were not written (see RUNNERS)."""
    return [] if engine.merge_only else RUNNERS[engine.name](job, engine)


def run_share(job: Job, index: int, count: int) -> None:
    """Prepare every count-th slice, beginning with the slice `index`. Raises a DataError that lists the invalid rows of
    these slices, unless on_bad_example is `drop`."""
    reading = Reading()
    for part in run_local(job, range(index, len(job.slices), count)):
        reading.merge(part.reading)
    reading.raise_if_any()
