"""Shards of a remote: each is fetched once, completely and in time, or an error is raised."""

import errno
import multiprocessing
import os
import shutil
import signal
import time

import pytest

import data.mds.remote.deadlines
import data.mds.remote.fetch
import data.mds.remote.listing
from data.base.errors import ConfigError, DataError
from data.mds.folder import MdsFolder
from tests.helpers.mds_folders import edit_index, open_folder, read_all, shorten_waits, texts, write_texts

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    shorten_waits(monkeypatch)


def counted(monkeypatch, name="_download"):
    """A list to which the urls of all further downloads are added."""
    urls, download = [], getattr(data.mds.remote.fetch, name)

    def count(url, target):
        urls.append(url)
        download(url, target)

    monkeypatch.setattr(data.mds.remote.fetch, name, count)
    return urls


def test_shards_are_downloaded_when_they_are_read(folder, tmp_path, monkeypatch):
    mds = open_folder(folder, to=tmp_path / "here")
    mds.check()
    assert not list((tmp_path / "here").glob("*.mds"))
    urls = counted(monkeypatch)
    assert read_all(mds) == texts()
    assert urls == [f"{folder}/{shard.raw_data.basename}" for shard in mds.shards]
    again = open_folder(folder, to=tmp_path / "here")
    again.check()
    assert read_all(again) == texts()
    assert urls[len(mds.shards) :] == [f"{folder}/index.json", f"{folder}/manifest.json"]


def test_the_saved_config_finds_the_shards_of_a_remote_with_a_login(tmp_path, monkeypatch):
    folders = []
    monkeypatch.setattr("data.mds.folder.fetch_index", lambda folder, *_: folders.append(folder))
    for remote in ("s3://key:word@bucket/x", "s3://bucket/x"):
        with pytest.raises(DataError, match="No such file"):
            MdsFolder.open(local=None, remote=remote, split=None, cache_dir=str(tmp_path))
    assert folders[0] == folders[1]


def test_a_remote_without_local_is_downloaded_below_cache_dir(tmp_path):
    write_texts(tmp_path / "mds" / "train")
    opened = [
        MdsFolder.open(local=None, remote=remote, split="train", cache_dir=str(tmp_path / "cache"))
        for remote in (str(tmp_path / "mds"), f"{tmp_path}/mds/")
    ]
    assert read_all(opened[0]) == texts()
    assert opened[0].folder == opened[1].folder
    assert opened[0].folder.parent.parent == tmp_path / "cache"


def test_a_remote_that_is_the_local_folder_is_local(folder):
    assert open_folder(f"{folder}/", to=folder).remote is None


@pytest.mark.parametrize("compression", ["zstd", "zstd:7", "gz", "bz2", "snappy", "br:3"])
def test_compressed_shards(tmp_path, compression):
    folder = write_texts(tmp_path / "mds", 30, compression=compression)
    kept = set(folder.iterdir())
    mds = open_folder(folder, to=tmp_path / "here")
    mds.check()
    assert read_all(mds) == texts(30)
    assert not [path for path in (tmp_path / "here").iterdir() if path.suffix in (".zstd", ".gz", ".bz2", ".br")]
    assert kept == set(folder.iterdir())
    assert read_all(open_folder(folder)) == texts(30)  # decompressed next to the existing files
    assert kept < set(folder.iterdir())


def test_a_compressed_shard_with_other_content_is_refused(tmp_path):
    folder = write_texts(tmp_path / "mds", 30, compression="gz")
    edit_index(folder, lambda index: index["shards"][1]["raw_data"]["hashes"].update(xxh64="0" * 16))
    with pytest.raises(DataError, match=r"shard.00001.mds.gz: the decompressed shard is damaged"):
        read_all(open_folder(folder, to=tmp_path / "here"))


@pytest.mark.parametrize("kind", ["lost", "short"])
def test_the_shards_of_a_remote_are_checked_before_training(folder, tmp_path, kind):
    shard = folder / "shard.00003.mds"
    shard.unlink() if kind == "lost" else os.truncate(shard, 50)
    message = "is missing, but is listed in index.json" if kind == "lost" else "has 50 bytes, but"
    with pytest.raises(DataError, match=f"{shard} {message}"):
        open_folder(folder, to=tmp_path / "here").check()


def test_a_corrupt_download_is_detected(folder, tmp_path):
    shard = folder / "shard.00001.mds"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    mds = open_folder(folder, to=tmp_path / "here")
    mds.check()
    with pytest.raises(DataError, match=rf"{shard} cannot be downloaded \(is damaged \(its xxh64"):
        read_all(mds)
    assert not (tmp_path / "here" / "shard.00001.mds").exists()
    assert not list((tmp_path / "here" / ".downloads").rglob("*.mds"))


def test_a_shard_lost_meanwhile_is_named(folder, tmp_path):
    mds = open_folder(folder, to=tmp_path / "here")
    mds.check()
    (folder / "shard.00001.mds").unlink()
    with pytest.raises(DataError, match=rf"{folder}/shard.00001.mds cannot be downloaded \(no such file exists\)"):
        read_all(mds)


def test_a_failed_download_is_retried(folder, tmp_path, monkeypatch):
    mds, download, tries = open_folder(folder, to=tmp_path / "here"), data.mds.remote.fetch._download, []

    def shaky(url, target):
        tries.append(url)
        if len(tries) % 3:
            target.write_bytes(b"half")
            raise ConnectionError("the connection is lost")
        download(url, target)

    monkeypatch.setattr(data.mds.remote.fetch, "_download", shaky)
    assert read_all(mds) == texts()
    assert len(tries) == 3 * len(mds.shards)


def test_a_download_that_always_fails_ends(folder, tmp_path, monkeypatch):
    mds = open_folder(folder, to=tmp_path / "here")

    def cut(url, target):
        raise ConnectionError("the connection is lost")

    monkeypatch.setattr(data.mds.remote.fetch, "_download", cut)
    with pytest.raises(
        DataError, match=r"shard.00000.mds cannot be downloaded \(ConnectionError: the connection is lost\)"
    ):
        mds.read(0)


def test_a_download_that_hangs_ends(folder, tmp_path, monkeypatch):
    mds = open_folder(folder, to=tmp_path / "here")
    monkeypatch.setattr(data.mds.remote.deadlines, "QUIET", 0.2)
    monkeypatch.setattr(data.mds.remote.fetch, "_download", lambda url, target: time.sleep(30))
    with pytest.raises(DataError, match=r"shard.00000.mds cannot be downloaded \(TimeoutError: no data received"):
        mds.read(0)


def test_a_full_disk_is_reported(folder, tmp_path, monkeypatch):
    mds = open_folder(folder, to=tmp_path / "here")

    def full(url, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(data.mds.remote.fetch, "_download", full)
    with pytest.raises(DataError, match=r"local is .*here', but it has no space left for shard.00000.mds: free some"):
        mds.read(0)


def test_prefetched_shards_are_downloaded_in_the_background(folder, tmp_path):
    mds = open_folder(folder, to=tmp_path / "here")
    mds.prefetch([2, 1])
    deadline = time.monotonic() + 20
    while not all(mds.file(number).exists() for number in (1, 2)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert mds.file(1).exists()
    assert not mds.file(0).exists()
    assert read_all(mds) == texts()


def test_errors_of_a_prefetch_are_raised_by_the_read(folder, tmp_path):
    mds = open_folder(folder, to=tmp_path / "here")
    (folder / "shard.00001.mds").unlink()
    mds.prefetch([1, 2])
    with pytest.raises(DataError, match=r"shard.00001.mds cannot be downloaded"):
        read_all(mds)


_fork = multiprocessing.get_context("fork")


def read_slowly(mds, log, results):
    download = data.mds.remote.fetch._download

    def slow(url, target):
        with log.open("a") as file:
            file.write(f"{url}\n")
        time.sleep(0.05)
        download(url, target)

    data.mds.remote.fetch._download = slow
    results.put(read_all(mds) == texts())


def test_processes_that_want_the_same_shards_download_each_once(folder, tmp_path):
    mds, log, results = open_folder(folder, to=tmp_path / "here"), tmp_path / "log", _fork.SimpleQueue()
    readers = [_fork.Process(target=read_slowly, args=(mds, log, results)) for _ in range(4)]
    for reader in readers:
        reader.start()
    assert all(results.get() for _ in readers)
    for reader in readers:
        reader.join(20)
    assert sorted(log.read_text().split()) == [f"{folder}/{shard.raw_data.basename}" for shard in mds.shards]


def hang(mds, begun):
    def never(url, target):
        target.write_bytes(b"half a shard")
        begun.put(True)
        time.sleep(60)

    data.mds.remote.fetch._download = never
    mds.read(0)


@pytest.fixture
def hanging(folder, tmp_path):
    """A folder whose first shard is being downloaded by another process that never finishes."""
    mds, begun = open_folder(folder, to=tmp_path / "here"), _fork.SimpleQueue()
    process = _fork.Process(target=hang, args=(mds, begun))
    process.start()
    begun.get()
    yield mds, process
    process.kill()
    process.join()


def test_a_killed_download_is_done_by_another(hanging):
    mds, process = hanging
    os.kill(process.pid, signal.SIGKILL)
    assert read_all(mds) == texts()
    assert not list((mds.folder / ".downloads").rglob("*.mds"))


def test_a_download_that_never_ends_is_an_error(hanging, monkeypatch):
    monkeypatch.setattr(data.mds.remote.deadlines, "QUIET", 0.3)
    with pytest.raises(DataError, match=r"shard.00000.mds was not downloaded: another process holds the lock"):
        hanging[0].read(0)


def test_a_remote_that_changed_is_refused(folder, tmp_path):
    read_all(open_folder(folder, to=tmp_path / "here"))
    shutil.rmtree(folder)
    write_texts(folder, 70)
    with pytest.raises(DataError, match=rf"here was not downloaded from {folder}, because .*: delete the folder"):
        open_folder(folder, to=tmp_path / "here")


def test_local_shards_are_enough_without_the_remote(folder, tmp_path, capsys):
    read_all(open_folder(folder, to=tmp_path / "here"))
    shutil.rmtree(folder)
    mds = open_folder(folder, to=tmp_path / "here")
    mds.check()
    assert read_all(mds) == texts()
    assert "cannot be reached (no such file exists): using the files in" in capsys.readouterr().out


def test_a_missing_remote_is_an_error(tmp_path):
    write_texts(tmp_path / "mds" / "train")
    with pytest.raises(ConfigError, match=r"remote is '.*mds', but the folder has no index.json: set split to train"):
        open_folder(tmp_path / "mds", to=tmp_path / "here")
    with pytest.raises(ConfigError, match=r"remote is '.*none', but no such folder exists"):
        open_folder(tmp_path / "none", to=tmp_path / "here")
    with pytest.raises(ConfigError, match=r"remote is 'ftp://x/y', but it must be a path or begin with one of .*s3://"):
        open_folder("ftp://x/y", to=tmp_path / "here")


def test_permission_denied_is_reported(folder, tmp_path, monkeypatch):
    def denied(url, target):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(data.mds.remote.fetch, "_download", denied)
    with pytest.raises(ConfigError, match=r"remote is '.*', but .*index.json cannot be read: permission denied"):
        open_folder(folder, to=tmp_path / "here")


def test_of_a_remote_without_sizes_the_first_and_last_shard_are_checked(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data.mds.remote.listing, "LISTERS", {})
    mds = open_folder(folder, to=tmp_path / "here")
    mds.check()
    assert sorted(path.name for path in mds.folder.glob("*.mds")) == ["shard.00000.mds", mds.file(-1).name]
    assert "only the first and the last shard are checked before training" in capsys.readouterr().out
