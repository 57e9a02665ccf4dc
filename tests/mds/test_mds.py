"""MDS folders, local and remote: validation at opening, checks, and fetching of shards."""

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from streaming.base.util import merge_index

from data.base.errors import ConfigError, DataError
from data.loading.verify import verify
from data.mds.shard_files import ShardFiles
from tests.helpers.mds_folders import edit_index, open_folder, read_all, texts, write_mds, write_texts

pytestmark = pytest.mark.timeout(60)


def shard_of(index, **changes):
    index["shards"][1].update(changes)


def file_of(index, kind="raw_data", **changes):
    index["shards"][1][kind].update(changes)


LIES = {
    "version": (lambda i: i.update(version=1), "version 1, but only version 2 is supported"),
    "no shards": (lambda i: i.update(shards=[]), "lists no shards"),
    "shards no list": (lambda i: i.update(shards={}), "has no list of shards"),
    "shard no object": (lambda i: i["shards"].append(3), r"shards\[\d+\], which is not an object"),
    "shard version": (lambda i: shard_of(i, version=3), r"shards\[1\].version 3"),
    "format": (lambda i: shard_of(i, format="json"), r"shards\[1\].format 'json', but only mds"),
    "missing key": (lambda i: i["shards"][1].pop("samples"), r"shards\[1\] without samples"),
    "unknown key": (lambda i: shard_of(i, extra=1), r"shards\[1\] with the unknown key extra"),
    "parent": (lambda i: file_of(i, basename="../index.json"), r"basename '../index.json', but .* inside the folder"),
    "inner parent": (lambda i: file_of(i, basename="a/../../b"), "inside the folder"),
    "absolute": (lambda i: file_of(i, basename="/etc/passwd"), "inside the folder"),
    "backslash": (lambda i: file_of(i, basename="..\\b"), "inside the folder"),
    "drive": (lambda i: file_of(i, basename="C:b"), "inside the folder"),
    "nothing": (lambda i: file_of(i, basename=""), "inside the folder"),
    "dot": (lambda i: file_of(i, basename="."), "inside the folder"),
    "zero byte": (lambda i: file_of(i, basename="a\0b"), "inside the folder"),
    "no name": (lambda i: file_of(i, basename=None), "inside the folder"),
    "the index": (lambda i: file_of(i, basename="index.json"), "inside the folder"),
    "twice": (lambda i: file_of(i, basename="shard.00000.mds"), "lists the file shard.00000.mds twice"),
    "pkl": (lambda i: shard_of(i, column_encodings=["pkl"]), r"pkl \(shards\[1\], column 'text'\), which can run code"),
    "nested pkl": (lambda i: shard_of(i, column_encodings=["list[pkl]"]), "which can run code"),
    "encoding": (lambda i: shard_of(i, column_encodings=["text"]), "encoding 'text' .*, which is unknown"),
    "dtype": (lambda i: shard_of(i, column_encodings=["ndarray:int31"]), "which is unknown"),
    "argument": (lambda i: shard_of(i, column_encodings=["str:5"]), "which is unknown"),
    "no encoding": (lambda i: shard_of(i, column_encodings=[]), "0 column_encodings and 1 column_sizes"),
    "columns": (lambda i: shard_of(i, column_names=["a", "b"]), "2 column_names, 1 column_encodings"),
    "name no text": (lambda i: shard_of(i, column_names=[1]), "a list of strings"),
    "column size": (lambda i: shard_of(i, column_sizes=[8]), r"size 8 .*, but the size of str is None"),
    "other columns": (lambda i: shard_of(i, column_names=["words"]), r"different columns in shards\[1\]"),
    "other encoding": (
        lambda i: shard_of(i, column_encodings=["bytes"], column_sizes=[None]),
        r"different columns in shards\[1\] \(text bytes\) and in shards\[0\], but column text must be the same in all",
    ),
    "zero samples": (lambda i: shard_of(i, samples=0), r"samples 0, but the shard has \d+ bytes instead of \d+"),
    "negative": (lambda i: shard_of(i, samples=-5), "samples -5"),
    "half": (lambda i: shard_of(i, samples=1.5), "samples 1.5"),
    "true": (lambda i: shard_of(i, samples=True), "samples True"),
    "too many": (lambda i: shard_of(i, samples=10**12), r"samples 10+, which require at least \d+ bytes"),
    "no bytes": (lambda i: file_of(i, bytes=0), "bytes 0"),
    "bytes text": (lambda i: file_of(i, bytes="900"), "bytes '900'"),
    "huge": (lambda i: file_of(i, bytes=2**33), "the maximum is 4294967295"),
    "hash": (lambda i: file_of(i, hashes={"crc7": "00"}), "'crc7', which is not a known algorithm"),
    "digest": (lambda i: file_of(i, hashes={"xxh64": 5}), "xxh64 5, but it must be a string"),
    "compression": (lambda i: shard_of(i, compression="rar"), "'rar', but it must be one of br, bz2, gz, snappy, zstd"),
    "no zip": (lambda i: shard_of(i, compression="gz"), "compression 'gz', but zip_data None"),
    "long": (lambda i: file_of(i, basename="x" * 5000), "it must be the name of a file inside the folder"),
    "no raw": (lambda i: shard_of(i, raw_data=None), "raw_data None, but it must have basename"),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_invalid_index_entry_is_refused_at_opening(folder, lie):
    edit, message = LIES[lie]
    edit_index(folder, edit)
    with pytest.raises(DataError, match=message) as error:
        open_folder(folder)
    assert str(error.value).startswith(str(folder / "index.json"))
    assert str(error.value).endswith(": write or copy the folder again")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"3"])
def test_an_invalid_index_is_refused(folder, content):
    (folder / "index.json").write_bytes(content)
    with pytest.raises(DataError, match=r"index.json is not (JSON|a JSON object)"):
        open_folder(folder)


def empty_shard(folder: Path) -> dict:
    """The index entry of an empty shard, as MDSWriter writes it before a sample larger than its size_limit."""
    write_mds(folder, {"text": "str"}, [{"text": "a" * 100}], size_limit=50, compression="gz")
    return json.loads((folder / "index.json").read_text())["shards"][0]


def test_empty_shards_are_skipped(tmp_path, capsys):
    folder, entry = write_texts(tmp_path / "mds"), empty_shard(tmp_path / "other")
    whole = open_folder(folder)

    def insert(index):
        for number, place in enumerate((0, 2, 2, len(index["shards"]))):
            files = {kind: entry[kind] | {"basename": f"{number}.{kind}"} for kind in ("raw_data", "zip_data")}
            index["shards"].insert(place, entry | files)

    edit_index(folder, insert)
    mds = open_folder(folder)
    mds.check()
    assert read_all(mds) == texts()
    remote = open_folder(folder, to=tmp_path / "here")
    remote.check()
    assert read_all(remote) == texts()
    assert verify(mds).broken == []
    assert (mds.fingerprint, mds.shard_sizes.tolist()) == (whole.fingerprint, whole.shard_sizes.tolist())
    n = len(whole.shards) + 4
    assert capsys.readouterr().out.count(f"{folder}: skipping 4 of {n} shards, because they contain no samples") == 1


def test_empty_shards_alone_are_refused(tmp_path, folder):
    entry = empty_shard(tmp_path / "other")
    edit_index(folder, lambda index: index.update(shards=[entry]))
    with pytest.raises(DataError, match="lists 1 shards, all of which are empty, so there are no samples"):
        open_folder(folder)


def test_the_name_of_an_empty_shard_is_checked_too(tmp_path, folder):
    entry = empty_shard(tmp_path / "other")
    entry["raw_data"]["basename"] = "../index.json"
    edit_index(folder, lambda index: index["shards"].append(entry))
    with pytest.raises(DataError, match=r"basename '../index.json', but .* inside the folder"):
        open_folder(folder)


def merged(folder: Path, parts: list[Path]) -> Path:
    """One folder with the shards of all parts, merged by Streaming."""
    merge_index([f"{part}/index.json" for part in parts], str(folder))
    return folder


def test_extra_columns_of_some_shards_are_absent_from_the_others(tmp_path, capsys):
    write_texts(tmp_path / "a", 20)
    extra = {f"c{number:02}": "int" for number in range(12)}
    samples = [{"text": "b"} | dict.fromkeys(extra, 1)]
    write_mds(tmp_path / "b", {"text": "str"} | extra, samples)
    mds = open_folder(merged(tmp_path, [tmp_path / "a", tmp_path / "b"]))
    assert (mds.columns, mds.is_rows) == ({"text": "str"}, False)
    assert read_all(mds) == texts(20) + samples
    message = f"{tmp_path}: some shards have columns that other shards do not have: c00 (in 1 of"
    out = capsys.readouterr().out
    assert message in out
    assert out.endswith("c09 (in 1 of 3) and 2 more\n")


def test_a_loss_mask_that_some_shards_lack_is_refused(tmp_path):
    columns = {"tokens": "ndarray:int32", "loss_mask": "ndarray:uint8"}
    sample = {"tokens": np.ones(3, np.int32), "loss_mask": np.ones(3, np.uint8)}
    write_mds(tmp_path / "a", columns, [sample])
    write_mds(tmp_path / "b", {"tokens": "ndarray:int32"}, [sample])
    with pytest.raises(
        DataError, match=r"different columns in shards\[1\] .*, but column loss_mask must be the same in all shards"
    ):
        open_folder(merged(tmp_path, [tmp_path / "a", tmp_path / "b"]))


def header(shard: Path, place: int, value: int) -> None:
    content = bytearray(shard.read_bytes())
    struct.pack_into("<I", content, 4 * place, value)
    shard.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda shard: header(shard, 0, 3), "has 3 samples, but index.json lists"),
        (lambda shard: header(shard, 1, 0), "offsets that do not increase from the header to the end of the file"),
        (lambda shard: header(shard, 2, 2**32 - 1), "offsets that do not increase"),
        (lambda shard: header(shard, 3, 0), "offsets that do not increase"),
        (
            lambda shard: shard.write_bytes(shard.read_bytes().replace(b'"text"', b'"tixt"')),
            "does not have the columns",
        ),
        (
            lambda shard: shard.write_bytes(shard.read_bytes().replace(b'{"col', b'["col')),
            "a header that is not a valid MDS header",
        ),
    ],
)
def test_a_false_header_is_refused_before_training(tmp_path, damage, message):
    folder = write_texts(tmp_path / "mds", hashes=())
    damage(folder / "shard.00001.mds")
    with pytest.raises(DataError, match=message) as error:
        open_folder(folder).check()
    assert str(folder / "shard.00001.mds") in str(error.value)


@pytest.mark.parametrize("hashes", [(), ("sha1",), ("md5", "xxh3_64")])
def test_a_folder_is_read_as_it_was_written(tmp_path, hashes):
    mds = open_folder(write_texts(tmp_path / "mds", hashes=hashes))
    mds.check()
    assert len(mds.shards) > 3
    assert read_all(mds) == texts()


@pytest.mark.parametrize("kind", ["lost", "short", "flipped"])
def test_a_broken_shard_is_named_before_training(folder, kind):
    shard = folder / "shard.00002.mds"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    damage = {
        "lost": shard.unlink,
        "short": lambda: os.truncate(shard, 99),
        "flipped": lambda: shard.write_bytes(content),
    }
    damage[kind]()
    message = {"lost": "is missing", "short": "has 99 bytes, but", "flipped": r"is damaged \(its xxh64"}[kind]
    with pytest.raises(DataError, match=f"shard.00002.mds {message}"):
        open_folder(folder).check()


def test_an_index_without_hashes_is_reported(tmp_path, capsys):
    open_folder(write_texts(tmp_path / "mds", hashes=())).check()
    assert "mds has no hashes in its index: only the sizes of its shards are checked" in capsys.readouterr().out


def test_hashes_are_checked_once_and_again_after_a_change(folder, monkeypatch):
    open_folder(folder).check()
    looked = []
    monkeypatch.setattr(ShardFiles, "check", lambda self, number: looked.append(number))
    open_folder(folder).check()
    assert looked == []
    os.utime(folder / "shard.00001.mds", (1, 1))
    open_folder(folder).check()
    assert looked == [1]


def test_a_hash_that_changed_in_the_index_is_checked(folder):
    open_folder(folder).check()
    edit_index(folder, lambda index: file_of(index, hashes={"xxh64": "0" * 16}))
    with pytest.raises(DataError, match=r"shard.00001.mds is damaged"):
        open_folder(folder).check()


def test_the_error_about_a_missing_index_names_the_splits(tmp_path):
    write_texts(tmp_path / "mds" / "train")
    write_texts(tmp_path / "mds" / "val")
    for local, split, message in [
        ("mds", None, "the folder has no index.json: set split to train or val"),
        ("mds", "test", "split 'test' has no index.json: set split to train or val"),
        ("mds/train", "train", "has no index.json"),
        ("none", None, "no such folder exists"),
    ]:
        with pytest.raises(ConfigError, match=message) as error:
            open_folder(tmp_path / local, split=split)
        assert str(error.value).startswith(f"local is '{tmp_path / local}'")
    assert read_all(open_folder(tmp_path / "mds", split="val")) == texts()


@pytest.mark.parametrize("split", ["../mds", "/mds"])
def test_a_split_cannot_leave_the_folder(folder, split):
    with pytest.raises(ConfigError, match=r"split is .*, but it must be a subfolder of the dataset"):
        open_folder(folder, split=split)
