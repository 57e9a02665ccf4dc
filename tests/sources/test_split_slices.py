"""`split` as in the `datasets` library: slices, percentages and sums."""

import gzip
import json
import random
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.base.errors import ConfigError, DataError
from data.config.dataset import DatasetConfig
from data.config.source import HFKwargs
from data.config.splits import parse_split
from data.sources.source import open_source
from tests.helpers.read_source import of_folder, read, values
from tests.helpers.toy_tokenizer import write_jsonl

ROWS = [{"prompt": str(i), "response": "x"} for i in range(97)]


def test_bounds_are_those_of_datasets():
    from datasets import ReadInstruction

    pick = random.Random(11)
    for _ in range(400):
        unit = pick.choice(["", "%"])
        bounds = [pick.choice([None, pick.randrange(-100, 101)]) for _ in range(2)]
        spec = "train[{}:{}]".format(*("" if bound is None else f"{bound}{unit}" for bound in bounds))
        n_rows = pick.choice([1, 7, 50, 99, 150, 12_345])
        if no_rows(*bounds):
            continue
        (theirs,) = ReadInstruction.from_spec(spec).to_absolute({"train": n_rows})
        (part,) = parse_split(spec)
        start, end = part.bounds(n_rows)
        assert (end - start, end) == (max(theirs.to - theirs.from_, 0), theirs.to), (spec, n_rows)


def no_rows(start, end) -> bool:
    """Whether the slice has no rows in any split, and is therefore refused."""
    return end == 0 or (start is not None and end is not None and (start < 0) == (end < 0) and start >= end)


@pytest.mark.parametrize(
    ("split", "text"),
    [
        ("train[:90", "but 'train[:90' is not a split or a slice of a split: use a form such as train, train[:90%]"),
        ("train[:33.3%]", "is not a split or a slice of a split"),
        ("train[5]", "is not a split or a slice of a split"),
        ("train+", "but '' is not a split"),
        ("train[10%:20]", "is in percent and the other is in rows"),
        ("train[:120%]", "above 100%"),
        ("train[20:10]", "'train[20:10]' contains no rows"),
        ("train[-5%:-5%]", "contains no rows"),
        ("train[:0]", "contains no rows"),
    ],
)
def test_what_is_no_split_is_refused_by_the_config(split, text):
    with pytest.raises(ValueError, match=re.escape(text)) as error:
        of_folder("/anywhere", split)
    assert str(error.value).startswith(f"split is {split!r}, ")


@pytest.mark.parametrize("key", ["local", "remote"])
def test_a_split_of_mds_is_a_folder(key):
    with pytest.raises(ValueError, match=r"split is 'train\[:90%\]', but for MDS shards split is the name of a folder"):
        DatasetConfig(split="train[:90%]", max_seq_len=8, **{key: "/mds"})


def write(folder, format: str) -> list:
    """Three files of 97 rows; the rows as they are read."""
    for number, rows in enumerate((ROWS[:40], ROWS[40:41], ROWS[41:])):
        path = folder / f"{number}.{format}"
        if format == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=10)
        elif format == "csv":
            path.write_text("prompt,response\n" + "".join(f"{row['prompt']},x\n\n" for row in rows))
        elif format == "json":
            path.write_text(json.dumps(rows))
        else:
            lines = "\n \n".join(json.dumps(row) for row in rows).encode()
            path.write_bytes(gzip.compress(lines) if format == "jsonl.gz" else lines)
    return values(read(open_source(of_folder(folder))))


@pytest.mark.parametrize("format", ["jsonl", "jsonl.gz", "json", "csv", "parquet"])
def test_a_slice_has_its_rows_and_their_places(tmp_path, monkeypatch, format):
    monkeypatch.setattr("data.sources.formats.content.BLOCK_BYTES", 200)
    assert write(tmp_path, format) == ROWS
    whole = read(open_source(of_folder(tmp_path)))
    for split, wanted in (
        ("train[:90%]", whole[:87]),
        ("train[90%:]", whole[87:]),
        ("train[38:43]", whole[38:43]),
        ("train[-5:]", whole[-5:]),
        ("train[40:-56]", whole[40:41]),
        ("train[:1]+train[-1:]", [whole[0], whole[-1]]),
        ("train[50%:]+train[:50%]", whole[48:] + whole[:48]),
        ("train[:1000]", whole),
    ):
        assert read(open_source(of_folder(tmp_path, split))) == wanted, split


def test_rows_that_cannot_be_used_count(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a"\n{"a": 3}\n')
    config = DatasetConfig(hf_name=str(path), split="train[1:]", max_seq_len=8)
    (bad, problem), good = read(open_source(config))
    assert (bad, good) == (f"{path}:2", (f"{path}:3", {"a": 3}))
    assert problem.kind == "not JSON"


def test_splits_are_added_in_their_order(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", ROWS[:4])
    write_jsonl(tmp_path / "val.jsonl", ROWS[4:8])
    assert values(read(open_source(of_folder(tmp_path, "validation+train")))) == ROWS[4:8] + ROWS[:4]
    assert values(read(open_source(of_folder(tmp_path, "train[:2] + validation[-1:]")))) == [*ROWS[:2], ROWS[7]]
    with pytest.raises(ConfigError, match=r"split is 'test', but no file .*set split to train or validation"):
        open_source(of_folder(tmp_path, "train+test"))


def test_a_slice_of_named_files_is_of_all_of_them(tmp_path):
    files = [str(write_jsonl(tmp_path / f"{i}.jsonl", ROWS[i * 10 : i * 10 + 10])) for i in range(3)]
    for data_files in (files, {"train": files}):
        kwargs = HFKwargs(data_files=data_files)
        config = DatasetConfig(hf_name="json", hf_kwargs=kwargs, split="train[8:-8]", max_seq_len=8)
        assert values(read(open_source(config))) == ROWS[8:22]
    assert values(read(open_source(DatasetConfig(hf_name=files[0], split="train[:1]", max_seq_len=8)))) == ROWS[:1]


def test_the_slice_is_part_of_the_fingerprint(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    splits = (None, "train", "train[:90%]", "train[:90]", "train[:91]", "train[10:]")
    marks = [open_source(of_folder(tmp_path, split)).fingerprint for split in splits]
    assert marks[0] == marks[1]
    assert len(set(marks)) == 5
    assert marks[2] == open_source(of_folder(tmp_path, " train[:90%] ")).fingerprint


def test_a_file_is_not_read_past_the_slice(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    source = open_source(DatasetConfig(hf_name=str(path), split="train[:10%]", max_seq_len=8))
    assert 0 < source.total < path.stat().st_size / 5
    write_jsonl(path, ROWS[:50])
    with pytest.raises(DataError, match="changed while it was being read"):
        read(source)


def test_a_slice_without_rows_is_an_error(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ROWS[:5])
    with pytest.raises(DataError, match=r"split selects none of the 5 rows .*: use a larger slice"):
        read(open_source(of_folder(tmp_path, "train[:1%]")))
