"""Brings a folder's shards on demand: downloaded or decompressed, and verified.

Locks, time limits and what is believed are ours: any number of ranks and workers of a node may ask for a shard at once,
one brings it, and none waits for ever.
"""

import os
import platform
import queue
import shutil
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from data.base.errors import DataError
from data.base.locks import exclusive_unless
from data.mds.records import CheckedShards, DownloadLog
from data.mds.remote.deadlines import Silence
from data.mds.remote.fetch import fetch
from data.mds.remote.listing import remote_has
from data.mds.shard import check_header, decompress, file_defect
from data.mds.shard_files import ShardFiles
from data.stores.failures import FetchError

_AHEAD = 4
"""Shards that are brought at a time."""


class ShardFetcher:
    """Brings the shards of a folder, by their numbers. Workers that are forked later can use it."""

    def __init__(self, files: ShardFiles) -> None:
        self._files = files
        self._checked = CheckedShards(files)
        # Of this machine alone: on a shared disk whose locks do not reach others, they must not clear it away.
        self._downloads = files.work / ".downloads" / platform.node()
        self._log = DownloadLog(self._downloads / "downloaded.jsonl")
        self._ready: set[int] = set()
        self._ahead: _Prefetcher | None = None

    def check(self) -> None:
        """Of the shards here: size, header and hash, once. Of the others: whether the remote has them, of what size.

        Raises DataError for the first that is not right.
        """
        here = self._files.here()
        elsewhere = sorted(set(range(len(self._files.shards))) - set(here))
        self._checked.check(here)
        self._ready.update(here)
        to_bring = [number for number in elsewhere if not self._files.packed(number).exists()]
        if to_bring:
            self._check_remote(to_bring)

    def ensure(self, number: int) -> None:
        """The shard is here afterwards, whole and right: another process may bring it, or this one does.

        Raises DataError within a minute of the last byte that came.
        """
        if self._is_ready(number):
            return
        if not self._files.file(number).exists():
            self._bring_unless_another_does(number)
        # Its hash is right: a shard that is brought gets its name afterwards.
        self._files.check(number, hashes=False)
        self._ready.add(number)

    def prefetch(self, shards: Iterable[int]) -> None:
        """Begins to bring the shards, in that order, in threads of this process. What fails is raised by `ensure`."""
        wanted = [number for number in shards if not self._is_ready(number)]
        if not wanted:
            return
        if self._ahead is None or self._ahead.pid != os.getpid():
            self._ahead = _Prefetcher(self.ensure)
        self._ahead.ask(wanted)

    def evict(self, number: int) -> None:
        """Deletes the shard's file, which the remote has."""
        assert self._files.remote is not None
        self._ready.discard(number)
        self._files.file(number).unlink(missing_ok=True)

    def n_downloaded(self) -> int:
        """How many shards this machine's processes have ever downloaded into the folder."""
        return self._log.count()

    def _is_ready(self, number: int) -> bool:
        """Known to be right, and still here: what came from a remote may have been evicted by any process."""
        return number in self._ready and (self._files.remote is None or self._files.file(number).exists())

    def _check_remote(self, to_bring: list[int]) -> None:
        remote = self._files.remote
        if remote is None:
            others = f" (and {len(to_bring) - 1} more)" if len(to_bring) > 1 else ""
            raise DataError(f"{self._files.packed(to_bring[0])} is not there{others}: {self._files.hint}")
        infos = [self._files.sent(number) for number in to_bring]
        if not remote_has(remote, tuple((info.basename, info.bytes) for info in infos)):
            self.ensure(to_bring[0])
            self.ensure(to_bring[-1])

    def _bring_unless_another_does(self, number: int) -> None:
        file, downloads = self._files.file(number), self._downloads / str(number)
        silence = Silence(downloads)
        with self._files.plain_errors(file.name):
            with exclusive_unless(self._files.work / ".locks" / str(number), silence.is_long) as held:
                if not held:
                    raise DataError(
                        f"{file} does not come: another process holds its download and has written nothing for a "
                        f"while: look whether {self._files.name} answers, and start again"
                    )
                if not file.exists():
                    self._bring(number, downloads, silence)

    def _bring(self, number: int, downloads: Path, silence: Silence) -> None:
        """Under the shard's lock: what lies in `downloads` is a dead process's."""
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
        """The shard's file in `downloads`, decompressed where it is compressed, and verified."""
        shard = self._files.shards[number]
        packed = self._packed(number, downloads, silence)
        if not shard.compression:
            return packed
        whole = decompress(packed, downloads / "whole", shard.compression)
        defect = file_defect(whole, shard.raw_data)
        if defect is not None:
            raise DataError(f"{packed}, decompressed, {defect}: write the folder again")
        return whole

    def _packed(self, number: int, downloads: Path, silence: Silence) -> Path:
        """The shard's file as it was sent, verified: that of the folder, or downloaded."""
        packed, sent = self._files.packed(number), self._files.sent(number)
        if packed.exists():
            defect = file_defect(packed, sent)
            if defect is not None:
                raise DataError(f"{packed} {defect}: {self._files.hint}")
            return packed
        if self._files.remote is None:
            raise DataError(f"{packed} is not there: {self._files.hint}")
        url = f"{self._files.remote}/{sent.basename}"
        try:
            packed = fetch(url, downloads, lambda file: file_defect(file, sent), silence)
        except FetchError as error:
            raise DataError(
                f"{url} cannot be downloaded ({error}): look whether the remote answers and the shard is there, "
                "and start again"
            ) from None
        self._log.add(sent)
        return packed


class _Prefetcher:
    """Threads that bring shards in the order they are asked for, in the process in which they were made."""

    def __init__(self, ensure: Callable[[int], None]) -> None:
        self.pid = os.getpid()
        self._asked: set[int] = set()
        self._queue: queue.SimpleQueue[int] = queue.SimpleQueue()
        for _ in range(_AHEAD):
            threading.Thread(target=self._run, args=(ensure,), daemon=True).start()

    def ask(self, shards: Iterable[int]) -> None:
        for number in shards:
            if number not in self._asked:
                self._asked.add(number)
                self._queue.put(number)

    def _run(self, ensure: Callable[[int], None]) -> None:
        while True:
            number = self._queue.get()
            # Whoever reads the shard meets the failure again, and raises it.
            with suppress(Exception):
                ensure(number)
                self._asked.discard(number)  # once it is evicted, it may be asked for again
