"""`checkpoint.py verify`: all files of a checkpoint, several in parallel."""

from pathlib import Path

import pytest

from tests.helpers.committed import commit, write_run_file
from tests.helpers.saved_checkpoints import flip, write_save_folder
from train.checkpoint.storage.digests import BLOCK_BYTES
from train.inspection.verification import size_of, verify


def test_a_valid_checkpoint_is_verified_and_its_bytes_counted(tmp_path: Path) -> None:
    checkpoint = write_save_folder(tmp_path, 10) / "ep0-ba10"
    read: list[int] = []
    verified = verify(checkpoint, read.append)
    assert verified.valid
    assert sum(read) == verified.n_bytes == size_of(checkpoint)
    assert verified.lines()[0].startswith("ep0-ba10: verified, 3 files, 3.92kb in ")


@pytest.mark.parametrize("threads", [1, 4])
def test_each_corrupt_file_is_named(tmp_path: Path, threads: int) -> None:
    checkpoint = write_save_folder(tmp_path, 10) / "ep0-ba10"
    flip(checkpoint / "__0_0.distcp", 3000)
    flip(checkpoint / "state.json")
    assert verify(checkpoint, threads=threads).lines() == [
        "ep0-ba10: corrupt: __0_0.distcp does not match its hash in bytes [0, 4,000)",
        "ep0-ba10: corrupt: state.json does not match its hash in bytes [0, 2)",
    ]


def test_the_block_with_a_flipped_bit_is_named(tmp_path: Path) -> None:
    checkpoint = write_save_folder(tmp_path, 10) / "ep0-ba10"
    (checkpoint / "__0_0.distcp").write_bytes(bytes(2 * BLOCK_BYTES + 5))
    commit(checkpoint)
    flip(checkpoint / "__0_0.distcp", BLOCK_BYTES)
    assert "in bytes [1,048,576, 2,097,152)" in verify(checkpoint).lines()[0]


def test_a_checkpoint_of_another_batch_or_run_is_corrupt(tmp_path: Path) -> None:
    folder = write_save_folder(tmp_path, 10, 20)
    (folder / "ep0-ba10").rename(folder / "ep0-ba30")
    write_run_file(folder, "another")
    assert verify(folder / "ep0-ba30").lines() == [
        "ep0-ba30: corrupt: manifest.json belongs to batch 10, which is not the batch in the folder's name"
    ]
    assert verify(folder / "ep0-ba20").lines() == [
        "ep0-ba20: corrupt: manifest.json belongs to a different run (run) than run.json in the save folder"
    ]


def test_a_checkpoint_that_cannot_be_verified_is_not_an_error(tmp_path: Path) -> None:
    folder = write_save_folder(tmp_path, 10)
    for name in ("manifest.json", "state.json"):
        (folder / "ep0-ba10" / name).unlink()
    verified = verify(folder / "ep0-ba10")
    assert (verified.valid, verified.errors) == (False, ())
    assert verified.lines() == ["ep0-ba10: cannot be verified, because it was written before manifests existed"]


def test_a_checkpoint_that_its_run_deletes_meanwhile_is_not_an_error(tmp_path: Path) -> None:
    verified = verify(tmp_path / "ep0-ba10")
    assert (verified.errors, verified.lines()) == ((), ["ep0-ba10: deleted meanwhile"])
