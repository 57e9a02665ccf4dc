"""torch's writer of sharded checkpoints, extended to hash the data while it is written."""

import io
import math
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future
from torch.serialization import get_crc32_options, set_crc32_options

from train.checkpoint.storage.digests import BLOCK_BYTES, Digester, FileDigest


class HashingWriter(FileSystemWriter):
    """Writes this rank's tensors into a folder; rank 0 also writes the index.

    `digests` contains the hashes of every file that this rank has written. `error` is the OSError of a failed write. It
    is recorded because torch's zip writer raises a RuntimeError instead.
    """

    def __init__(self, folder: Path, *, rest: Callable[[], object] = lambda: None) -> None:
        """rest: called after each write, for example to pause."""
        super().__init__(folder)
        self.fs = self._files = _HashingFiles(rest)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write small tensors first, so that tensors that every rank reads, such as Adam's step counts, are stored in
        few blocks."""
        with _without_crc32():
            return super().write_data(replace(plan, items=sorted(plan.items, key=_numel)), planner)

    @property
    def digests(self) -> dict[str, FileDigest]:
        return {name: digester.digest() for name, digester in self._files.digesters.items()}

    @property
    def error(self) -> OSError | None:
        return self._files.error


@contextmanager
def _without_crc32() -> Generator[None]:
    """Omit the checksums from torch's zips. They are never compared, because the manifest has hashes, and computing
    them takes as long as hashing (16 ms for 16 MB) and blocks all other Python threads."""
    before = get_crc32_options()
    set_crc32_options(False)
    try:
        yield
    finally:
        set_crc32_options(before)


def _numel(item: WriteItem) -> int:
    return math.prod(item.tensor_data.chunk.sizes) if item.tensor_data is not None else 0


class _HashingFiles(FileSystem):
    def __init__(self, rest: Callable[[], object]) -> None:
        self.rest = rest
        self.digesters: dict[str, Digester] = {}
        self.error: OSError | None = None

    @contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Generator[io.IOBase]:
        assert mode == "wb"
        name = Path(path).name
        self.digesters[name] = digester = Digester()
        try:
            with Path(path).open(mode, buffering=0) as file:
                with _Buffered(_Hashed(file, digester, self)) as stream:
                    yield stream
        except OSError as error:
            self.error = self.error or error
            raise

    def rename(self, path: str | os.PathLike, new_path: str | os.PathLike) -> None:
        super().rename(path, new_path)
        self.digesters[Path(new_path).name] = self.digesters.pop(Path(path).name)


class _Buffered(io.BufferedWriter):
    """Buffers writes, because torch writes a tensor in about 40 calls, most of which write only a few bytes."""

    def __init__(self, raw: "_Hashed") -> None:
        super().__init__(raw, BLOCK_BYTES)
        self._rest = raw.files.rest

    def write(self, data: Any) -> int:
        written = super().write(data)
        self._rest()
        return written


class _Hashed(io.RawIOBase):
    """A file that is hashed while it is written sequentially."""

    def __init__(self, file: Any, digester: Digester, files: _HashingFiles) -> None:
        self.files = files
        self._file, self._digester = file, digester

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), BLOCK_BYTES):
            self._write(view[start : start + BLOCK_BYTES])
            self.files.rest()
        return len(view)

    def _write(self, part: memoryview) -> None:
        """Hash and write a part that is small enough to stay in the CPU cache."""
        self._digester.update(part)
        try:
            while len(part):
                part = part[self._file.write(part) :]
        except OSError as error:
            self.files.error = self.files.error or error
            raise

    def tell(self) -> int:
        return self._file.tell()

    def fileno(self) -> int:
        return self._file.fileno()
