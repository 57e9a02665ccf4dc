"""Files that have not changed since they were read are not read again, by any process of the node."""

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest
import xxhash

from data.base.errors import DataError
from data.sources import input_files
from data.sources.input_files import RECORD, VERSION, InputFiles, Opened
from data.sources.source import open_source
from tests.helpers.opened_files import opened_files
from tests.helpers.read_source import of_file, read

FIRST, OTHER = b'{"prompt": "2 + 2?", "response": "4"}\n', b'{"prompt": "2 + 2?", "response": "5"}\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that was written an hour ago."""
    return write(tmp_path / "rows.jsonl", FIRST)


def write(path: Path, content: bytes, age: float = 3600.0) -> Path:
    path.write_bytes(content)
    os.utime(path, ns=(time.time_ns() - int(age * 1e9),) * 2)
    return path


def record_of(path: Path) -> Path:
    return Path(of_file(path).cache_dir) / RECORD


def entries_of(path: Path) -> dict:
    return json.loads(record_of(path).read_text())["files"]


def start(path: Path, *, rehash: bool = False) -> tuple[str, int]:
    """The fingerprint computed by a start, and how often it opens the file."""
    with opened_files() as opened:
        found = open_source(of_file(path), rehash=rehash).fingerprint
    return found, opened.count(str(path))


def test_a_second_start_opens_no_file(path: Path) -> None:
    first, n_opened = start(path)
    assert n_opened > 0
    assert start(path) == (first, 0)


def test_a_changed_file_is_read_again(path: Path) -> None:
    first, _ = start(path)
    write(path, OTHER, age=1800)
    second, n_opened = start(path)
    assert second != first
    assert n_opened > 0


def test_another_file_of_the_same_size_and_time_is_read(path: Path, tmp_path: Path) -> None:
    first, _ = start(path)
    then = path.stat()
    other = write(tmp_path / "other", OTHER)
    os.utime(other, ns=(then.st_atime_ns, then.st_mtime_ns))
    other.replace(path)
    now = path.stat()
    assert (now.st_size, now.st_mtime_ns) == (then.st_size, then.st_mtime_ns)
    second, n_opened = start(path)
    assert second != first
    assert n_opened > 0


def test_rehash_finds_a_change_that_kept_size_time_and_inode(path: Path) -> None:
    first, _ = start(path)
    then = path.stat()
    path.write_bytes(OTHER)
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))
    assert start(path) == (first, 0)
    with pytest.raises(DataError, match=r"rows\.jsonl changed .*: start again .*use --rehash"):
        read(open_source(of_file(path)))  # rows are only made from content that was hashed
    second, n_opened = start(path, rehash=True)
    assert second != first
    assert n_opened > 0
    assert start(path) == (second, 0)


def test_a_file_that_had_just_been_changed_is_read_again(path: Path) -> None:
    write(path, FIRST, age=1)
    first, _ = start(path)
    found, n_opened = start(path)
    assert found == first
    assert n_opened > 0


@pytest.mark.parametrize("rehash", [False, True])
def test_what_another_rank_read_meanwhile_is_not_read_again(path: Path, rehash: bool) -> None:
    """Not even if it has just changed: ranks that read it separately could get different hashes."""
    write(path, FIRST, age=0)
    mine, other = (InputFiles(of_file(path).cache_dir, rehash=rehash) for _ in range(2))
    other.hashed({path: Opened(reader="lines")}, "json")
    with opened_files() as opened:
        (found,) = mine.hashed({path: Opened(reader="lines")}, "json").values()
    assert found.digest == xxhash.xxh3_128_hexdigest(FIRST)
    assert opened.count(str(path)) == 0


def test_a_file_replaced_between_opening_and_reading_is_refused(path: Path) -> None:
    """The format in the record may not match the new content."""
    source = open_source(of_file(path))
    write(path, b"[" + FIRST + b"]", age=1800)
    with pytest.raises(DataError, match="changed while it was being read"):
        assert source.fingerprint
    assert [row for _, row in read(open_source(of_file(path)))] == [json.loads(FIRST)]


def test_a_file_replaced_between_opening_and_the_hash_of_another_source_is_refused(path: Path) -> None:
    """The other source has opened the new content; the first source's reader is for the old content."""
    source = open_source(of_file(path))
    write(path, b"[" + FIRST + b"]", age=1800)
    assert open_source(of_file(path)).fingerprint
    with pytest.raises(DataError, match="changed while it was being read"):
        assert source.fingerprint


def hash_slowly(path: Path, begun: Path, proceed: Path) -> None:
    class Slow(InputFiles):
        def _read(self, *args):
            begun.touch()
            while not proceed.exists():
                time.sleep(0.01)
            return super()._read(*args)

    Slow(of_file(path).cache_dir).hashed({path: Opened(reader="lines")}, "json")


def test_a_waiting_process_does_not_read_the_file(path: Path, tmp_path: Path, monkeypatch) -> None:
    begun, proceed = tmp_path / "begun", tmp_path / "proceed"
    process = multiprocessing.get_context("fork").Process(target=hash_slowly, args=(path, begun, proceed))
    process.start()
    while not begun.exists():
        time.sleep(0.01)
    record = InputFiles(of_file(path).cache_dir)
    monkeypatch.setattr(record, "_waiting", lambda _: proceed.touch())
    with opened_files() as opened:
        record.hashed({path: Opened(reader="lines")}, "json")
    assert opened.count(str(path)) == 0
    process.join(20)
    assert process.exitcode == 0


def test_a_file_has_one_entry_per_format(path: Path) -> None:
    write(path, b"[" + FIRST + b"]")
    assert start(path)[1] > 0
    config = of_file(path, "json")
    text = type(config)(text=str(path), max_seq_len=8, cache_dir=config.cache_dir)
    with opened_files() as opened:
        assert open_source(text).fingerprint != open_source(config).fingerprint
    assert str(path) in opened
    assert [row for _, row in read(open_source(config))] == [json.loads(FIRST)]


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"json:/x": 3}'),
        *(b'{"version": 1}', b'{"version": 1, "files": []}', b'{"version": 1, "files": {"json:/x": {"state": [1]}}}'),
    ],
)
def test_a_damaged_record_is_replaced(path: Path, content: bytes) -> None:
    first, _ = start(path)
    record_of(path).write_bytes(content)
    found, n_opened = start(path)
    assert found == first
    assert n_opened > 0
    assert start(path) == (first, 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("begun", None), ("ended", "1"), ("xxh3", "xyz"), ("xxh3", 1), ("reader", 1), ("left_out", [])),
        *(("state", [1, 2]), ("state", None), ("other", 1)),
    ],
)
def test_an_entry_with_a_field_of_another_type_is_replaced(path: Path, field: str, value: object) -> None:
    first, _ = start(path)
    entries = {key: entry | {field: value} for key, entry in entries_of(path).items()}
    record_of(path).write_text(json.dumps({"version": VERSION, "files": entries}))
    found, n_opened = start(path)
    assert found == first
    assert n_opened > 0
    assert start(path) == (first, 0)


def test_a_record_of_another_version_is_replaced(path: Path) -> None:
    first, _ = start(path)
    record_of(path).write_text(json.dumps({"version": VERSION + 1, "files": entries_of(path)}))
    found, n_opened = start(path)
    assert found == first
    assert n_opened > 0
    assert start(path) == (first, 0)


def test_a_file_whose_reader_no_longer_exists_is_opened_again(path: Path) -> None:
    first, _ = start(path)
    entries = {key: entry | {"reader": "old_reader"} for key, entry in entries_of(path).items()}
    record_of(path).write_text(json.dumps({"version": VERSION, "files": entries}))
    source = open_source(of_file(path))
    assert source.fingerprint == first
    assert [row for _, row in read(source)] == [json.loads(FIRST)]


def test_deleted_files_are_removed_from_the_record(path: Path, tmp_path: Path) -> None:
    start(path)
    path.rename(tmp_path / "moved.jsonl")
    start(tmp_path / "moved.jsonl")
    assert list(entries_of(path)) == [f"json:{tmp_path / 'moved.jsonl'}"]


def test_files_whose_folder_is_missing_stay_in_the_record(path: Path, tmp_path: Path) -> None:
    """The folder may be on another node, or on a disk that is not mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    elsewhere, cache_dir = write(folder / "rows.jsonl", FIRST), of_file(path).cache_dir
    InputFiles(cache_dir).hashed({elsewhere: Opened(reader="lines")}, "json")
    folder.rename(tmp_path / "not_mounted")
    start(path)
    assert sorted(entries_of(path)) == sorted(f"json:{each}" for each in (path, elsewhere))


def test_hashes_are_saved_before_the_last_file_is_read(path: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(input_files, "SAVE_EVERY", 0)
    other, record, saved = write(tmp_path / "other.jsonl", OTHER), InputFiles(of_file(path).cache_dir), []
    read_one = record._read

    def read_and_note(file: Path, *args):
        saved.append(len(entries_of(path)) if record_of(path).exists() else 0)
        return read_one(file, *args)

    monkeypatch.setattr(record, "_read", read_and_note)
    record.hashed(dict.fromkeys((path, other), Opened(reader="lines")), "json")
    assert saved == [0, 1]


def test_a_record_that_cannot_be_put_in_place_leaves_no_other_file(path: Path, monkeypatch) -> None:
    def refuse(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    start(path)
    assert [file.name for file in record_of(path).parent.iterdir()] == [".input-files.lock"]


def test_without_a_cache_every_start_reads(path: Path, monkeypatch) -> None:
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("data.sources.input_files.exclusive_unless", refuse)
    monkeypatch.setattr(Path, "write_text", refuse)
    first, _ = start(path)
    found, n_opened = start(path)
    assert found == first
    assert n_opened > 0
