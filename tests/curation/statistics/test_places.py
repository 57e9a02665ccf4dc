"""The locations of documents in messages and samples."""

import gzip

import pytest

from data.curation.statistics import places
from data.curation.statistics.places import place_text

LINES = b'{"text": "one"}\n{"text": "two"}\n{"text": "three"}\n'


@pytest.fixture(autouse=True)
def uncached():
    yield
    places._is_lines.cache_clear()
    places._line.cache_clear()


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_line_is_named_by_its_number(tmp_path, name):
    file = tmp_path / name
    file.write_bytes(gzip.compress(LINES) if name.endswith("gz") else LINES)
    assert place_text("web", str(file), 32) == f"web: {file}:3"
    assert place_text("web", str(file), 0) == f"web: {file}:1"


def test_a_line_far_behind_the_start_or_in_a_missing_file_is_named_by_its_byte(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    monkeypatch.setattr(places, "COUNTED", 20)
    assert place_text("web", str(tmp_path / "a.jsonl"), 32) == f"web: {tmp_path}/a.jsonl (line at byte 32)"
    assert place_text("web", "missing.jsonl", 12) == "web: missing.jsonl (line at byte 12)"


def test_records_of_other_files_are_named_by_their_number(tmp_path):
    (tmp_path / "a.json").write_text('[{"text": "one"}, {"text": "two"}]')
    assert place_text("web", str(tmp_path / "a.json"), 1) == f"web: {tmp_path}/a.json row 2"
    assert place_text("web", "a.parquet", 0) == "web: a.parquet row 1"
    assert place_text("docs", "a.txt", 0) == "docs: a.txt"
    assert place_text("docs", "a.txt", 100) == "docs: a.txt:100"
    assert place_text("mds", "folder", 7) == "mds: folder:7"
