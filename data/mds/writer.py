"""Write the shards of an MDS folder, and check a folder before it is written.

Until a folder is complete, its files are in the subfolder `unfinished/`. `index.json` is written last, because a folder
with an index is complete.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from data.base.errors import ConfigError, DataError, setting
from data.mds.streaming_compat import take_encoded_samples

INDEX, MANIFEST = "index.json", "manifest.json"
UNFINISHED = "unfinished"
PLAN, PARTS = f"{UNFINISHED}/plan.json", f"{UNFINISHED}/parts"
"""The plan of a preparation, with the sizes of its slices, and the folder with a subfolder for each finished slice."""
SHARD_BYTES = 8 << 20

Sample = dict[str, Any] | bytes
"""A mapping from columns to values, or the encoded sample."""
MadeFrom = Mapping[str, Any]
"""Everything that determines the folder's bytes, as a mapping from names to plain JSON values."""


def write_shards(
    folder: Path, name: str, samples: Iterable[Sample], columns: Callable[[], dict[str, str]], compression: str | None
) -> list[dict[str, Any]]:
    """Write the samples to the shards `NAME.00.mds`, `NAME.01.mds` and so on, and return their index entries. An index
    is not written. `columns` is only called if there are samples."""
    samples = iter(samples)
    first = next(samples, None)
    if first is None:
        return []
    from streaming import MDSWriter  # the import takes seconds, and is not needed if the rows already exist

    window = folder / "shards"
    writer = MDSWriter(
        columns=columns(), out=str(window), compression=compression, hashes=["xxh64"], size_limit=SHARD_BYTES
    )
    take_encoded_samples(writer)
    for sample in chain([first], samples):
        writer.write(sample)  # pyright: ignore[reportArgumentType]
    if writer.new_samples:
        writer.flush_shard()
    # finish() is not called because it writes an index, which would mark the folder as complete.
    writer.executor.shutdown()
    for number, entry in enumerate(writer.shards):
        written = window / file_of(entry)["basename"]
        for kind in ("raw_data", "zip_data"):
            if entry[kind] is not None:
                suffix = Path(entry[kind]["basename"]).suffix
                entry[kind]["basename"] = f"{name}.{number:02}.mds" + ("" if suffix == ".mds" else suffix)
        written.rename(folder / file_of(entry)["basename"])
    shutil.rmtree(window)
    return writer.shards


def file_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The FileInfo of the shard's file on disk, from the index entry: the compressed file if there is one, else the
    uncompressed file."""
    return entry["zip_data"] or entry["raw_data"]


def is_whole(folder: Path, made_from: MadeFrom) -> bool:
    """Whether the folder is complete. Raises ConfigError if the folder is complete, but was prepared from other data or
    with other settings."""
    if not (folder / INDEX).exists():
        return False
    if not (folder / MANIFEST).exists():
        raise ConfigError(
            f"{folder} has an {INDEX}, but no {MANIFEST}, so it was not prepared by Dropless: choose another folder"
        )
    refuse_other(folder, read_json(folder / MANIFEST).get("made_from", {}), made_from)
    return True


def check_compression(compression: str | None) -> None:
    """Raises ConfigError for a compression that Streaming does not support."""
    if compression is None:
        return
    from streaming.base.compression import get_compressions

    known = sorted(get_compressions())
    if compression not in known:
        raise ConfigError(f"is {compression!r}, but it must be one of {', '.join(known)}", key="compression")


def refuse_other(folder: Path | str, was: MadeFrom, now: MadeFrom) -> None:
    changed = [f"{setting(key)} was {was.get(key)}, now {value}" for key, value in now.items() if was.get(key) != value]
    if changed:
        raise ConfigError(
            f"{folder} was prepared from other data or settings ({'; '.join(changed)}): choose another folder, or "
            "delete this folder"
        )


def refuse_names_in_the_way(folder: Path) -> None:
    """Raises ConfigError if the folder contains files of another program that have the names of our files."""
    there = [name for name in (INDEX, MANIFEST) if (folder / name).exists()]
    unfinished = folder / UNFINISHED
    # A preparation that was killed soon after its start may not have written a plan.
    if unfinished.exists() and (not unfinished.is_dir() or any(not _is_ours(path) for path in unfinished.iterdir())):
        there.append(UNFINISHED)
    there += sorted(path.name for path in folder.glob("shard.*.mds*"))
    if there:
        raise ConfigError(
            f"{folder} already contains {there[0]}, which does not belong to a preparation that can be resumed: choose "
            f"another folder, or remove {there[0]}"
        )


def _is_ours(path: Path) -> bool:
    return path.name == "parts" or path.name.startswith("plan.json.")


def done_slices(folder: Path) -> Iterator[int]:
    """The numbers of the slices that an unfinished preparation has finished."""
    yield from (int(path.name) for path in (folder / PARTS).iterdir() if path.name.isdecimal())


def read_json(file: Path) -> dict[str, Any]:
    """Raises DataError when the file is damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        folder = file.parent.parent if file.parent.name == UNFINISHED else file.parent
        raise DataError(
            f"{file} cannot be read ({error}): delete the folder {folder.name} to prepare it again"
        ) from None


def write_text(file: Path, text: str) -> None:
    """Write and sync the file, so that a full disk raises an error here and not later."""
    with file.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
