"""An MDS folder, here or remote: its index is validated at opening, its shards are checked once and brought on demand.

Format, decoding, hashes, compression and the download itself are Streaming's. Locks, time limits and what is believed
are ours: any number of ranks and workers of a node may ask for a shard at once, one brings it, and none waits for ever.
"""

import json
import os
import platform
import queue
import shutil
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache, cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import xxhash
from tqdm import tqdm

from data.base.errors import ConfigError, DataError, plain_os_errors
from data.base.locks import exclusive, exclusive_unless, is_first
from data.mds.index import bring_index, need_index, parse_index
from data.mds.remote import FetchError, Silence, check_scheme, fetch, plain_local_errors, remote_has, say_once
from data.mds.shard import algorithm, check_header, decompress, file_defect
from data.mds.writer import INDEX, MANIFEST

COLUMNS = {"tokens": "ndarray:int32", "loss_mask": "ndarray:uint8", "lengths": "ndarray:int32"}
"""Of the rows that we write: the row's tokens, which of them are trained on, and the lengths of its documents."""
ROW_FORMS = (tuple(COLUMNS), ("input_ids", "labels"), ("tokens",))
"""Columns of samples that are rows already."""
TEXT_FORMS = (("prompt", "response"), ("prompt", "completion"), ("messages",), ("turns",), ("text",))
"""Columns of samples that have to be prepared."""
_AHEAD = 4
"""Shards that are brought at a time."""
CHECKED = "checked.jsonl"
"""Remembers the shards that were right: a line has a name, size, time of change, samples and hash."""


class MdsFolder:
    """The samples of an MDS folder, numbered from 0 through all shards. Workers that are forked later can use it.

    With a remote, shards are brought into `folder` when they are asked for, and stay there until they are evicted.
    Compressed ones are decompressed beside themselves, or below `cache_dir` when the folder is read-only.
    """

    def __init__(self, folder: Path, remote: str | None, index: bytes, hint: str, cache_dir: str = "") -> None:
        """`folder` and `remote` with the split; `way_out` ends what is said of a damaged file."""
        self.folder, self.remote, self.hint = folder, remote, hint
        self.work = folder
        """Where this class writes: shards, locks, and which shards were right."""
        if remote is None and cache_dir and not os.access(folder, os.W_OK):
            name = xxhash.xxh3_64_hexdigest(os.path.realpath(folder).encode() + index)
            self.work = Path(cache_dir) / f"read-only-{name}"
        self._cache_dir = cache_dir
        try:
            parsed = parse_index(index, (*ROW_FORMS, *TEXT_FORMS))
        except DataError as error:
            raise DataError(f"{folder / INDEX} {error}: {hint}") from None
        for note in parsed.notes if is_first() else ():
            say_once(f"{self.name}: {note}")
        self.shards, self.columns = parsed.shards, parsed.columns
        for shard in self.shards:
            shard.dirname = str(folder)
        if self.work != folder:
            self._decompress_elsewhere()
        self.shard_sizes = np.array([shard.samples for shard in self.shards], dtype=np.int64)
        """Samples of each shard, int64."""
        self.n_samples = int(self.shard_sizes.sum())
        self.n_bytes = sum(shard.raw_data.bytes for shard in self.shards)
        """Of all shards, decompressed."""
        self._ready: set[int] = set()
        self._ahead: _Ahead | None = None
        self._counted = 0, 0
        """Bytes of the log of downloads, and its lines."""

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
            raise ConfigError(f"split is {split!r}, but it must be a folder below the data")
        if local is None:
            assert remote is not None
            local = str(Path(cache_dir) / f"remote-{xxhash.xxh3_64_hexdigest(remote.rstrip('/'))}")
        folder = Path(local) / part
        if remote is None or os.path.realpath(remote) == os.path.realpath(local):
            remote = None
            try:
                need_index(folder, f"local is {local!r}", split)
            except OSError as error:
                raise ConfigError(f"local is {local!r}, but it cannot be read ({error.strerror})") from None
            hint = hint or "write the folder again, or copy it again"
        else:
            check_scheme(remote)
            origin = f"remote is {remote!r}"
            remote = "/".join((remote.rstrip("/"), *part.parts))
            with plain_local_errors(folder, INDEX):
                bring_index(folder, remote, origin, split)
            hint = f"delete it, and it is downloaded from {remote} again"
        try:
            return cls(folder, remote, (folder / INDEX).read_bytes(), hint, cache_dir)
        except OSError as error:
            raise DataError(f"{folder / INDEX} cannot be read ({error.strerror}): {hint}") from None

    @property
    def name(self) -> str:
        return self.remote or str(self.folder)

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

    def file(self, shard: int) -> Path:
        """The shard's file, decompressed; it may not be here yet."""
        return Path(self.shards[shard].dirname, self.shards[shard].raw_data.basename)

    def _decompress_elsewhere(self) -> None:
        packed = [shard for shard in self.shards if shard.compression]
        packed = [shard for shard in packed if not (self.folder / shard.raw_data.basename).exists()]
        for shard in packed:
            shard.dirname = str(self.work)
        if packed and is_first():
            say_once(f"{self.folder} cannot be written: its compressed shards are decompressed into {self.work}")

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
        return DataError(f"row {place} of {self.file(shard)} cannot be read ({why}): {hint or self._hint(shard)}")

    def check(self) -> None:
        """Of the shards here: size, header and hash, once. Of the others: whether the remote has them, of what size.

        Raises DataError for the first that is not right.
        """
        here = self.here()
        elsewhere = sorted(set(range(len(self.shards))) - set(here))
        self._check_here(here)
        to_bring = [number for number in elsewhere if not self._packed(number).exists()]
        if to_bring and self.remote is None:
            others = f" (and {len(to_bring) - 1} more)" if len(to_bring) > 1 else ""
            raise DataError(f"{self._packed(to_bring[0])} is not there{others}: {self.hint}")
        if to_bring:
            files = [_sent(self.shards[number]) for number in to_bring]
            assert self.remote is not None
            if not remote_has(self.remote, tuple((info.basename, info.bytes) for info in files)):
                self.ensure(to_bring[0])
                self.ensure(to_bring[-1])

    def ensure(self, number: int) -> None:
        """The shard is here afterwards, whole and right: another process may bring it, or this one does.

        Raises DataError within a minute of the last byte that came.
        """
        if self._is_ready(number):
            return
        file = self.file(number)
        downloads = self._downloads / str(number)
        if not file.exists():
            silence = Silence(downloads)
            with self._plain_errors(file.name):
                with exclusive_unless(self.work / ".locks" / str(number), silence.is_long) as held:
                    if not held:
                        raise DataError(
                            f"{file} does not come: another process holds its download and has written nothing for a "
                            f"while: look whether {self.name} answers, and start again"
                        )
                    if not file.exists():
                        self._bring(number, downloads, silence)
        # Its hash is right: a shard that is brought gets its name afterwards.
        self.check_file(number, hashes=False)
        self._ready.add(number)

    def prefetch(self, shards: Iterable[int]) -> None:
        """Begins to bring the shards, in that order, in threads of this process. What fails is raised by `read`."""
        wanted = [number for number in shards if not self._is_ready(number)]
        if not wanted:
            return
        if self._ahead is None or self._ahead.pid != os.getpid():
            self._ahead = _Ahead(self.ensure)
        self._ahead.ask(wanted)

    def _is_ready(self, number: int) -> bool:
        """Known to be right, and still here: what came from a remote may have been evicted by any process."""
        return number in self._ready and (self.remote is None or self.file(number).exists())

    def here(self) -> list[int]:
        """The shards that are in the folder."""
        return [number for number in range(len(self.shards)) if self.file(number).exists()]

    def bytes_of(self, number: int) -> int:
        """Of the shard, decompressed."""
        return self.shards[number].raw_data.bytes

    def evict(self, number: int) -> None:
        """Deletes the shard's file, which the remote has."""
        assert self.remote is not None
        self._ready.discard(number)
        self.file(number).unlink(missing_ok=True)

    def n_downloaded(self) -> int:
        """How many shards this machine's processes have ever brought into the folder."""
        size = self._log.stat().st_size if self._log.exists() else 0
        if size != self._counted[0]:  # asked after every batch
            self._counted = size, len(_lines(self._log))
        return self._counted[1]

    @property
    def _log(self) -> Path:
        return self._downloads / "downloaded.jsonl"

    @property
    def _downloads(self) -> Path:
        """Of this machine alone: on a shared disk whose locks do not reach others, they must not clear it away."""
        return self.work / ".downloads" / platform.node()

    def check_file(self, number: int, *, hashes: bool = True) -> None:
        """Raises DataError when the shard's size, header or hash is not what the index says."""
        defect = self.defect(number, hashes=hashes)
        if defect is not None:
            raise DataError(f"{self.file(number)} {defect}: {self._hint(number)}")

    def defect(self, number: int, *, hashes: bool = True) -> str | None:
        """The same, to stand after the file's name."""
        defect = file_defect(self.file(number), self.shards[number].raw_data, hashes=hashes)
        if defect is not None:
            return defect
        try:
            check_header(self.file(number), self.shards[number])
        except DataError as error:
            return str(error)
        return None

    def _hint(self, number: int) -> str:
        if self.shards[number].dirname == str(self.folder):
            return self.hint
        return "delete it, and it is decompressed again"

    def _plain_errors(self, what: str) -> AbstractContextManager[None]:
        """What the local file system refuses becomes an error that suggests a fix."""
        if self.remote is not None:
            return plain_local_errors(self.folder, what)
        if self.work != self.folder:
            return plain_os_errors(
                f"cache_dir is {self._cache_dir!r}, but it",
                "set it to a folder elsewhere",
                needed_for=f"decompressed shards of {self.folder}",
            )
        return plain_os_errors(
            str(self.folder), "copy it to a disk that can be written, or write it without compression", needed_for=what
        )

    def _packed(self, number: int) -> Path:
        return self.folder / _sent(self.shards[number]).basename

    def _check_here(self, here: list[int]) -> None:
        if here and not algorithm(self.shards[here[0]].raw_data) and is_first():
            say_once(f"{self.name} has no hashes in its index: of its shards only the sizes are checked")
        if self._unchecked(here):
            with suppress(OSError):
                self.work.mkdir(parents=True, exist_ok=True)
            can_write = os.access(self.work, os.W_OK)
            message = cache(lambda: is_first() and print(f"Waiting for another process that checks {self.folder}"))
            lock = exclusive(self.work / CHECKED, message) if can_write else nullcontext()
            with self._plain_errors(CHECKED), lock:
                unchecked = self._unchecked(here)
                for number in tqdm(unchecked, desc="Checking shards", unit="shard", delay=2, disable=not is_first()):
                    self.check_file(number)
                    if can_write:
                        self._remember(number)
        self._ready.update(here)

    def _unchecked(self, here: list[int]) -> list[int]:
        """Those of the shards whose hash has to be looked at. Raises DataError for one of a wrong size."""
        remembered = {line for folder in {self.folder, self.work} for line in _lines(folder / CHECKED)}
        unchecked = []
        for number in here:
            defect = file_defect(self.file(number), self.shards[number].raw_data, hashes=False)
            if defect is not None:
                raise DataError(f"{self.file(number)} {defect}: {self._hint(number)}")
            if self._state(number) not in remembered:
                unchecked.append(number)
        return unchecked

    def _state(self, number: int) -> str:
        shard, stat = self.shards[number], self.file(number).stat()
        digest = shard.raw_data.hashes.get(algorithm(shard.raw_data))
        return json.dumps([shard.raw_data.basename, stat.st_size, stat.st_mtime_ns, shard.samples, digest])

    def _remember(self, number: int) -> None:
        self._write_line(self.work / CHECKED, self._state(number))

    def _write_line(self, file: Path, line: str) -> None:
        # One short write to the end of a file, so that processes need not wait for one another. Where it cannot be
        # written (a disk that is full), the shard is checked each time, or not counted.
        with suppress(OSError), file.open("a") as opened:
            opened.write(line + "\n")

    def _bring(self, number: int, downloads: Path, silence: Silence) -> None:
        """Under the shard's lock: what lies in `downloads` is a dead process's."""
        shard, file, packed = self.shards[number], self.file(number), self._packed(number)
        shutil.rmtree(downloads, ignore_errors=True)
        try:
            whole = self._whole(number, downloads, silence)
            try:
                check_header(whole, shard)
            except DataError as error:
                raise DataError(f"{packed} {error}: write the folder again") from None
            file.parent.mkdir(parents=True, exist_ok=True)
            whole.rename(file)
            self._remember(number)
        finally:
            shutil.rmtree(downloads, ignore_errors=True)

    def _whole(self, number: int, downloads: Path, silence: Silence) -> Path:
        """The shard's file in `downloads`, from the compressed one where there is one, here or remote."""
        shard, packed = self.shards[number], self._packed(number)
        sent = _sent(shard)
        if packed.exists():
            defect = file_defect(packed, sent)
            if defect is not None:
                raise DataError(f"{packed} {defect}: {self.hint}")
        elif self.remote is None:
            raise DataError(f"{packed} is not there: {self.hint}")
        else:
            url = f"{self.remote}/{sent.basename}"
            try:
                packed = fetch(url, downloads, lambda file: file_defect(file, sent), silence)
                self._write_line(self._log, json.dumps([sent.basename, sent.bytes]))
            except FetchError as error:
                raise DataError(
                    f"{url} cannot be downloaded ({error}): look whether the remote answers and the shard is there, "
                    "and start again"
                ) from None
        if not shard.compression:
            return packed
        whole = decompress(packed, downloads / "whole", shard.compression)
        defect = file_defect(whole, shard.raw_data)
        if defect is not None:
            raise DataError(f"{packed}, decompressed, {defect}: write the folder again")
        return whole


class _Ahead:
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


def _sent(shard: Any) -> Any:
    """The FileInfo of what lies in the remote."""
    return shard.zip_data or shard.raw_data


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except (OSError, ValueError):
        return []
