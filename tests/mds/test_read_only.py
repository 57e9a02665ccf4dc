"""MDS folders on a read-only share: files are written to the cache instead."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

import data.mds.fetcher
from data.base.errors import ConfigError, DataError
from data.config.dataset import DatasetConfig
from data.config.source import HFKwargs
from data.loading.opening import open_rows
from data.loading.verify import verify
from data.mds.folder import MdsFolder
from data.mds.shard_files import ShardFiles
from data.sources.mds import open_mds
from tests.helpers.mds_folders import open_folder, read_all, texts, write_mds, write_texts
from tests.helpers.toy_tokenizer import ToyTokenizer, dataset_config

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def share(tmp_path, monkeypatch):
    """A read-only folder, in which nothing may change."""
    folder, access = tmp_path / "share", os.access

    def denied(path, mode):
        return access(path, mode) and not (mode & os.W_OK and Path(path).is_relative_to(folder))

    monkeypatch.setattr(os, "access", denied)
    made = []
    yield lambda write, *args, **kwargs: (write(folder, *args, **kwargs), made.extend(sorted(folder.rglob("*"))))[0]
    assert sorted(folder.rglob("*")) == made


def config_of(folder: Path) -> DatasetConfig:
    return dataset_config(folder.parent, hf_name=None, hf_kwargs=HFKwargs(), local=str(folder))


def test_rows_are_decompressed_into_the_cache_once(share, monkeypatch, capsys):
    samples = [{"tokens": np.array([number, 256], dtype=np.int32)} for number in range(100)]
    folder = share(write_mds, {"tokens": "ndarray:int32"}, samples, compression="zstd")
    config = config_of(folder)
    for _ in range(2):
        rows = open_rows(config, ToyTokenizer())
        assert [int(rows.read(number).tokens[0]) for number in range(100)] == list(range(100))
        monkeypatch.setattr(data.mds.fetcher, "decompress", None)
    assert verify(open_mds(config)).broken == []
    out = capsys.readouterr().out
    assert out.count(f"{folder} is read-only: its compressed shards are decompressed into {config.cache_dir}") == 1
    assert len(list(Path(config.cache_dir).glob("read-only-*/shard.*.mds"))) == len(rows.shard_sizes) > 2


def test_texts_are_prepared_from_a_read_only_folder(share):
    config = config_of(share(write_texts, compression="zstd:7"))
    assert open_rows(config, ToyTokenizer()).tokens == sum(len(each["text"]) + 1 for each in texts())


def test_another_folder_at_the_same_place_is_decompressed_anew(share, tmp_path):
    config = config_of(share(write_texts, 10, compression="gz", hashes=()))
    assert read_all(open_mds(config)) == texts(10)
    for file in (tmp_path / "share").iterdir():
        file.unlink()
    write_mds(tmp_path / "share", {"text": "str"}, texts(20)[10:], compression="gz", hashes=())
    assert read_all(open_mds(config)) == texts(20)[10:]


def test_hashes_are_remembered_in_the_cache(share, monkeypatch):
    config = config_of(share(write_texts))
    open_mds(config).check()
    monkeypatch.setattr(ShardFiles, "check", None)
    open_mds(config).check()


def test_the_error_about_a_damaged_decompressed_shard_has_a_fix(share):
    config = config_of(share(write_texts, compression="zstd"))
    read_all(open_mds(config))
    shard = next(Path(config.cache_dir).glob("read-only-*/shard.00001.mds"))
    os.truncate(shard, 99)
    with pytest.raises(DataError, match=f"{shard} has 99 bytes, but .*: delete the file to decompress the shard again"):
        open_mds(config).check()


@pytest.mark.parametrize(
    ("cache_dir", "message"),
    [
        ("", "share cannot be written for shard.00000.mds .*: copy the folder to"),
        ("cache", "cache_dir is '.*cache', but it cannot be written for decompressed shards of .*share"),
    ],
)
def test_errors_about_read_only_folders_name_what_is_written(share, tmp_path, monkeypatch, cache_dir, message):
    folder = share(write_texts, compression="zstd")

    def refuse(*args):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(data.mds.fetcher, "exclusive_unless", refuse)
    cache_dir = str(tmp_path / cache_dir) if cache_dir else ""
    with pytest.raises(ConfigError, match=message):
        MdsFolder.open(local=str(folder), remote=None, split=None, cache_dir=cache_dir).read(0)


def test_shards_that_are_not_compressed_need_no_cache(share):
    assert read_all(open_folder(share(write_texts))) == texts()
