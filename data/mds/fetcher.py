"""Fetch a folder's shards on demand: download or decompress them, and verify them.

Streaming's downloaders are used, with our own locks, time limits and checks. Any number of ranks and workers on a node
may request the same shard. One of these processes fetches the shard, and the others wait with a time limit.
"""

import os
import platform
import queue
import shutil
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from data.base.errors import DataError, ReadError
from data.base.locks import exclusive_unless
from data.mds.records import CheckedShards, DownloadLog
from data.mds.remote.deadlines import Silence
from data.mds.remote.fetch import fetch
from data.mds.remote.listing import remote_has
from data.mds.shard import check_header, decompress, file_defect
from data.mds.shard_files import ShardFiles
from data.stores.failures import FetchError

_AHEAD = 4
"""Number of shards that are fetched in parallel."""


class ShardFetcher:
    """Fetches the shards of a folder, identified by their numbers. Workers that are forked later can use the same
    object."""

    def __init__(self, files: ShardFiles) -> None:
        self._files = files
        self._checked = CheckedShards(files)
        # Each machine has its own subfolder. Otherwise, machines could delete each other's downloads on a shared disk
        # whose locks are local to each machine.
        self._downloads = files.work / ".downloads" / platform.node()
        self._log = DownloadLog(self._downloads / "downloaded.jsonl")
        self._ready: set[int] = set()
        self._ahead: _Prefetcher | None = None

    def check(self) -> None:
        """Check the size, header and hash of each local shard once, and check that the remote contains the other shards
        with the right sizes.

        Raises DataError for the first defect.
        """
        here = self._files.here()
        elsewhere = sorted(set(range(len(self._files.shards))) - set(here))
        self._checked.check(here)
        self._ready.update(here)
        to_fetch = [number for number in elsewhere if not self._files.packed(number).exists()]
        if to_fetch:
            self._check_remote(to_fetch)

    def ensure(self, number: int) -> None:
        """Make sure that the shard is local, complete and verified. If the shard is not local, this process fetches the
        shard, or waits until another process has fetched it.

        Raises DataError if the shard cannot be fetched. If a download stalls, the error is raised at most a minute
        after the last byte was received.
        """
        if self._is_ready(number):
            return
        if not self._files.file(number).exists():
            self._fetch_unless_another_does(number)
        # The hash is not checked again, because a fetched shard gets its final name only after its hash was verified.
        self._files.check(number, hashes=False)
        self._ready.add(number)

    def prefetch(self, shards: Iterable[int]) -> None:
        """Start to fetch the shards in the given order, in background threads. If a shard cannot be fetched, `ensure`
        raises the error."""
        wanted = [number for number in shards if not self._is_ready(number)]
        if not wanted:
            return
        if self._ahead is None or self._ahead.pid != os.getpid():
            self._ahead = _Prefetcher(self.ensure)
        self._ahead.request(wanted)

    def evict(self, number: int) -> None:
        """Delete the shard's local file. The remote must contain the shard."""
        assert self._files.remote is not None
        self._ready.discard(number)
        self._files.file(number).unlink(missing_ok=True)

    def n_downloaded(self) -> int:
        """Number of shards that processes on this machine have downloaded into the folder so far."""
        return self._log.count()

    def _is_ready(self, number: int) -> bool:
        """Whether the shard is verified and still local. A downloaded shard may have been evicted by any process."""
        return number in self._ready and (self._files.remote is None or self._files.file(number).exists())

    def _check_remote(self, to_fetch: list[int]) -> None:
        remote = self._files.remote
        if remote is None:
            others = f" (and {len(to_fetch) - 1} more)" if len(to_fetch) > 1 else ""
            raise DataError(f"{self._files.packed(to_fetch[0])} is missing{others}: {self._files.hint}")
        infos = [self._files.sent(number) for number in to_fetch]
        if not remote_has(remote, tuple((info.basename, info.bytes) for info in infos)):
            self.ensure(to_fetch[0])
            self.ensure(to_fetch[-1])

    def _fetch_unless_another_does(self, number: int) -> None:
        file, downloads = self._files.file(number), self._downloads / str(number)
        silence = Silence(downloads)
        with self._files.plain_errors(file.name):
            with exclusive_unless(self._files.work / ".locks" / str(number), silence.is_long) as held:
                if not held:
                    raise DataError(
                        f"{file} was not downloaded: another process holds the lock of this file, but has stopped "
                        f"writing: check that {self._files.name} responds, and start again"
                    )
                if not file.exists():
                    self._fetch(number, downloads, silence)

    def _fetch(self, number: int, downloads: Path, silence: Silence) -> None:
        """Fetch the shard while its lock is held. Files that are already in `downloads` were written by a killed
        process."""
        file = self._files.file(number)
        shutil.rmtree(downloads, ignore_errors=True)
        try:
            whole = self._whole(number, downloads, silence)
            try:
                check_header(whole, self._files.shards[number])
            except DataError as error:
                raise DataError(f"{self._files.packed(number)} {error}: write the folder again") from None
            file.parent.mkdir(parents=True, exist_ok=True)
            whole.rename(file)
            self._checked.add(number)
        finally:
            shutil.rmtree(downloads, ignore_errors=True)

    def _whole(self, number: int, downloads: Path, silence: Silence) -> Path:
        """The shard's file in `downloads`, decompressed if needed, and verified."""
        shard = self._files.shards[number]
        packed = self._packed(number, downloads, silence)
        if not shard.compression:
            return packed
        whole = decompress(packed, downloads / "whole", shard.compression)
        defect = file_defect(whole, shard.raw_data)
        if defect is not None:
            raise DataError(f"{packed}: the decompressed shard {defect}: write the folder again")
        return whole

    def _packed(self, number: int, downloads: Path, silence: Silence) -> Path:
        """The shard's file in the form in which the remote stores it, verified. The file is downloaded if it is not
        local."""
        packed, sent = self._files.packed(number), self._files.sent(number)
        if packed.exists():
            defect = file_defect(packed, sent)
            if defect is not None:
                raise DataError(f"{packed} {defect}: {self._files.hint}")
            return packed
        if self._files.remote is None:
            raise DataError(f"{packed} is missing: {self._files.hint}")
        url = f"{self._files.remote}/{sent.basename}"
        try:
            packed = fetch(url, downloads, lambda file: file_defect(file, sent), silence)
        except FetchError as error:
            raise ReadError(
                f"{url} cannot be downloaded ({error}): check that the remote responds and contains this shard, "
                "and start again"
            ) from None
        self._log.add(sent)
        return packed


class _Prefetcher:
    """Threads that fetch shards in the requested order. The threads exist only in the process that started them."""

    def __init__(self, ensure: Callable[[int], None]) -> None:
        self.pid = os.getpid()
        self._requested: set[int] = set()
        self._queue: queue.SimpleQueue[int] = queue.SimpleQueue()
        for _ in range(_AHEAD):
            threading.Thread(target=self._run, args=(ensure,), daemon=True).start()

    def request(self, shards: Iterable[int]) -> None:
        for number in shards:
            if number not in self._requested:
                self._requested.add(number)
                self._queue.put(number)

    def _run(self, ensure: Callable[[int], None]) -> None:
        while True:
            number = self._queue.get()
            # The error is ignored here, because it is raised again when the shard is read.
            with suppress(Exception):
                ensure(number)
                self._requested.discard(number)  # the shard may be requested again after an eviction
