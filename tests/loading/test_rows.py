"""Rows that are prepared, or read from an MDS folder: read as they were written, or refused with their place."""

import json
import multiprocessing
import os

import numpy as np
import pytest

from data.base.errors import ConfigError, DataError
from data.config.source import HFKwargs
from data.loading.loader import eval_loader
from data.loading.opening import find_source, open_rows
from data.loading.verify import verify
from data.mds.row import COLUMNS
from data.mds.shard_files import ShardFiles
from tests.helpers.mds_folders import edit_index, write_mds, write_texts
from tests.helpers.toy_tokenizer import ToyTokenizer, dataset_config, loader_config, questions, write_jsonl

pytestmark = pytest.mark.timeout(60)
TOY = ToyTokenizer()


def mds_config(folder, **changes):
    settings = {"hf_name": None, "hf_kwargs": HFKwargs(), "local": str(folder)} | changes
    return dataset_config(folder.parent, **settings)


def open_mds_rows(folder, **changes):
    return open_rows(mds_config(folder, **changes), TOY)


def one_row(folder, columns, **sample):
    return open_mds_rows(write_mds(folder, columns, [sample])).read(0)


def documents(rows) -> list[bytes]:
    """The tokens of all rows, ordered by their bytes."""
    found = []
    for row_id in range(rows.n_rows):
        row = rows.read(row_id)
        found += [bytes(part[part < 256].tolist()) for part in np.split(row.tokens, np.cumsum(row.lengths)[:-1])]
    return sorted(found)


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Rows that were prepared from JSONL, in several shards."""
    monkeypatch.setattr("data.mds.writer.SHARD_BYTES", 2000)
    write_jsonl(tmp_path / "train.jsonl", questions(200))
    return open_rows(dataset_config(tmp_path, prepare_workers=1), TOY)


def again(prepared):
    return open_rows(dataset_config(prepared.folder.parent.parent, prepare_workers=1), TOY)


def test_rows_are_found_in_their_shards(prepared):
    assert len(prepared.shard_sizes) > 3
    assert prepared.shard_sizes.sum() == prepared.n_rows
    assert documents(prepared) == sorted(f"{each['prompt']}{each['response']}".encode() for each in questions(200))


@pytest.mark.parametrize("damage", ["missing", "short", "flipped", "index", "manifest"])
def test_damaged_folders_are_refused_when_opened(prepared, damage):
    shard = prepared.folder / "shard.00000.01.mds"
    content = shard.read_bytes()
    if damage == "missing":
        shard.unlink()
    elif damage == "short":
        shard.write_bytes(content[:-1])
    elif damage == "flipped":
        shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        (prepared.folder / f"{damage}.json").write_text("{")
    with pytest.raises(DataError) as error:
        again(prepared)
    name = f"{damage}.json" if damage in ("index", "manifest") else "shard.00000.01.mds"
    assert str(prepared.folder / name) in str(error.value)
    assert f"delete the folder {prepared.folder.name} to prepare it again" in str(error.value)


def test_hashes_are_checked_once(prepared, monkeypatch):
    def refuse(self, number):
        raise AssertionError("hashed again")

    monkeypatch.setattr(ShardFiles, "check", refuse)
    assert again(prepared).n_rows == prepared.n_rows


def test_a_shard_that_breaks_later_is_named_when_it_is_read(prepared):
    shard = prepared.folder / "shard.00000.00.mds"
    shard.write_bytes(shard.read_bytes()[:300])
    with pytest.raises(DataError, match=r"row \d+ of .*shard.00000.00.mds cannot be read"):
        documents(prepared)
    shard.unlink()
    with pytest.raises(DataError, match=r"row 0 of .*shard.00000.00.mds cannot be read \(FileNotFoundError"):
        prepared.read(0)


@pytest.mark.parametrize("remote", [False, True])
def test_prepared_rows_are_read_from_wherever_they_lie(prepared, tmp_path, remote):
    changes = {"local": None, "remote": str(prepared.folder)} if remote else {}
    rows = open_mds_rows(prepared.folder, cache_dir=str(tmp_path / "other"), **changes)
    assert documents(rows) == documents(prepared)
    assert (rows.n_rows, rows.tokens, rows.trained_tokens) == (
        prepared.n_rows,
        prepared.tokens,
        prepared.trained_tokens,
    )


def test_rows_for_another_tokenizer_or_length_are_refused(prepared):
    with pytest.raises(ConfigError, match=r"max_seq_len is 64, but the rows of .* were prepared for 32"):
        open_mds_rows(prepared.folder, max_seq_len=64)

    class Other(ToyTokenizer):
        name, fingerprint = "other", "other-1"

    with pytest.raises(ConfigError, match=r"with the tokenizer toy \(fingerprint toy-1\), but this run uses other"):
        open_rows(mds_config(prepared.folder), Other())


def test_a_manifest_that_counts_other_rows_is_refused(prepared):
    file = prepared.folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rows": 1}))
    for opened in (again, lambda rows: open_mds_rows(rows.folder)):
        with pytest.raises(DataError, match=r"rows in its index, but 1 in its manifest"):
            opened(prepared)


IDS = [65, 256, 66, 67, 256, 68]


@pytest.mark.parametrize(
    ("encoding", "dtype"),
    [
        ("bytes", np.int64),
        ("ndarray", np.int64),
        ("ndarray:int32", np.int32),
        ("ndarray:uint32", np.uint32),
        ("ndarray:uint16", np.uint16),
        ("ndarray:int64:6", np.int64),
    ],
)
def test_tokens_alone_are_cut_after_each_eos(tmp_path, encoding, dtype):
    tokens = np.array(IDS, dtype=dtype)
    row = one_row(tmp_path / "mds", {"tokens": encoding}, tokens=tokens.tobytes() if encoding == "bytes" else tokens)
    assert row.tokens.tolist() == IDS
    assert row.lengths.tolist() == [2, 3, 1]
    assert row.loss_mask.tolist() == [1] * 6


def test_tokens_that_end_with_eos_or_have_none(tmp_path):
    columns = {"tokens": "ndarray:int32"}
    assert one_row(tmp_path / "a", columns, tokens=np.int32([1, 256])).lengths.tolist() == [2]
    assert one_row(tmp_path / "b", columns, tokens=np.int32([1, 2, 3])).lengths.tolist() == [3]
    assert one_row(tmp_path / "c", columns, tokens=np.int32([256, 256])).lengths.tolist() == [1, 1]


@pytest.mark.parametrize("encoding", ["bytes", "ndarray:int64"])
def test_labels_determine_what_is_trained_on(tmp_path, encoding):
    ids, labels = np.array([1, 256, 3, 4]), np.array([-100, -100, 3, 4])
    if encoding == "bytes":
        ids, labels = ids.tobytes(), labels.tobytes()
    row = one_row(tmp_path / "mds", {"input_ids": encoding, "labels": encoding}, input_ids=ids, labels=labels)
    assert row.tokens.tolist() == [1, 256, 3, 4]
    assert row.loss_mask.tolist() == [0, 0, 1, 1]
    assert row.lengths.tolist() == [4]


LABELS = {"input_ids": "ndarray:int64", "labels": "ndarray:int64"}
TOKENS = {"tokens": "ndarray:int64"}


@pytest.mark.parametrize(
    ("columns", "sample", "message"),
    [
        (TOKENS, {"tokens": np.arange(33)}, "33 tokens, but max_seq_len is 32"),
        (
            TOKENS,
            {"tokens": np.array([1, 258])},
            "the row contains the token id 258, but the tokenizer's ids are 0 to 257",
        ),
        (TOKENS, {"tokens": np.array([1, -1])}, "the token id -1, but"),
        (
            TOKENS,
            {"tokens": np.array([[1, 2]])},
            r"tokens is an ndarray of int64 with shape \(1, 2\), but it must be a 1-D integer",
        ),
        ({"tokens": "ndarray"}, {"tokens": np.array([1.0])}, r"tokens is an ndarray of float64"),
        ({"tokens": "bytes"}, {"tokens": b"1234567"}, "tokens has 7 bytes, which is not a multiple of 8"),
        ({"tokens": "bytes"}, {"tokens": np.array([1, 2], np.int32).tobytes()}, "the token id 8589934593"),
        ({"tokens": "str"}, {"tokens": "1 2"}, "tokens is str, but it must be a 1-D integer ndarray"),
        (LABELS, {"input_ids": np.array([1, 2]), "labels": np.array([1])}, "2 input_ids, but 1 labels; if they are"),
        (
            LABELS,
            {"input_ids": np.array([1, 2, 3]), "labels": np.array([2, 3, -100])},
            r"labels\[0\] is 2, but input_ids\[0\] is 1: labels must not be shifted",
        ),
        (
            COLUMNS,
            {"tokens": np.int32([1, 2]), "loss_mask": np.uint8([1, 1]), "lengths": np.int32([3])},
            "the row has 2 tokens, 2 values in the loss mask, and lengths that sum to 3",
        ),
    ],
)
def test_invalid_rows_are_named_before_training(tmp_path, columns, sample, message):
    with pytest.raises(DataError, match=message) as error:
        one_row(tmp_path / "mds", columns, **sample)
    assert str(error.value).startswith(f"row 0 of {tmp_path / 'mds' / 'shard.00000.mds'} cannot be read (")


def test_a_wrong_row_in_the_middle_is_named_when_it_is_read(tmp_path):
    samples = [{"tokens": np.array([number, 500 if number == 70 else 1])} for number in range(100)]
    rows = open_mds_rows(write_mds(tmp_path / "mds", TOKENS, samples))
    place = 70 - int(np.cumsum(rows.shard_sizes)[1])
    assert [rows.read(row_id).tokens[0] for row_id in range(70)] == list(range(70))
    with pytest.raises(
        DataError, match=rf"row {place} of .*shard.00002.mds cannot be read \(the row contains the token id 500"
    ):
        rows.read(70)


def tokens_folder(folder, n=100, **kwargs):
    return write_mds(folder, TOKENS, [{"tokens": np.array([number, 1])} for number in range(n)], **kwargs)


def test_the_fingerprint_of_rows_in_place_is_the_content_s(tmp_path):
    same, moved = (open_mds_rows(tokens_folder(tmp_path / name)).fingerprint for name in "ab")
    other = open_mds_rows(tokens_folder(tmp_path / "c", 99)).fingerprint
    assert same == moved != other


def test_rows_already_need_no_preprocessing(tmp_path):
    with pytest.raises(
        ConfigError, match=r"preprocessing_fn is 'm:f', but the samples of .* are already prepared rows"
    ):
        open_mds_rows(tokens_folder(tmp_path / "mds"), preprocessing_fn="m:f")


def test_remote_rows_are_read_by_forked_workers(tmp_path):
    folder = tokens_folder(tmp_path / "mds", compression="zstd")
    rows = open_mds_rows(folder, local=None, remote=str(folder))
    fork = multiprocessing.get_context("fork")
    found = fork.SimpleQueue()

    def read(first):
        rows.prefetch(np.arange(first, rows.n_rows, 2))
        found.put([int(rows.read(row_id).tokens[0]) for row_id in range(first, rows.n_rows, 2)])

    workers = [fork.Process(target=read, args=(first,)) for first in range(2)]
    for worker in workers:
        worker.start()
    assert sorted(found.get() + found.get()) == list(range(100))
    for worker in workers:
        worker.join(20)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_shard_lost_while_training_ends_the_run(tmp_path, num_workers):
    folder = tokens_folder(tmp_path / "mds")
    rows = open_mds_rows(folder, local=None, remote=str(folder))
    (folder / "shard.00002.mds").unlink()
    config = loader_config(tmp_path, num_workers)
    loader = eval_loader({"": rows}, config, device_batch_size=5, rank=0, world_size=1, pad_token_id=257)
    with pytest.raises(DataError, match=r"^.*shard.00002.mds cannot be downloaded \(no such file exists\)"):
        list(loader)


@pytest.mark.parametrize("remote", [False, True])
def test_texts_of_an_mds_folder_are_prepared(tmp_path, remote):
    folder = write_mds(tmp_path / "mds", {"prompt": "str", "response": "str"}, questions(40))
    changes = {"local": None, "remote": str(folder)} if remote else {}
    rows = open_mds_rows(folder, prepare_workers=1, **changes)
    assert documents(rows) == sorted(f"{each['prompt']}{each['response']}".encode() for each in questions(40))
    assert rows.folder.parent == tmp_path / "cache"


def test_a_source_is_found_without_a_shard(tmp_path):
    folder = tokens_folder(tmp_path / "mds")
    for shard in folder.glob("*.mds"):
        shard.unlink()
    find_source(mds_config(folder))
    with pytest.raises(ConfigError, match="no such folder exists"):
        find_source(mds_config(tmp_path / "none"))


def test_verify_names_the_samples_of_what_is_broken(tmp_path):
    folder = tokens_folder(tmp_path / "mds")
    sizes = open_mds_rows(folder).shard_sizes
    assert verify(folder).broken == []
    content = bytearray((folder / "shard.00001.mds").read_bytes())
    content[-1] ^= 1
    (folder / "shard.00001.mds").write_bytes(content)
    (folder / "shard.00002.mds").unlink()
    found = verify(folder)
    flipped, lost = found.broken
    assert (flipped.file, flipped.first, flipped.last) == ("shard.00001.mds", sizes[0], sizes[0] + sizes[1] - 1)
    assert "is damaged (its xxh64" in flipped.why
    assert (lost.file, lost.first) == ("shard.00002.mds", sizes[0] + sizes[1])
    assert "is missing" in lost.why
    assert (found.n_samples, found.n_shards, found.unhashed) == (100, len(sizes), 0)


def test_verify_ignores_earlier_checks(tmp_path):
    folder = tokens_folder(tmp_path / "mds")
    rows = open_mds_rows(folder)
    shard = folder / "shard.00000.mds"
    stat = shard.stat()
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert open_mds_rows(folder).n_rows == 100  # what is remembered goes by size and time of change
    assert [each.file for each in verify(rows).broken] == ["shard.00000.mds"]


def test_verify_reports_shards_without_hash(tmp_path):
    folder = write_texts(tmp_path / "mds", hashes=())
    assert verify(folder).unhashed == verify(folder).n_shards > 0
    edit_index(folder, lambda index: index["shards"][0].update(samples=1))
    assert "samples, but index.json lists 1" in verify(folder).broken[0].why
