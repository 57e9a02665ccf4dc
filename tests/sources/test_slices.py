"""Slices of sources: together they contain each record once, whatever their size."""

import json
import os
import time
from contextlib import nullcontext

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.base.errors import DataError
from data.config.dataset import DatasetConfig
from data.sources.formats.content import next_line
from data.sources.slices import Piece, grouped, size_of_slices
from data.sources.source import open_source
from tests.helpers.read_source import chunks_of, of_file, of_folder, read

LINES = [json.dumps({"text": "x" * (number * 7 % 50), "n": number}) for number in range(200)]
CONTENTS = {
    "plain": "\n".join(LINES) + "\n",
    "no line end": "\n".join(LINES),
    "CRLF": "\r\n".join(LINES) + "\r\n",
    "blank lines": "\n\n  \n".join(LINES) + "\n\n",
    "byte order mark": "\ufeff" + "\n".join(LINES) + "\n",
    "long line": "\n".join([*LINES[:3], json.dumps({"text": "y" * 3000}), *LINES[3:]]) + "\n",
}


@pytest.mark.parametrize("n_bytes", [50, 333, 1000])
@pytest.mark.parametrize("content", CONTENTS)
def test_each_line_is_read_once_with_its_number(tmp_path, content, n_bytes):
    path = tmp_path / "a.jsonl"
    path.write_text(CONTENTS[content], newline="")
    source = open_source(of_file(path))
    assert len(source.slices(n_bytes)) > 5
    assert read(source, n_bytes) == read(source)
    assert sum(slice.size for slice in source.slices(n_bytes)) == source.total


@pytest.mark.parametrize("content", CONTENTS)
def test_the_position_of_a_record_is_its_first_byte(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_text(CONTENTS[content], newline="")
    source = open_source(of_file(path))
    with path.open("rb") as file:
        for chunk in chunks_of(source, 500):
            for place, row in source.rows(chunk):
                file.seek(place.position)
                assert json.loads(file.readline()) == row


def test_a_text_file_is_cut_at_line_ends(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"line {number}\n" for number in range(1000)))
    source = open_source(DatasetConfig(text=str(tmp_path), max_seq_len=8, cache_dir=str(tmp_path / ".cache")))
    texts = [row["text"] for _, row in read(source, 900)]
    assert "".join(texts) == (tmp_path / "a.txt").read_text()
    assert len(texts) == len(source.slices(900)) > 5
    assert all(text.startswith("line ") and text.endswith("\n") for text in texts)


def test_parquet_files_are_cut_between_row_groups(tmp_path):
    table = pa.table({"text": [f"text {number}" for number in range(1000)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    source = open_source(of_file(tmp_path / "a.parquet"))
    slices = source.slices((tmp_path / "a.parquet").stat().st_size // 4)
    assert (slices[0].pieces[0].start, slices[0].pieces[0].stop) == (0, 3)
    assert len(slices) > 2
    assert read(source, 1000) == read(source)
    places = [place for chunk in chunks_of(source, 1000) for place, _ in source.rows(chunk)]
    assert [place.position for place in places] == list(range(1000))


def test_small_files_share_a_slice_and_files_that_cannot_be_cut_have_one(tmp_path):
    for number in range(10):
        (tmp_path / f"{number}.jsonl").write_text('{"text": "a"}\n' * 10)
    (tmp_path / "a.json").write_text(json.dumps([{"text": "b"}] * 1000))
    source = open_source(of_folder(tmp_path))
    files = [[piece.file for piece in slice.pieces] for slice in source.slices(300)]
    assert files == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10]]
    assert read(source, 300) == read(source)


def test_slices_of_a_large_source_are_larger():
    assert size_of_slices(4 << 20, 20 << 30) == 4 << 20
    assert size_of_slices(4 << 20, 1 << 40) == (1 << 40) // 8192
    assert grouped([], 10) == []


def test_a_line_that_spans_slices_is_read_to_its_end_only_once(tmp_path, monkeypatch):
    monkeypatch.setattr("data.sources.formats.content.SCAN_BYTES", 64)
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "x" * 20_000}))
    source, n_read = open_source(of_file(path)), [0]
    slices = source.slices(200)
    monkeypatch.setattr("data.sources.formats.content.next_line", counted(n_read))
    assert len(slices) > 90
    assert len([chunk for slice in slices for chunk in source.chunks(slice)]) == 1
    assert n_read[0] < 3 * 20_000


def counted(n_read: list[int]):
    """next_line, which also counts the bytes between the offset and its result."""

    def counting(path, name, offset, limit=None):
        found = next_line(path, name, offset, limit)
        n_read[0] += found - offset
        return found

    return counting


def test_many_small_pieces_are_grouped_in_linear_time():
    started = time.process_time()
    assert len(grouped((Piece(file=number, size=1) for number in range(20_000)), 19_999)) == 2
    assert time.process_time() - started < 2


@pytest.mark.parametrize("content", ["same", "other"])
def test_a_hard_link_to_a_file_is_not_a_change_of_its_content(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(LINES))
    before, source = path.stat(), open_source(of_file(path))
    chunks = chunks_of(source, 500)
    next(chunks)
    if content == "other":
        path.write_text("\n".join(LINES).replace("x", "y"))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    (tmp_path / "link").hardlink_to(path)
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(DataError, match="changed while it was being read") if content == "other" else nullcontext():
        list(chunks)
