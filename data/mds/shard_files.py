"""The files of a folder's shards: their local and remote paths, and checks against the index."""

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import xxhash

from data.base.console import notice
from data.base.errors import DataError, plain_os_errors
from data.mds.shard import check_header, file_defect
from data.secrets.redaction import without_login


class ShardFiles:
    """The files of all shards, identified by the number of the shard.

    Compressed shards are decompressed next to the compressed files, or in `work` if `work` is another folder.
    """

    def __init__(
        self, folder: Path, remote: str | None, shards: list[Any], hint: str, *, work: Path, cache_dir: str
    ) -> None:
        """Errors about a damaged file end with `hint`, which describes how to replace the file."""
        self.folder, self.remote, self.shards, self.hint = folder, remote, shards, hint
        self.work = work
        """The folder in which shards, locks and records are written."""
        self._cache_dir = cache_dir
        for shard in shards:
            shard.dirname = str(folder)
        if work != folder:
            self._decompress_elsewhere()

    @property
    def name(self) -> str:
        return without_login(self.remote) if self.remote else str(self.folder)

    def file(self, number: int) -> Path:
        """Path of the shard's decompressed file, which may not exist yet."""
        return Path(self.shards[number].dirname, self.shards[number].raw_data.basename)

    def here(self) -> list[int]:
        """Numbers of the shards whose file is local."""
        return [number for number in range(len(self.shards)) if self.file(number).exists()]

    def sent(self, number: int) -> Any:
        """The index's FileInfo for the file that the remote has: the compressed file if there is one, else the
        uncompressed file."""
        return self.shards[number].zip_data or self.shards[number].raw_data

    def packed(self, number: int) -> Path:
        """Local path of the file that the remote contains: the compressed file if there is one, else the uncompressed
        file. The local file may not exist."""
        return self.folder / self.sent(number).basename

    def check(self, number: int, *, hashes: bool = True) -> None:
        """Raises DataError if the shard's size, header or hash does not match the index."""
        defect = self.defect(number, hashes=hashes)
        if defect is not None:
            raise DataError(f"{self.file(number)} {defect}: {self.hint_of(number)}")

    def defect(self, number: int, *, hashes: bool = True) -> str | None:
        """A message that describes how the shard's size, header or hash differs from the index; None if they match. The
        message can be appended to the name of the file."""
        defect = file_defect(self.file(number), self.shards[number].raw_data, hashes=hashes)
        if defect is not None:
            return defect
        try:
            check_header(self.file(number), self.shards[number])
        except DataError as error:
            return str(error)
        return None

    def hint_of(self, number: int) -> str:
        """A hint for error messages that describes how to replace the shard's file."""
        if self.shards[number].dirname == str(self.folder):
            return self.hint
        return "delete the file to decompress the shard again"

    def plain_errors(self, what: str) -> AbstractContextManager[None]:
        """Convert errors of the local file system into errors that suggest a fix."""
        if self.remote is not None:
            return plain_local_errors(self.folder, what)
        if self.work != self.folder:
            return plain_os_errors(
                f"cache_dir is {self._cache_dir!r}, but it",
                "set cache_dir to another folder",
                needed_for=f"decompressed shards of {self.folder}",
            )
        return plain_os_errors(
            str(self.folder),
            "copy the folder to a writable disk, or write its shards without compression",
            needed_for=what,
        )

    def _decompress_elsewhere(self) -> None:
        packed = [shard for shard in self.shards if shard.compression]
        packed = [shard for shard in packed if not (self.folder / shard.raw_data.basename).exists()]
        for shard in packed:
            shard.dirname = str(self.work)
        if packed:
            notice(f"{self.folder} is read-only: its compressed shards are decompressed into {self.work}")


def work_folder(folder: Path, remote: str | None, index: bytes, cache_dir: str) -> Path:
    """The folder in which files are written: the folder itself, or a folder below cache_dir if the folder is
    read-only."""
    if remote is None and cache_dir and not os.access(folder, os.W_OK):
        name = xxhash.xxh3_64_hexdigest(os.path.realpath(folder).encode() + index)
        return Path(cache_dir) / f"read-only-{name}"
    return folder


def plain_local_errors(folder: Path, what: str) -> AbstractContextManager[None]:
    """Convert errors of the local file system about the local copy of a remote into errors that suggest a fix."""
    return plain_os_errors(f"local is {str(folder)!r}, but it", "set local to another folder", needed_for=what)
