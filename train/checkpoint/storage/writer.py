"""torch's writer of sharded checkpoints, which hashes what it writes while it writes it."""

import io
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter

from train.checkpoint.storage.digests import Digester, FileDigest


class HashingWriter(FileSystemWriter):
    """Writes this rank's tensors into a folder; rank 0 the index as well.

    `digests` has every file that this rank has written; `error` what the file system refused: torch replaces that by a
    RuntimeError of its zip writer.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.fs = self._files = _HashingFiles()

    @property
    def digests(self) -> dict[str, FileDigest]:
        return {name: digester.digest() for name, digester in self._files.digesters.items()}

    @property
    def error(self) -> OSError | None:
        return self._files.error


class _HashingFiles(FileSystem):
    def __init__(self) -> None:
        self.digesters: dict[str, Digester] = {}
        self.error: OSError | None = None

    @contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Generator[io.IOBase, None, None]:
        assert mode == "wb"
        name = Path(path).name
        self.digesters[name] = digester = Digester()
        try:
            with Path(path).open(mode, buffering=0) as file:
                yield _Hashed(file, digester, self)
        except OSError as error:
            self.error = self.error or error
            raise

    def rename(self, path: str | os.PathLike, new_path: str | os.PathLike) -> None:
        super().rename(path, new_path)
        self.digesters[Path(new_path).name] = self.digesters.pop(Path(path).name)


class _Hashed(io.RawIOBase):
    """A file opened for writing from its beginning to its end."""

    def __init__(self, file: Any, digester: Digester, files: _HashingFiles) -> None:
        self._file, self._digester, self._files = file, digester, files

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._digester.update(view)
        n_bytes = len(view)
        try:
            while len(view):
                view = view[self._file.write(view) :]
        except OSError as error:
            self._files.error = self._files.error or error
            raise
        return n_bytes

    def tell(self) -> int:
        return self._file.tell()

    def fileno(self) -> int:
        return self._file.fileno()

    def flush(self) -> None:
        pass  # nothing is held back
