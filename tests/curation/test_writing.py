"""The curated documents as Parquet files. These tests need no Spark."""

import hashlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.curation import writing
from data.curation.base.document import COLUMNS, ID_BITS
from data.curation.base.tasks import ARROW_SCHEMA
from data.curation.writing import write_batches

SCHEMA = pa.schema([("slice", pa.int64()), *ARROW_SCHEMA])


def batches(size: int, slices: dict[int, int]) -> list[pa.RecordBatch]:
    ids = [(slice << ID_BITS) | number for slice, count in slices.items() for number in range(count)]
    values = {
        "slice": [id >> ID_BITS for id in ids],
        "id": ids,
        "source": ["web"] * len(ids),
        "file": ["a.jsonl"] * len(ids),
        "position": ids,
        "text": [f"text {id}" for id in ids],
        "n_tokens": [1] * len(ids),
        "scores": [[("length", 1.0)]] * len(ids),
    }
    return pa.table(values, schema=SCHEMA).to_batches(max_chunksize=size)


def files_of(folder) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_files_do_not_depend_on_the_batches(tmp_path, monkeypatch, size):
    monkeypatch.setattr(writing, "ROWS", 4)
    for name, length in (("expected", 3), ("found", size)):
        (tmp_path / name).mkdir()
        list(write_batches(iter(batches(length, {0: 10, 3: 1, 4: 8})), str(tmp_path / name)))
    found = files_of(tmp_path / "found")
    assert list(found) == ["documents-00000.parquet", "documents-00003.parquet", "documents-00004.parquet"]
    assert found == files_of(tmp_path / "expected")
    table = pq.read_table(tmp_path / "found")
    assert table.column_names == list(COLUMNS)
    assert table.num_rows == 19
    assert pq.ParquetFile(tmp_path / "found" / "documents-00000.parquet").num_row_groups == 3


def test_a_task_without_documents_writes_nothing(tmp_path):
    (batch,) = write_batches(iter([]), str(tmp_path))
    assert batch.num_rows == 0
    assert not list(tmp_path.iterdir())
