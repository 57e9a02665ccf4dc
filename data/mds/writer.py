"""An MDS folder while it is written: whole windows at a time, so that a run that was killed resumes from its last.

All of it lies in the folder's `unfinished/`, with a journal of what is done, until the last window is written. Then the
shards move up, `manifest.json` is written, and `index.json` comes last: a folder with an index is whole.
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
"""Values by column, or all of them encoded already."""
MadeFrom = Mapping[str, Any]
"""Everything that decides the folder's bytes, by name, as plain JSON values."""


class Shards:
    """The folder and what its journal says. One process at a time: see data/base/locks.py."""

    def __init__(self, folder: Path, made_from: MadeFrom, compression: str | None) -> None:
        """Takes up what a killed process left. Raises ConfigError when the folder has anything else in the way."""
        self.folder, self.made_from, self.compression = folder, made_from, compression
        self.unfinished = folder / UNFINISHED
        self.entries: list[dict[str, Any]] = []
        """The index's, one a shard."""
        self.state: dict[str, Any] = {}
        """What was given with the last window."""
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
        """New shards of the samples. They, and the state() after them, count once the journal says so."""
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
        """Makes the folder whole."""
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
        """Removes what is not finished."""
        shutil.rmtree(self.unfinished, ignore_errors=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _write_shards(self, columns: dict[str, str], samples: Iterable[Sample]) -> list[dict[str, Any]]:
        from streaming import MDSWriter  # imports for seconds, and rows that are prepared need none of it

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
        # Not finish(), which writes an index: no part of the data may look whole.
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
                    f"{self.unfinished} cannot be gone on with, because {file['basename']} is missing or has another "
                    f"size than when it was written: delete the folder {self.folder}, and all is prepared again"
                )

    def _clear(self) -> None:
        """Removes what was written after the last window."""
        keep = {"journal.json", *(file_of(entry)["basename"] for entry in self.entries)}
        for path in self.unfinished.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in keep:
                path.unlink()


def file_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The index's word on the shard's file as it lies on disk: compressed, if it is."""
    return entry["zip_data"] or entry["raw_data"]


def is_whole(folder: Path, made_from: MadeFrom) -> bool:
    """Whether it was made from this already. Raises ConfigError when it is whole, but made from something else."""
    if not (folder / INDEX).exists():
        return False
    if not (folder / MANIFEST).exists():
        raise ConfigError(
            f"{folder} has an {INDEX}, but no {MANIFEST}, so it was not prepared here: name another folder"
        )
    refuse_other(folder, read_json(folder / MANIFEST).get("made_from", {}), made_from)
    return True


def check_compression(compression: str | None) -> None:
    """Raises ConfigError when Streaming does not know it."""
    if compression is None:
        return
    from streaming.base.compression import get_compressions

    known = sorted(get_compressions())
    if compression not in known:
        raise ConfigError(f"is {compression!r}, but it must be one of {', '.join(known)}", key="compression")


def read_journal(folder: Path) -> dict[str, Any] | None:
    """Of the preparation that is under way in the folder, or was killed."""
    file = folder / UNFINISHED / "journal.json"
    return read_json(file) if file.exists() else None


def refuse_other(folder: Path | str, was: MadeFrom, now: MadeFrom) -> None:
    changed = [f"{setting(key)} was {was.get(key)}, now {value}" for key, value in now.items() if was.get(key) != value]
    if changed:
        raise ConfigError(
            f"{folder} was made from something else ({'; '.join(changed)}): name another folder, or delete this one"
        )


def refuse_names_in_the_way(folder: Path) -> None:
    """Raises ConfigError when files that are not ours have the names that ours will have."""
    there = [name for name in (INDEX, MANIFEST) if (folder / name).exists()]
    unfinished = folder / UNFINISHED
    # A run that was killed at its very start has left no journal yet.
    if unfinished.exists() and (
        not unfinished.is_dir() or {path.name for path in unfinished.iterdir()} - {"journal.tmp"}
    ):
        there.append(UNFINISHED)
    there += sorted(path.name for path in folder.glob("shard.*.mds*"))
    if there:
        raise ConfigError(
            f"{folder} has {there[0]} already, which no preparation that can be gone on with has left: name another "
            "folder, or remove it"
        )


def read_json(file: Path) -> dict[str, Any]:
    """Raises DataError when the file is damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        folder = file.parent.parent if file.parent.name == UNFINISHED else file.parent
        raise DataError(
            f"{file} cannot be read ({error}): delete the folder {folder.name}, and it is prepared again"
        ) from None


def _write(file: Path, text: str) -> None:
    """Raises what a full disk raises, now and not when the file is closed by the system."""
    with file.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
