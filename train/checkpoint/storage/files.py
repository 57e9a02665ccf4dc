"""Read the files of a checkpoint. Every block that is read is verified against the manifest."""

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data.base.errors import ConfigError
from train.checkpoint.storage.digests import BLOCK_BYTES, FileDigest, block_hash
from train.checkpoint.storage.manifest import (
    CorruptCheckpointError,
    Manifest,
    check_files,
    corrupt_block,
    is_plain_name,
    read_manifest,
    unreadable,
)

_READ_BLOCKS = 8
"""Number of blocks per read. These blocks together are larger than the disk's read-ahead, but still fit into the CPU
cache."""
_KEPT_BLOCKS = 16
"""Number of partly requested blocks that are kept in memory, so that they are not read again when their other parts are
requested."""


class CheckpointFiles:
    """The files of one checkpoint. If the checkpoint was written before manifests existed, the files are not
    verified."""

    def __init__(self, checkpoint: Path, *, verify: bool = True) -> None:
        """Raises CorruptCheckpointError if the manifest is damaged, or a file is missing or has the wrong size."""
        self.checkpoint = checkpoint
        self.manifest: Manifest | None = read_manifest(checkpoint)
        if self.manifest is not None:
            check_files(checkpoint, self.manifest)
        self._verify = verify and self.manifest is not None
        self.kept = _KeptBlocks()

    @contextmanager
    def open(self, name: str) -> Iterator["VerifiedFile"]:
        """Open a file. Raises CorruptCheckpointError if it cannot be read or is not part of the checkpoint."""
        if not is_plain_name(name):
            raise CorruptCheckpointError(self.checkpoint, name, "is outside the checkpoint's folder")
        digest = None
        if self.manifest is not None and self._verify:
            if name not in self.manifest.files:
                raise CorruptCheckpointError(self.checkpoint, name, "is not in the manifest")
            digest = self.manifest.files[name]
        try:
            handle = os.open(self.checkpoint / name, os.O_RDONLY)
        except OSError as error:
            raise unreadable(self.checkpoint, name, error) from None
        try:
            yield VerifiedFile(self, name, handle, digest)
        finally:
            os.close(handle)

    def read(self, name: str) -> bytes:
        """Read a small file as a whole. Raises CorruptCheckpointError."""
        with self.open(name) as file:
            data = bytearray(file.size)
            file.read_into(0, memoryview(data))
        return bytes(data)


class _KeptBlocks(threading.local):
    """The blocks of which a thread has requested only a part. Their memory is reused, because allocating memory takes
    longer than reading a block."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[tuple[str, int], memoryview] = OrderedDict()

    def get(self, name: str, number: int) -> memoryview | None:
        if (data := self._blocks.get((name, number))) is not None:
            self._blocks.move_to_end((name, number))
        return data

    def room(self) -> memoryview:
        """Return memory for a block. If the maximum number of blocks is reached, the memory of the least recently used
        block is reused."""
        if len(self._blocks) < _KEPT_BLOCKS:
            return memoryview(bytearray(BLOCK_BYTES))
        oldest = self._blocks.popitem(last=False)[1].obj
        assert isinstance(oldest, bytearray)
        return memoryview(oldest)

    def keep(self, name: str, number: int, data: memoryview) -> None:
        self._blocks[name, number] = data


def verify_files(
    checkpoint: Path, names: Iterable[str] | None = None, progress: Callable[[int], object] = lambda n_bytes: None
) -> None:
    """Read files of a checkpoint (by default, all files) from the disk, and verify them against the manifest.

    progress is called with the number of bytes read since the last call. Raises CorruptCheckpointError if a file is
    corrupt. Does nothing for a checkpoint without a manifest.
    """
    files = CheckpointFiles(checkpoint)
    for name in names if names is not None else files.manifest.files if files.manifest is not None else ():
        verify_file(files, name, progress)


def verify_file(files: CheckpointFiles, name: str, progress: Callable[[int], object] = lambda n_bytes: None) -> None:
    """Verify one file. Raises CorruptCheckpointError. Several threads may verify different files."""
    with files.open(name) as file:
        scratch = memoryview(bytearray(min(BLOCK_BYTES, file.size)))
        file.drop_cache()
        for start in range(0, file.size, BLOCK_BYTES):
            block = scratch[: min(BLOCK_BYTES, file.size - start)]
            file.read_into(start, block)
            progress(len(block))


def corruption(checkpoint: Path, names: Iterable[str]) -> ConfigError | None:
    """Return the error that verify_files raises, or None. Used by ranks that each verify some of the files."""
    try:
        verify_files(checkpoint, names)
    except ConfigError as error:
        return error
    return None


class VerifiedFile:
    """An open file of a checkpoint."""

    def __init__(self, files: CheckpointFiles, name: str, handle: int, digest: FileDigest | None) -> None:
        self.name = name
        self.size = os.fstat(handle).st_size
        self._files, self._handle, self._digest = files, handle, digest

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` with the bytes that begin at `offset`. Raises CorruptCheckpointError."""
        if self._digest is None:
            self._fill(offset, out)
            return
        while len(out):
            number, skip = divmod(offset, BLOCK_BYTES)
            left = self.size - offset
            if left <= 0:
                raise CorruptCheckpointError(self._files.checkpoint, self.name, "ends too early")
            if skip == 0 and len(out) >= min(BLOCK_BYTES, left):
                taken = self._read_blocks(offset, out[:left])
            else:
                block = self._block(number, min(BLOCK_BYTES, left + skip))[skip:]
                taken = min(len(block), len(out))
                out[:taken] = block[:taken]
            offset, out = offset + taken, out[taken:]

    def _read_blocks(self, offset: int, out: memoryview) -> int:
        """Read whole blocks into `out`, and return the number of bytes that were read. `offset` must be the beginning
        of a block."""
        taken = min(len(out), _READ_BLOCKS * BLOCK_BYTES)
        if offset + taken < self.size:
            taken -= taken % BLOCK_BYTES  # only a file's last block is shorter
        self._fill(offset, out[:taken])
        for start in range(0, taken, BLOCK_BYTES):
            self._compare((offset + start) // BLOCK_BYTES, out[start : min(start + BLOCK_BYTES, taken)])
        return taken

    def drop_cache(self) -> None:
        """Remove the file from the page cache, if the system supports this, so that the next read is from the disk."""
        if hasattr(os, "posix_fadvise"):  # not available on macOS
            os.posix_fadvise(self._handle, 0, 0, os.POSIX_FADV_DONTNEED)

    def _block(self, number: int, n_bytes: int) -> memoryview:
        """Return a verified block. The next call may overwrite the memory of this block."""
        data = self._files.kept.get(self.name, number)
        if data is None:
            data = self._files.kept.room()[:n_bytes]
            self._fill(number * BLOCK_BYTES, data)
            self._compare(number, data)
            self._files.kept.keep(self.name, number, data)
        return data

    def _compare(self, number: int, data: memoryview) -> None:
        assert self._digest is not None
        if block_hash(data) != self._digest.block(number):
            start = number * BLOCK_BYTES
            raise corrupt_block(self._files.checkpoint, self.name, start, start + len(data))

    def _fill(self, offset: int, out: memoryview) -> None:
        while len(out):
            try:
                n_read = _read(self._handle, out[: _READ_BLOCKS * BLOCK_BYTES], offset)
            except OSError as error:
                raise unreadable(self._files.checkpoint, self.name, error) from None
            if not n_read:
                raise CorruptCheckpointError(self._files.checkpoint, self.name, "ends too early")
            offset, out = offset + n_read, out[n_read:]


def _read(handle: int, out: memoryview, offset: int) -> int:
    """Like os.preadv with one buffer. If the data is not in memory, the data that follows in the file is requested as
    well, so that the disk continues to read while hashes are computed. Raises OSError."""
    if hasattr(os, "RWF_NOWAIT"):  # Linux only
        with suppress(OSError):
            return os.preadv(handle, [out], offset, os.RWF_NOWAIT)
        os.posix_fadvise(handle, offset, 2 * _READ_BLOCKS * BLOCK_BYTES, os.POSIX_FADV_WILLNEED)
    return os.preadv(handle, [out], offset)


class Part(io.RawIOBase):
    """A file object for a part of a file, for use with ZipFile."""

    def __init__(self, file: VerifiedFile, offset: int, length: int) -> None:
        self._file, self._offset, self._length, self._at = file, offset, length, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        if self._at < 0:
            raise OSError("negative seek position")
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(self._length - self._at, 0)
        data = bytearray(left if size < 0 else min(size, left))
        self._file.read_into(self._offset + self._at, memoryview(data))
        self._at += len(data)
        return bytes(data)
