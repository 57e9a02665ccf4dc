"""Prepare the slices in processes on this machine."""

from collections.abc import Generator, Iterator
from contextlib import closing

from data.base.workers import all_cores, map_in_order
from data.preparation.parts.attempts import remove_killed
from data.preparation.parts.part import Part
from data.preparation.parts.plan import SLICE_BYTES, Job, done
from data.preparation.parts.progress import source_bar
from data.preparation.parts.write import write_part
from data.sources.slices import Slice

LARGE = 8
"""A slice of more than this number of times the mean size is prepared by all workers together."""


def run_local(job: Job, wanted: range | None = None) -> list[Part]:
    """Prepare all slices that are not prepared yet, or only those whose numbers are in `wanted`.

    Returns the parts of slices that were not written, because rows are invalid and on_bad_example is `error`.
    """
    remove_killed(job.folder)
    ready = set(done(job.folder))
    slices = [slice for slice in job.slices if wanted is None or slice.number in wanted]
    todo = [slice for slice in slices if slice.number not in ready]
    if not todo:
        return []
    import streaming  # noqa: F401 - imported here once, and not in each worker

    refused: list[Part] = []
    n_done = sum(slice.size for slice in slices if slice.number in ready)
    total = sum(slice.size for slice in slices)
    with source_bar("Preparing rows", total or None, job.recipe.source.unit, n_done) as bar:
        with closing(_parts(job, todo, refused)) as parts:
            for part in parts:
                bar.update(part.size)
                if refused or job.refuses(part.reading):
                    refused.append(part)
                    bar.set_postfix(bad_rows=sum(each.reading.bad_rows for each in refused), refresh=False)
    return refused


def _parts(job: Job, todo: list[Slice], refused: list[Part]) -> Generator[Part]:
    """Prepare the slices. As soon as there are `refused` parts, the remaining slices are only checked."""
    n_workers = job.config.prepare_workers or all_cores()
    together, alone = _split(todo, n_workers)
    for slice in together:
        yield write_part(job, slice, n_workers=n_workers, check_only=bool(refused))

    def tasks() -> Iterator[tuple[Slice, bool]]:
        for slice in alone:
            yield slice, bool(refused)

    def work(task: tuple[Slice, bool]) -> Part:
        return write_part(job, task[0], check_only=task[1])

    yield from map_in_order(work, tasks(), n_workers, lambda: 4 * n_workers, isolated=job.is_own_code)


def _split(slices: list[Slice], n_workers: int) -> tuple[list[Slice], list[Slice]]:
    """The slices that all workers prepare together, and those that one worker prepares alone. If there are few slices,
    or if one is much larger than the others, some workers would otherwise have no work at the end."""
    if n_workers == 1:
        return [], slices
    if len(slices) < 2 * n_workers:
        return slices, []
    limit = max(LARGE * sum(slice.size for slice in slices) // len(slices), SLICE_BYTES)
    large = [slice for slice in slices if slice.size > limit]
    return large, [slice for slice in slices if slice.size <= limit]
