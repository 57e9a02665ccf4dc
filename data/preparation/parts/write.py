"""Prepare a slice: read its chunks, pack their contents in windows (groups that are packed together), and write a part.

A part is written to a folder of its own, which is then renamed. If several processes prepare the same slice, the first
rename succeeds, and the other processes discard their files, which have the same content.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from data.base.workers import map_in_order
from data.examples.examples import Reading
from data.mds.writer import Sample, write_shards
from data.preparation.packing.recipe import Converted, Task
from data.preparation.parts.attempts import attempt
from data.preparation.parts.part import PART, Part, part_folder
from data.preparation.parts.plan import Job
from data.preparation.parts.row_documents import RowDocuments
from data.sources.slices import Slice

WINDOW_TOKENS = 16 << 20
"""Maximum number of tokens that are packed together, and kept in memory at the same time."""
MAX_IN_FLIGHT = 64 << 20
"""Maximum number of units of the source in flight. A few rows of the maximum size reach this limit."""


def write_part(job: Job, slice: Slice, *, n_workers: int = 1, check_only: bool = False) -> Part:
    """Prepare the slice, and return its part.

    With several workers, the chunks of the slice are converted in parallel; the bytes do not depend on `n_workers`.
    With `check_only`, rows are only checked. No shards are written if rows are invalid and on_bad_example is `error`.
    """
    reading = Reading(form=job.form, first_place=job.first_place)
    part = Part(slice=slice.number, size=slice.size, reading=reading)
    with attempt(job.folder, slice.number) as place:
        documents = _Documents()
        samples = _samples(job, slice, part, documents, n_workers, check_only)
        name = f"shard.{slice.number:05}"
        shards = write_shards(place, name, samples, lambda: job.recipe.columns(str(job.form)), job.compression)
        if not check_only and not job.refuses(reading):
            part.shards = shards
            part.documents = documents.write(place, slice.number)
            part.write(place / PART)
            _commit(place, part_folder(job.folder, slice.number))
    return part


def _commit(written: Path, place: Path) -> None:
    try:
        written.rename(place)
    except OSError:
        if not (place / PART).is_file():  # else, another process has prepared the same slice
            raise


def _samples(
    job: Job, slice: Slice, part: Part, documents: "_Documents", n_workers: int, check_only: bool
) -> Iterator[Sample]:
    """Yield the samples of the slice, and add the statistics to `part`."""
    window: list[Any] = []
    weight = 0
    for file, converted in _converted(job, slice, part.reading, n_workers, check_only):
        part.add(converted, file)
        if check_only or job.refuses(part.reading):
            window.clear()
        elif converted.content is not None:
            window.append(converted.content.received())
            weight += window[-1].weight
            if weight >= WINDOW_TOKENS:
                yield from documents.recorded(job.recipe.samples(window, part.tally), window)
                window.clear()
                weight = 0
    if window:
        yield from documents.recorded(job.recipe.samples(window, part.tally), window)


def _converted(
    job: Job, slice: Slice, reading: Reading, n_workers: int, check_only: bool
) -> Iterator[tuple[int, Converted]]:
    """Each converted chunk of the slice, with the index of its file."""
    in_flight: list[Any] = []

    def tasks() -> Iterator[Task]:
        for chunk in job.recipe.source.chunks(slice):
            in_flight.append(chunk)
            yield Task(
                chunk=chunk,
                form=job.form,
                first_place=job.first_place,
                check_only=check_only or job.refuses(reading),
            )

    def limit() -> int:
        return 2 * n_workers if sum(chunk.size for chunk in in_flight) < MAX_IN_FLIGHT else 0

    converted = map_in_order(job.recipe.read, tasks(), n_workers, limit)
    with closing(converted):
        for each in converted:
            yield getattr(in_flight.pop(0), "file", 0), each


@dataclass
class _Documents:
    """The documents of the rows that were written."""

    counts: list[int] = field(default_factory=list)
    numbers: list[np.ndarray] = field(default_factory=list)
    places: list[np.ndarray] = field(default_factory=list)

    def recorded(self, samples: Iterator[tuple[Sample, np.ndarray]], window: list[Any]) -> Iterator[Sample]:
        """Yield the samples of a window, and record their documents."""
        first = sum(map(len, self.places))
        self.places += [content.places_D2 for content in window]
        for sample, numbers in samples:
            self.counts.append(len(numbers))
            self.numbers.append(numbers + first)
            yield sample

    def write(self, folder: Path, slice: int) -> dict[str, Any] | None:
        """Write the file of the documents, and return the manifest's entry; None if there are no rows."""
        if not self.counts:
            return None
        # Documents are not in the order of their places if `split` selects ranges of rows in another order.
        places_D2, documents_P = np.concatenate(self.places), np.concatenate(self.numbers)
        order_D = np.lexsort((places_D2[:, 1], places_D2[:, 0]))
        rank_D = np.empty_like(order_D)
        rank_D[order_D] = np.arange(len(order_D))
        content = RowDocuments(
            counts_R=np.array(self.counts),
            documents_P=rank_D[documents_P],
            files_D=places_D2[order_D, 0],
            positions_D=places_D2[order_D, 1],
        ).encode()
        name = f"documents.{slice:05}.bin"
        (folder / name).write_bytes(content)
        return {
            "slice": slice,
            "rows": len(self.counts),
            "n_documents": len(places_D2),
            # The places of the first and the last document, so that a search for a document reads few files.
            "first": places_D2[order_D[0]].tolist(),
            "last": places_D2[order_D[-1]].tolist(),
            "basename": name,
            "bytes": len(content),
            "xxh64": xxhash.xxh64_hexdigest(content),
        }
