"""Join the parts of all slices to a folder. The folder is complete when its index is written, which happens last."""

import json
from collections.abc import Iterable
from typing import Any

from data.base.errors import DataError, setting
from data.base.problems import listed
from data.config.dataset import DatasetConfig
from data.mds.writer import INDEX, MANIFEST, UNFINISHED, MadeFrom, write_text
from data.preparation.parts.manifest import manifest_of
from data.preparation.parts.part import Part, PartError, part_folder, read_part
from data.preparation.parts.plan import Job
from data.preparation.parts.progress import Totals


def merge(job: Job, made_from: MadeFrom, details: dict[str, Any], refused: Iterable[Part] = ()) -> None:
    """Check the parts, and write the index and the manifest. `details` are added to the manifest unchanged. The caller
    removes the unfinished files afterwards.

    `refused` are parts with invalid rows, or that were only checked. They have no files. Raises a DataError that lists
    all invalid rows, unless on_bad_example is `drop`, and PartError if parts are missing.
    """
    parts = {part.slice: part for part in refused}
    for slice in job.slices:
        part = None if slice.number in parts else read_part(job.folder, slice.number, check_files=job.remote is None)
        if part is not None:
            parts[slice.number] = part
    if missing := [str(slice.number) for slice in job.slices if slice.number not in parts]:
        raise PartError(
            f"{job.folder}: {len(missing):,} of {len(job.slices):,} slices are not prepared (numbers "
            f"{listed(missing)}): wait until all tasks are finished, or start the tasks of these slices again (with "
            "--part I/N, slice number S is in the part whose I is S modulo N)"
        )
    totals = Totals()
    for slice in job.slices:
        totals.add(parts[slice.number])
    if job.refuses(totals.reading):
        totals.reading.raise_if_any()
    job.recipe.source.check_done(totals.files)
    _refuse_if_nothing_is_kept(totals, job.config)
    documents = [part.documents for part in parts.values() if part.documents is not None]
    manifest = manifest_of(job.config, job.recipe.source, made_from, details, totals)
    manifest["documents"] = sorted(documents, key=lambda entry: entry["slice"])
    _join(job, [parts[slice.number] for slice in job.slices], manifest)


def _join(job: Job, parts: list[Part], manifest: dict[str, Any]) -> None:
    for part in parts:
        for name in part.basenames:
            written = part_folder(job.folder, part.slice) / name
            if written.exists():
                written.rename(job.folder / name)
    unfinished, entries = job.folder / UNFINISHED, [entry for part in parts for entry in part.shards]
    write_text(unfinished / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    write_text(unfinished / INDEX, json.dumps({"version": 2, "shards": entries}, sort_keys=True))
    for name in (MANIFEST, INDEX):
        (unfinished / name).rename(job.folder / name)


def _refuse_if_nothing_is_kept(totals: Totals, config: DatasetConfig) -> None:
    if totals.tally.examples_kept:
        return
    dropped = totals.dropped()
    reasons = ", ".join(f"{reason} ({count:,})" for reason, count in dropped.items()) or "the source is empty"
    raise DataError(f"none of the {sum(dropped.values()):,} rows can be used: {reasons}: {_hint(totals, config)}")


def _hint(totals: Totals, config: DatasetConfig) -> str:
    if totals.tally.dropped:
        return f"{setting('max_seq_len')} is {config.max_seq_len}: increase the value, or shorten the rows"
    kinds = listed(f"{kind} ({count:,})" for kind, count in totals.reading.kinds.most_common())
    return f"fix the bad rows ({kinds})" if kinds else f"check {setting('preprocessing_fn')}"
