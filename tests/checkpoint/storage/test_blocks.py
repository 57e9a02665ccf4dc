"""Parts of a file with more blocks than are read at once."""

import random
from pathlib import Path

import pytest

from tests.helpers.committed import commit
from train.checkpoint.storage.digests import BLOCK_BYTES
from train.checkpoint.storage.files import CheckpointFiles
from train.checkpoint.storage.manifest import CorruptCheckpointError

SIZE = 19 * BLOCK_BYTES + 12345


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "ep0-ba1").mkdir()
    (tmp_path / "ep0-ba1" / "data").write_bytes(random.randbytes(SIZE))
    return commit(tmp_path / "ep0-ba1")


def test_any_part_of_a_file_is_read_and_verified(checkpoint: Path) -> None:
    data = (checkpoint / "data").read_bytes()
    places = [0, BLOCK_BYTES - 1, 9 * BLOCK_BYTES, SIZE - 12345, SIZE, random.randrange(SIZE)]
    with CheckpointFiles(checkpoint).open("data") as file:
        for start, stop in ((start, stop) for start in places for stop in places if start <= stop):
            out = bytearray(stop - start)
            file.read_into(start, memoryview(out))
            assert out == data[start:stop], (start, stop)
        with pytest.raises(CorruptCheckpointError, match="ends too early"):
            file.read_into(SIZE - 5, memoryview(bytearray(6)))


@pytest.mark.parametrize("place", [0, 8 * BLOCK_BYTES, SIZE - 1])
def test_a_flipped_bit_anywhere_in_what_is_read_is_found(checkpoint: Path, place: int) -> None:
    data = bytearray((checkpoint / "data").read_bytes())
    data[place] ^= 16
    (checkpoint / "data").write_bytes(data)
    with CheckpointFiles(checkpoint).open("data") as file, pytest.raises(CorruptCheckpointError, match="data"):
        file.read_into(0, memoryview(bytearray(SIZE)))
