"""An MDS folder, local or remote. When the folder is opened, its index is validated.

Shards are checked once, and fetched on demand. Streaming's code is used for the format, decoding, hashes, compression
and downloads.
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
from data.examples.forms import TEXT_FORMS
from data.mds.fetcher import ShardFetcher
from data.mds.index import fetch_index, need_index, parse_index
from data.mds.remote.fetch import check_scheme
from data.mds.row import ROW_FORMS
from data.mds.shard_files import ShardFiles, plain_local_errors, work_folder
from data.mds.writer import INDEX, MANIFEST
from data.secrets.redaction import without_login


class MdsFolder:
    """The samples of an MDS folder, numbered from 0 over all shards. Workers that are forked later can use the same
    object.

    If there is a remote, shards are downloaded into `folder` on demand and stay there until they are evicted.
    Compressed shards are decompressed next to the compressed files, or below `cache_dir` if the folder is read-only.
    """

    def __init__(self, folder: Path, remote: str | None, index: bytes, hint: str, cache_dir: str = "") -> None:
        """`folder` and `remote` include the split. Errors about a damaged file end with `hint`."""
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
        """Number of samples in each shard, int64."""
        self.n_samples = int(self.shard_sizes.sum())
        self.n_bytes = sum(shard.raw_data.bytes for shard in self.shards)
        """Total size of all shards in bytes, when decompressed."""

    @classmethod
    def open(
        cls, *, local: str | None, remote: str | None, split: str | None, cache_dir: str, hint: str | None = None
    ) -> "MdsFolder":
        """Read the index. If there is a remote, the index and the manifest are downloaded first. No shard is
        downloaded.

        If `local` is not given, the remote is downloaded into a folder below cache_dir. Raises ConfigError if the index
        does not exist or cannot be read, and DataError if the index is invalid or differs from the index of the shards
        in `local`.
        """
        part = PurePosixPath(split or "")
        if part.is_absolute() or ".." in part.parts:
            raise ConfigError(f"is {split!r}, but it must be a subfolder of the dataset", key="split")
        if local is None:
            assert remote is not None
            # The name of the folder does not depend on a login in the URL. A run's saved config contains no login, but
            # must result in the same folder.
            named = without_login(remote.rstrip("/"))
            local = str(Path(cache_dir) / f"remote-{xxhash.xxh3_64_hexdigest(named)}")
        folder = Path(local) / part
        if remote is None or os.path.realpath(remote) == os.path.realpath(local):
            remote = None
            with os_errors_named(f"is {local!r}, but it", key="local"):
                need_index(folder, "local", local, split)
            hint = hint or "write or copy the folder again"
        else:
            check_scheme(remote)
            value, remote = remote, "/".join((remote.rstrip("/"), *part.parts))
            with plain_local_errors(folder, INDEX):
                fetch_index(folder, remote, value, split)
            hint = f"delete the file to download it from {remote} again"
        with os_errors_named(folder / INDEX, hint=hint, as_error=DataError):
            return cls(folder, remote, (folder / INDEX).read_bytes(), hint, cache_dir)

    @property
    def name(self) -> str:
        return without_login(self.remote) if self.remote else str(self.folder)

    @property
    def is_rows(self) -> bool:
        """Whether the samples are prepared rows. Other samples must be tokenized first."""
        return any(set(form) <= set(self.columns) for form in ROW_FORMS)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the index's content: columns, and each shard's samples, size and hashes."""
        shards = [(shard.samples, shard.raw_data.bytes, shard.raw_data.hashes) for shard in self.shards]
        return xxhash.xxh3_128_hexdigest(json.dumps([self.columns, shards], sort_keys=True).encode())

    @cached_property
    def manifest(self) -> dict[str, Any] | None:
        """The manifest that `prepare` wrote; None for folders from other programs."""
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
        """For each shard, the index of its last sample plus one; int64."""
        return np.cumsum(self.shard_sizes)

    def place(self, sample: int) -> tuple[int, int]:
        """The number of the shard that contains the sample, and the sample's index in the shard."""
        shard = int(np.searchsorted(self.ends, sample, side="right"))
        return shard, sample - int(self.ends[shard] - self.shard_sizes[shard])

    def read(self, sample: int) -> dict[str, Any]:
        """The sample as a mapping from columns to values. If the sample's shard is not local, the shard is fetched.

        Raises DataError if the shard cannot be fetched, or was deleted or damaged after it was checked.
        """
        shard, place = self.place(sample)
        self.ensure(shard)
        try:
            return self.shards[shard][place]
        except Exception as error:  # a damaged file can cause any error in the decoder
            raise self.damaged(sample, f"{type(error).__name__}: {error}") from None

    def sample_bytes(self, sample: int) -> int:
        """Size of the encoded sample in bytes. Raises the same errors as `read`."""
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

    # Files of the shards

    def file(self, shard: int) -> Path:
        """Path of the shard's decompressed file, which may not exist yet."""
        return self._files.file(shard)

    def here(self) -> list[int]:
        """Numbers of the shards that are local."""
        return self._files.here()

    def bytes_of(self, shard: int) -> int:
        """Size of the decompressed shard in bytes."""
        return self.shards[shard].raw_data.bytes

    def defect(self, shard: int) -> str | None:
        """A message that describes how the shard's size, header or hash differs from the index; None if they match. The
        message can be appended to the name of the file."""
        return self._files.defect(shard)

    def check(self) -> None:
        """Verify each local shard once, and check that the remote contains the other shards. Raises DataError for the
        first defect."""
        self._fetcher.check()

    def ensure(self, shard: int) -> None:
        """Make sure that the shard is local, complete and verified. Raises DataError if the shard cannot be fetched. If
        a download stalls, the error is raised at most a minute after the last byte was received."""
        self._fetcher.ensure(shard)

    def prefetch(self, shards: Iterable[int]) -> None:
        """Start to fetch the shards in the given order, in background threads. If a shard cannot be fetched, `read`
        raises the error."""
        self._fetcher.prefetch(shards)

    def evict(self, shard: int) -> None:
        """Delete the shard's local file. The remote must contain the shard."""
        self._fetcher.evict(shard)

    def n_downloaded(self) -> int:
        """Number of shards that processes on this machine have downloaded into the folder so far."""
        return self._fetcher.n_downloaded()
