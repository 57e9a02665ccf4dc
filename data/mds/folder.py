"""An MDS folder, here or remote: its index is validated at opening, its shards are checked once and brought on demand.

Format, decoding, hashes, compression and the download itself are Streaming's.
"""

import json
import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import xxhash

from data.base.console import notice
from data.base.errors import ConfigError, DataError, os_errors_named
from data.base.redaction import without_login
from data.examples.forms import TEXT_FORMS
from data.mds.fetcher import ShardFetcher
from data.mds.index import bring_index, need_index, parse_index
from data.mds.remote.fetch import check_scheme
from data.mds.row import ROW_FORMS
from data.mds.shard_files import ShardFiles, plain_local_errors, work_folder
from data.mds.writer import INDEX, MANIFEST


class MdsFolder:
    """The samples of an MDS folder, numbered from 0 through all shards. Workers that are forked later can use it.

    With a remote, shards are brought into `folder` when they are asked for, and stay there until they are evicted.
    Compressed ones are decompressed beside themselves, or below `cache_dir` when the folder is read-only.
    """

    def __init__(self, folder: Path, remote: str | None, index: bytes, hint: str, cache_dir: str = "") -> None:
        """`folder` and `remote` with the split; `hint` ends the error of a damaged file."""
        self.folder, self.remote, self.hint = folder, remote, hint
        work = work_folder(folder, remote, index, cache_dir)
        try:
            parsed = parse_index(index, (*ROW_FORMS, *TEXT_FORMS))
        except DataError as error:
            raise DataError(f"{folder / INDEX} {error}: {hint}") from None
        for note in parsed.notes:
            notice(f"{self.name}: {note}")
        self.shards, self.columns = parsed.shards, parsed.columns
        self._files = ShardFiles(folder, remote, self.shards, hint, work=work, cache_dir=cache_dir)
        self._fetcher = ShardFetcher(self._files)
        self.shard_sizes = np.array([shard.samples for shard in self.shards], dtype=np.int64)
        """Samples of each shard, int64."""
        self.n_samples = int(self.shard_sizes.sum())
        self.n_bytes = sum(shard.raw_data.bytes for shard in self.shards)
        """Of all shards, decompressed."""

    @classmethod
    def open(
        cls, *, local: str | None, remote: str | None, split: str | None, cache_dir: str, hint: str | None = None
    ) -> "MdsFolder":
        """Reads the index (and brings it and the manifest), no shard.

        A remote without `local` gets a folder below cache_dir. Raises ConfigError when there is no index or it cannot
        be read, DataError when it cannot be believed, or is not the one whose shards are in `local`.
        """
        part = PurePosixPath(split or "")
        if part.is_absolute() or ".." in part.parts:
            raise ConfigError(f"is {split!r}, but it must be a folder below the data", key="split")
        if local is None:
            assert remote is not None
            # The saved config of a run is without a login, and has to find the same folder.
            named = without_login(remote.rstrip("/"))
            local = str(Path(cache_dir) / f"remote-{xxhash.xxh3_64_hexdigest(named)}")
        folder = Path(local) / part
        if remote is None or os.path.realpath(remote) == os.path.realpath(local):
            remote = None
            with os_errors_named(f"is {local!r}, but it", key="local"):
                need_index(folder, "local", local, split)
            hint = hint or "write the folder again, or copy it again"
        else:
            check_scheme(remote)
            value, remote = remote, "/".join((remote.rstrip("/"), *part.parts))
            with plain_local_errors(folder, INDEX):
                bring_index(folder, remote, value, split)
            hint = f"delete it, and it is downloaded from {remote} again"
        with os_errors_named(folder / INDEX, hint=hint, as_error=DataError):
            return cls(folder, remote, (folder / INDEX).read_bytes(), hint, cache_dir)

    @property
    def name(self) -> str:
        return without_login(self.remote) if self.remote else str(self.folder)

    @property
    def is_rows(self) -> bool:
        """Are the samples rows already, or still to be prepared?"""
        return any(set(form) <= set(self.columns) for form in ROW_FORMS)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the index's content: columns, and each shard's samples, size and hashes."""
        shards = [(shard.samples, shard.raw_data.bytes, shard.raw_data.hashes) for shard in self.shards]
        return xxhash.xxh3_128_hexdigest(json.dumps([self.columns, shards], sort_keys=True).encode())

    @cached_property
    def manifest(self) -> dict[str, Any] | None:
        """What `prepare` wrote of the rows; None for folders of others."""
        file = self.folder / MANIFEST
        try:
            manifest = json.loads(file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{file} cannot be read ({error}): {self.hint}") from None
        return manifest if isinstance(manifest, dict) else None

    @cached_property
    def ends(self) -> np.ndarray:
        """Where each shard's samples end, int64."""
        return np.cumsum(self.shard_sizes)

    def place(self, sample: int) -> tuple[int, int]:
        """The shard, and the sample's number in it."""
        shard = int(np.searchsorted(self.ends, sample, side="right"))
        return shard, sample - int(self.ends[shard] - self.shard_sizes[shard])

    def read(self, sample: int) -> dict[str, Any]:
        """Column -> value. Brings the shard first when it is not here.

        Raises DataError when that fails, or the shard is gone or damaged since it was checked.
        """
        shard, place = self.place(sample)
        self.ensure(shard)
        try:
            return self.shards[shard][place]
        except Exception as error:  # whatever a damaged file makes of the decoder
            raise self.damaged(sample, f"{type(error).__name__}: {error}") from None

    def sample_bytes(self, sample: int) -> int:
        """How large the sample is, encoded. Raises what `read` does."""
        shard, place = self.place(sample)
        self.ensure(shard)
        try:
            with self.file(shard).open("rb") as file:
                file.seek(4 * (1 + place))
                start, end = np.frombuffer(file.read(8), np.uint32).tolist()
        except (OSError, ValueError) as error:
            raise self.damaged(sample, f"{type(error).__name__}: {error}") from None
        return end - start

    def damaged(self, sample: int, why: str, hint: str | None = None) -> DataError:
        shard, place = self.place(sample)
        return DataError(
            f"row {place} of {self.file(shard)} cannot be read ({why}): {hint or self._files.hint_of(shard)}"
        )

    # The shards' files.

    def file(self, shard: int) -> Path:
        """The shard's file, decompressed; it may not be here yet."""
        return self._files.file(shard)

    def here(self) -> list[int]:
        """The shards that are in the folder."""
        return self._files.here()

    def bytes_of(self, shard: int) -> int:
        """Of the shard, decompressed."""
        return self.shards[shard].raw_data.bytes

    def defect(self, shard: int) -> str | None:
        """What of the shard's size, header or hash is not what the index says, to stand after the file's name."""
        return self._files.defect(shard)

    def check(self) -> None:
        """Verifies the shards here, each once, and that the remote has the others. Raises DataError for the first that
        is not right."""
        self._fetcher.check()

    def ensure(self, shard: int) -> None:
        """The shard is here afterwards, whole and right. Raises DataError within a minute of the last byte received."""
        self._fetcher.ensure(shard)

    def prefetch(self, shards: Iterable[int]) -> None:
        """Begins to bring the shards, in that order, in threads of this process. What fails is raised by `read`."""
        self._fetcher.prefetch(shards)

    def evict(self, shard: int) -> None:
        """Deletes the shard's file, which the remote has."""
        self._fetcher.evict(shard)

    def n_downloaded(self) -> int:
        """How many shards this machine's processes have ever brought into the folder."""
        return self._fetcher.n_downloaded()
