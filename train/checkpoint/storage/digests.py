"""Hashes of a file: one of the whole file and one of each block, so that any part can be verified on its own."""

from dataclasses import dataclass
from pathlib import Path

import xxhash

BLOCK_BYTES = 1 << 20
"""Size of a block in bytes. A block fits into the CPU cache while it is hashed. The hashes of 1 TB of data take 8
MB."""
HASH_BYTES = 8
"""Size of the hash of a block (xxh3_64) in bytes."""


@dataclass(frozen=True, kw_only=True)
class FileDigest:
    """The size and the hashes of a file."""

    size: int
    """Size of the file in bytes."""
    xxh3_128: str
    """Hash of the whole file, as `xxhsum -H2` prints it."""
    blocks: bytes
    """The concatenated hashes of the file's blocks. Each hash has HASH_BYTES bytes. The last block may be shorter than
    the others."""

    def block(self, number: int) -> bytes:
        return self.blocks[number * HASH_BYTES : (number + 1) * HASH_BYTES]


def block_hash(data: bytes | bytearray | memoryview) -> bytes:
    return xxhash.xxh3_64_digest(data)


def text_hash(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode())


class Digester:
    """Computes a FileDigest while a file is written."""

    def __init__(self) -> None:
        self._size, self._whole = 0, xxhash.xxh3_128()
        self._blocks, self._block, self._left = bytearray(), xxhash.xxh3_64(), BLOCK_BYTES

    def update(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        self._size += len(view)
        while len(view):
            part, view = view[: self._left], view[self._left :]
            self._whole.update(part)
            self._block.update(part)
            self._left -= len(part)
            if not self._left:
                self._end_block()

    def _end_block(self) -> None:
        self._blocks += self._block.digest()
        self._block, self._left = xxhash.xxh3_64(), BLOCK_BYTES

    def digest(self) -> FileDigest:
        blocks = bytes(self._blocks)
        if self._left < BLOCK_BYTES:
            blocks += self._block.digest()
        return FileDigest(size=self._size, xxh3_128=self._whole.hexdigest(), blocks=blocks)


def digest_file(path: Path) -> FileDigest:
    """Read and hash a file. Raises OSError."""
    digester = Digester()
    with path.open("rb", buffering=0) as file:
        while data := file.read(BLOCK_BYTES):
            digester.update(data)
    return digester.digest()


def digest_bytes(data: bytes) -> FileDigest:
    digester = Digester()
    digester.update(data)
    return digester.digest()
