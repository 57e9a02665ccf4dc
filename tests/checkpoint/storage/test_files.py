"""Verified reads return the same data as plain reads, and detect every flipped bit in it."""

import random
from pathlib import Path

import pytest
import xxhash

from tests.helpers.committed import commit
from train.checkpoint.storage.digests import BLOCK_BYTES, Digester, digest_file
from train.checkpoint.storage.files import CheckpointFiles, verify_files
from train.checkpoint.storage.manifest import CorruptCheckpointError

NAME = "__0_0.distcp"


def make(folder: Path, n_bytes: int) -> tuple[Path, bytes]:
    data = random.Random(n_bytes).randbytes(n_bytes)
    checkpoint = folder / "ep0-ba1"
    checkpoint.mkdir(parents=True)
    (checkpoint / NAME).write_bytes(data)
    return commit(checkpoint), data


@pytest.mark.parametrize("n_bytes", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES + 7])
def test_hashes_do_not_depend_on_how_a_file_is_written(tmp_path: Path, n_bytes: int) -> None:
    checkpoint, data = make(tmp_path, n_bytes)
    draw, digester, view = random.Random(1), Digester(), memoryview(data)
    while len(view):
        n = draw.choice([1, 1000, BLOCK_BYTES // 2 + 3, 2 * BLOCK_BYTES])
        digester.update(view[:n])
        view = view[n:]
    assert digester.digest() == digest_file(checkpoint / NAME)
    assert digester.digest().xxh3_128 == xxhash.xxh3_128_hexdigest(data)


def test_any_range_is_read_unchanged(tmp_path: Path) -> None:
    checkpoint, data = make(tmp_path, 3 * BLOCK_BYTES + 777)
    files, draw = CheckpointFiles(checkpoint), random.Random(2)
    with files.open(NAME) as file:
        for _ in range(200):
            start = draw.choice([draw.randrange(len(data)), BLOCK_BYTES * draw.randrange(4)])
            stop = min(len(data), start + draw.choice([1, 50, BLOCK_BYTES, draw.randrange(2 * BLOCK_BYTES)]))
            out = bytearray(stop - start)
            file.read_into(start, memoryview(out))
            assert out == data[start:stop]


def test_a_flipped_bit_is_only_found_where_it_is_read(tmp_path: Path) -> None:
    checkpoint, data = make(tmp_path, 3 * BLOCK_BYTES)
    place = BLOCK_BYTES + 12345
    changed = bytearray(data)
    changed[place] ^= 1
    (checkpoint / NAME).write_bytes(changed)
    one = memoryview(bytearray(1))
    with CheckpointFiles(checkpoint).open(NAME) as file:
        for start in (0, BLOCK_BYTES - 1, 2 * BLOCK_BYTES, 3 * BLOCK_BYTES - 1):
            file.read_into(start, one)
        for start in (place, BLOCK_BYTES, 2 * BLOCK_BYTES - 1):
            with pytest.raises(CorruptCheckpointError, match=r"in bytes \[1,048,576, 2,097,152\)"):
                file.read_into(start, one)
    with pytest.raises(CorruptCheckpointError, match=f"is corrupt: {NAME} does not match its hash"):
        verify_files(checkpoint)


def test_no_block_is_read_twice_by_consecutive_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    checkpoint, data = make(tmp_path, 2 * BLOCK_BYTES + 5000)
    n_read, real = 0, os.preadv

    def counted(*args) -> int:
        nonlocal n_read
        n_read += (n := real(*args))
        return n

    files = CheckpointFiles(checkpoint)
    monkeypatch.setattr(os, "preadv", counted)
    with files.open(NAME) as file:
        for start in range(0, len(data), 70_001):
            file.read_into(start, memoryview(bytearray(min(70_001, len(data) - start))))
    assert n_read == len(data)


def test_reading_beyond_the_end_is_an_error(tmp_path: Path) -> None:
    checkpoint, data = make(tmp_path, 100)
    with CheckpointFiles(checkpoint).open(NAME) as file, pytest.raises(CorruptCheckpointError, match="ends too early"):
        file.read_into(len(data) - 5, memoryview(bytearray(10)))
