"""A manifest lists exactly the files of a checkpoint, and any other content is detected."""

import errno
import json
import random
import shutil
from pathlib import Path

import pytest

from data.base.errors import ConfigError
from tests.helpers.committed import commit, write_run_file
from train.checkpoint.save_folder import check_identity, checkpoints, damaged, recover, remove_leftovers
from train.checkpoint.storage.files import CheckpointFiles, verify_files
from train.checkpoint.storage.manifest import MANIFEST, CorruptCheckpointError, read_manifest


def make(folder: Path, name: str = "ep0-ba4", fill: int = 1, run_id: str = "a-run") -> Path:
    checkpoint = folder / name
    checkpoint.mkdir(parents=True)
    (checkpoint / "__0_0.distcp").write_bytes(bytes([fill]) * 5000)
    (checkpoint / "state.json").write_text("{}")
    return commit(checkpoint, run_id)


def test_a_committed_checkpoint_is_verified(tmp_path: Path) -> None:
    checkpoint = make(tmp_path)
    manifest = read_manifest(checkpoint)
    assert manifest is not None
    assert (manifest.batch, manifest.size, sorted(manifest.files)) == (4, 5002, ["__0_0.distcp", "state.json"])
    read: list[int] = []
    verify_files(checkpoint, progress=read.append)
    assert sum(read) == 5002
    assert CheckpointFiles(checkpoint).read("state.json") == b"{}"


def test_any_changed_byte_of_a_manifest_is_detected_or_has_no_effect(tmp_path: Path) -> None:
    checkpoint = make(tmp_path)
    true, data, draw = read_manifest(checkpoint), (checkpoint / MANIFEST).read_bytes(), random.Random(0)
    seen = 0
    for place in range(0, len(data), 3):
        flipped = bytearray(data)
        flipped[place] ^= 1 << draw.randrange(8)
        (checkpoint / MANIFEST).write_bytes(flipped)
        try:
            found = read_manifest(checkpoint)
        except CorruptCheckpointError:
            seen += 1
        else:
            assert found == true
    assert seen > len(data) / 3 * 0.8, "the rest are spaces and ends of lines"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / MANIFEST).unlink(), r"manifest.json is missing"),
        (lambda folder: (folder / MANIFEST).write_text(""), r"manifest.json is damaged"),
        (lambda folder: (folder / MANIFEST).write_text("[" * 10000), r"manifest.json is damaged"),
        (lambda folder: (folder / "state.json").unlink(), r"state.json is missing"),
        (lambda folder: (folder / "state.json").write_text("{ }"), r"state.json has 3 bytes, but 2 were written"),
    ],
)
def test_incomplete_checkpoints_are_named(tmp_path: Path, change, message: str) -> None:
    checkpoint = make(tmp_path)
    change(checkpoint)
    with pytest.raises(CorruptCheckpointError, match=rf"^checkpoint {checkpoint} is corrupt: {message}"):
        CheckpointFiles(checkpoint)


def test_a_folder_without_the_commit_marker_is_not_a_checkpoint(tmp_path: Path) -> None:
    checkpoint = make(tmp_path)
    assert checkpoints(tmp_path) == [checkpoint]
    (checkpoint / MANIFEST).unlink()
    (checkpoint / ".metadata").touch()
    assert checkpoints(tmp_path) == []
    assert damaged(tmp_path) == [checkpoint]
    assert remove_leftovers(tmp_path) == [], "it may be all that there is"


def test_a_checkpoint_that_a_killed_run_has_completed_is_recovered(tmp_path: Path) -> None:
    whole, half = make(tmp_path, ".part-ep0-ba4"), tmp_path / ".part-ep0-ba6"
    half.mkdir()
    assert recover(tmp_path) == [tmp_path / "ep0-ba4"]
    assert not whole.exists()
    assert remove_leftovers(tmp_path) == [half]
    assert checkpoints(tmp_path) == [tmp_path / "ep0-ba4"]


def test_a_file_without_read_permission_is_not_corruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> int:
        raise OSError(errno.ESTALE, "Stale file handle")

    files = CheckpointFiles(make(tmp_path))
    monkeypatch.setattr("os.preadv", refuse)
    with pytest.raises(ConfigError, match=r"state.json cannot be read: Stale file handle") as caught:
        files.read("state.json")
    assert not isinstance(caught.value, CorruptCheckpointError)


def test_a_file_of_another_checkpoint_is_identified(tmp_path: Path) -> None:
    ours, other = make(tmp_path, fill=1), make(tmp_path, "ep0-ba2", fill=2)
    shutil.copy(other / "__0_0.distcp", ours)
    message = r"__0_0.distcp does not match its hash in bytes \[0, 5,000\): the file looks like __0_0.distcp of ep0-ba2"
    with pytest.raises(CorruptCheckpointError, match=message):
        verify_files(ours)


def test_a_checkpoint_under_another_name_or_of_another_run_is_refused(tmp_path: Path) -> None:
    moved = make(tmp_path).rename(tmp_path / "ep0-ba6")
    with pytest.raises(CorruptCheckpointError, match=r"manifest.json belongs to batch 4"):
        check_identity(moved, read_manifest(moved))
    write_run_file(tmp_path, "mine")
    foreign = make(tmp_path, "ep0-ba8", run_id="another")
    with pytest.raises(CorruptCheckpointError, match=r"manifest.json belongs to a different run"):
        check_identity(foreign, read_manifest(foreign))
    check_identity(mine := make(tmp_path, "ep0-ba9", run_id="mine"), read_manifest(mine))
    flipped = (tmp_path / "run.json").read_text().replace("mine", "mini")
    (tmp_path / "run.json").write_text(flipped)
    check_identity(mine, read_manifest(mine))


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..", "", "manifest.json", "a\\b"])
def test_a_name_outside_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    checkpoint = make(tmp_path)
    _rewrite(checkpoint, lambda values: values["files"].update({name: values["files"]["state.json"]}))
    with pytest.raises(CorruptCheckpointError, match="which is not a file of the checkpoint"):
        read_manifest(checkpoint)
    with pytest.raises(CorruptCheckpointError), CheckpointFiles(make(tmp_path, "ep0-ba5")).open(name):
        pass


def test_a_newer_format_is_not_called_corrupt(tmp_path: Path) -> None:
    checkpoint = make(tmp_path)
    _rewrite(checkpoint, lambda values: values.update(format=2))
    with pytest.raises(ConfigError, match=r"has format 2, but this version of Dropless reads format 1") as caught:
        read_manifest(checkpoint)
    assert not isinstance(caught.value, CorruptCheckpointError)


def _rewrite(checkpoint: Path, change) -> None:
    """Rewrite the manifest with a valid hash."""
    from train.checkpoint.storage.digests import text_hash

    values = json.loads((checkpoint / MANIFEST).read_text())["manifest"]
    change(values)
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    (checkpoint / MANIFEST).write_text(json.dumps({"manifest": values, "xxh3_128": text_hash(canonical)}))
