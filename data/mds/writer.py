"""Write an MDS folder in windows, so that a killed run can be resumed after its last complete window.

A window is a group of samples that are written together. Until the last window is written, all files are in the
subfolder `unfinished/`, with a journal of the completed windows. Then the shards are moved up to the folder,
`manifest.json` is written, and `index.json` is written last, because a folder with an index is complete.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from data.base.errors import ConfigError, DataError, setting
from data.mds.streaming_compat import take_encoded_samples

INDEX, MANIFEST = "index.json", "manifest.json"
UNFINISHED = "unfinished"
SHARD_BYTES = 8 << 20

Sample = dict[str, Any] | bytes
"""A mapping from columns to values, or the encoded sample."""
MadeFrom = Mapping[str, Any]
"""Everything that determines the folder's bytes, as a mapping from names to plain JSON values."""


class Shards:
    """The folder and its journal. Only one process at a time may use the folder: see data/base/locks.py."""

    def __init__(self, folder: Path, made_from: MadeFrom, compression: str | None) -> None:
        """Start a new folder, or resume a folder that a killed process has started. Raises ConfigError if the folder
        contains other files."""
        self.folder, self.made_from, self.compression = folder, made_from, compression
        self.unfinished = folder / UNFINISHED
        self.entries: list[dict[str, Any]] = []
        """The index entries, one per shard."""
        self.state: dict[str, Any] = {}
        """The value of state() that was saved with the last window."""
        journal = read_journal(folder)
        if journal is None:
            refuse_names_in_the_way(folder)
            self.unfinished.mkdir(parents=True, exist_ok=True)
            self._write_journal()
        else:
            refuse_other(folder, journal["made_from"], made_from)
            self.entries, self.state = journal["shards"], journal["state"]
            self._check_sizes()
            self._clear()

    def write_window(
        self, columns: dict[str, str], samples: Iterable[Sample], state: Callable[[], dict[str, Any]]
    ) -> None:
        """Write the samples to new shards, then record these shards and the result of state() in the journal. When a
        preparation is resumed, only recorded shards are kept."""
        entries = self._write_shards(columns, samples)
        for entry in entries:
            name = f"shard.{len(self.entries):05}.mds"
            for kind in ("raw_data", "zip_data"):
                if entry[kind] is not None:
                    suffix = Path(entry[kind]["basename"]).suffix
                    entry[kind]["basename"] = name if suffix == ".mds" else name + suffix
            self.entries.append(entry)
        for written, entry in zip(sorted((self.unfinished / "window").iterdir()), entries, strict=True):
            written.rename(self.unfinished / file_of(entry)["basename"])
        self.state = state()
        self._write_journal()

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Complete the folder by writing its manifest and index."""
        for entry in self.entries:
            name = file_of(entry)["basename"]
            if (self.unfinished / name).exists():
                (self.unfinished / name).rename(self.folder / name)
        _write(self.unfinished / MANIFEST, json.dumps(manifest, indent=2) + "\n")
        _write(self.unfinished / INDEX, json.dumps({"version": 2, "shards": self.entries}, sort_keys=True))
        for name in (MANIFEST, INDEX):
            (self.unfinished / name).rename(self.folder / name)
        shutil.rmtree(self.unfinished)

    def discard(self) -> None:
        """Remove the unfinished files."""
        shutil.rmtree(self.unfinished, ignore_errors=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _write_shards(self, columns: dict[str, str], samples: Iterable[Sample]) -> list[dict[str, Any]]:
        from streaming import MDSWriter  # the import takes seconds, and is not needed if the rows already exist

        shutil.rmtree(self.unfinished / "window", ignore_errors=True)
        writer = MDSWriter(
            columns=columns,
            out=str(self.unfinished / "window"),
            compression=self.compression,
            hashes=["xxh64"],
            size_limit=SHARD_BYTES,
        )
        take_encoded_samples(writer)
        for sample in samples:
            writer.write(sample)  # pyright: ignore[reportArgumentType]
        if writer.new_samples:
            writer.flush_shard()
        # finish() is not called because it writes an index, which would mark the folder as complete.
        writer.executor.shutdown()
        return writer.shards

    def _write_journal(self) -> None:
        journal = {"made_from": self.made_from, "state": self.state, "shards": self.entries}
        temporary = self.unfinished / "journal.tmp"
        _write(temporary, json.dumps(journal))
        temporary.rename(self.unfinished / "journal.json")

    def _check_sizes(self) -> None:
        for entry in self.entries:
            file = file_of(entry)
            there = [
                path for path in (self.unfinished / file["basename"], self.folder / file["basename"]) if path.exists()
            ]
            if not there or there[0].stat().st_size != file["bytes"]:
                raise DataError(
                    f"{self.unfinished} cannot be resumed, because {file['basename']} is missing or its size has "
                    f"changed: delete the folder {self.folder} to prepare everything again"
                )

    def _clear(self) -> None:
        """Remove files that were written after the last complete window."""
        keep = {"journal.json", *(file_of(entry)["basename"] for entry in self.entries)}
        for path in self.unfinished.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in keep:
                path.unlink()


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


def read_journal(folder: Path) -> dict[str, Any] | None:
    """The journal of a preparation that is running or was killed; None if there is no journal."""
    file = folder / UNFINISHED / "journal.json"
    return read_json(file) if file.exists() else None


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
    # A run that was killed soon after its start may not have written a journal.
    if unfinished.exists() and (
        not unfinished.is_dir() or {path.name for path in unfinished.iterdir()} - {"journal.tmp"}
    ):
        there.append(UNFINISHED)
    there += sorted(path.name for path in folder.glob("shard.*.mds*"))
    if there:
        raise ConfigError(
            f"{folder} already contains {there[0]}, which does not belong to a preparation that can be resumed: choose "
            f"another folder, or remove {there[0]}"
        )


def read_json(file: Path) -> dict[str, Any]:
    """Raises DataError when the file is damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        folder = file.parent.parent if file.parent.name == UNFINISHED else file.parent
        raise DataError(
            f"{file} cannot be read ({error}): delete the folder {folder.name} to prepare it again"
        ) from None


def _write(file: Path, text: str) -> None:
    """Write and sync the file, so that a full disk raises an error here and not later."""
    with file.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
