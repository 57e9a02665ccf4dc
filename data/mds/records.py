"""Two record files of an MDS folder: the verified shards and the downloaded shards, with one shard per line."""

import json
import os
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.base.console import is_first, notice
from data.base.errors import DataError
from data.base.locks import exclusive
from data.mds.shard import algorithm, file_defect
from data.mds.shard_files import ShardFiles

CHECKED = "checked.jsonl"
"""Each line contains the name, size, modification time, number of samples and hash of a verified shard."""


class CheckedShards:
    """The record of verified shards. Each shard is hashed once, and hashed again only after its file has changed."""

    def __init__(self, files: ShardFiles) -> None:
        self._files = files

    def check(self, numbers: list[int]) -> None:
        """Verify the shards that are not in the record. Raises DataError for the first defect."""
        files = self._files
        if numbers and not algorithm(files.shards[numbers[0]].raw_data):
            notice(f"{files.name} has no hashes in its index: only the sizes of its shards are checked")
        if not self._unchecked(numbers):
            return
        with suppress(OSError):
            files.work.mkdir(parents=True, exist_ok=True)
        can_write = os.access(files.work, os.W_OK)
        lock = (
            exclusive(files.work / CHECKED, lambda: notice(f"Waiting for another process to check {files.folder}"))
            if can_write
            else nullcontext()
        )
        with files.plain_errors(CHECKED), lock:
            unchecked = self._unchecked(numbers)
            for number in tqdm(unchecked, desc="Checking shards", unit="shard", delay=2, disable=not is_first()):
                files.check(number)
                if can_write:
                    self.add(number)

    def add(self, number: int) -> None:
        """Record that the shard's file matches the index."""
        _append(self._files.work / CHECKED, self._state(number))

    def _unchecked(self, numbers: list[int]) -> list[int]:
        """The shards that are not hashed yet. Raises DataError for a shard of the wrong size."""
        files = self._files
        recorded = {line for folder in {files.folder, files.work} for line in _lines(folder / CHECKED)}
        unchecked = []
        for number in numbers:
            defect = file_defect(files.file(number), files.shards[number].raw_data, hashes=False)
            if defect is not None:
                raise DataError(f"{files.file(number)} {defect}: {files.hint_of(number)}")
            if self._state(number) not in recorded:
                unchecked.append(number)
        return unchecked

    def _state(self, number: int) -> str:
        shard, stat = self._files.shards[number], self._files.file(number).stat()
        digest = shard.raw_data.hashes.get(algorithm(shard.raw_data))
        return json.dumps([shard.raw_data.basename, stat.st_size, stat.st_mtime_ns, shard.samples, digest])


class DownloadLog:
    """The record of the shards that processes on this machine have downloaded into a folder."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._counted = 0, 0
        """Size of the file in bytes when it was last read, and its number of lines."""

    def add(self, info: Any) -> None:
        """Add a downloaded file, specified by its FileInfo in the index."""
        _append(self._file, json.dumps([info.basename, info.bytes]))

    def count(self) -> int:
        size = self._file.stat().st_size if self._file.exists() else 0
        if size != self._counted[0]:  # skip unchanged files, because count() is called after every batch
            self._counted = size, len(_lines(self._file))
        return self._counted[1]


def _append(file: Path, line: str) -> None:
    # Each line is appended with a single short write, so that processes need no lock. If the line cannot be written
    # because the disk is full, a verified shard is checked again in the next run, and a downloaded shard is not
    # counted.
    with suppress(OSError), file.open("a") as opened:
        opened.write(line + "\n")


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except (OSError, ValueError):
        return []
