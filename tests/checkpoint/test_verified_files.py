"""What is read of a checkpoint's file is what was written, whatever part of it, and each byte is read once."""

import os
import random
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.state_dict_saver import save

from tests.helpers.committed import commit
from train.checkpoint.storage.digests import BLOCK_BYTES
from train.checkpoint.storage.files import CheckpointFiles
from train.checkpoint.storage.manifest import CorruptCheckpointError
from train.checkpoint.storage.unpickle import read_metadata
from train.checkpoint.storage.writer import HashingWriter

SIZE = 19 * BLOCK_BYTES + 12345


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "ep0-ba1").mkdir()
    (tmp_path / "ep0-ba1" / "data").write_bytes(random.randbytes(SIZE))
    return commit(tmp_path / "ep0-ba1")


def test_any_part_of_a_file_is_read_and_verified(checkpoint: Path) -> None:
    data = (checkpoint / "data").read_bytes()
    ends = [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, 9 * BLOCK_BYTES, SIZE - 12345, SIZE - 1, SIZE]
    places = [*ends, *(random.randrange(SIZE) for _ in range(8))]
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


def test_parts_one_after_the_other_are_read_once(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, preadv = [], os.preadv
    monkeypatch.setattr(os, "preadv", lambda *arguments: read.append(preadv(*arguments)) or read[-1])
    with CheckpointFiles(checkpoint).open("data") as file:
        start = 0
        while start < SIZE:
            stop = min(start + random.choice([100, BLOCK_BYTES // 2, 5 * BLOCK_BYTES]), SIZE)
            file.read_into(start, memoryview(bytearray(stop - start)))
            start = stop
    assert sum(read) == SIZE


def test_small_tensors_lie_together_at_the_beginning(tmp_path: Path) -> None:
    tensors = {f"{kind}{number}": torch.zeros(size) for number in range(4) for kind, size in (("a", 999), ("z", 1))}
    writer = HashingWriter(tmp_path)
    save(tensors, storage_writer=writer, no_dist=True)
    metadata = read_metadata((tmp_path / ".metadata").read_bytes(), tmp_path, ".metadata")
    places = sorted((info.offset, index.fqn) for index, info in metadata.storage_data.items())
    assert [name[0] for _, name in places] == [*"zzzzaaaa"]
    assert writer.digests.keys() == {".metadata", "__0_0.distcp"}
