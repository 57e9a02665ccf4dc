"""Data files compressed with gzip or zstd."""

import gzip
import json
import os

import pyarrow as pa
import pytest

from data.base.errors import DataError
from data.config.dataset import DatasetConfig
from data.sources.source import open_source
from tests.helpers.read_source import chunks_of, of_file, of_folder, read, refusal, values

ROWS = [{"prompt": str(i) * (i % 40), "response": "é" * (i % 13)} for i in range(200)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CONTENTS = {
    "a.jsonl": JSONL,
    "a.json": json.dumps(ROWS, indent=1).encode(),
    "a.csv": b"prompt,response\n" + "".join(f"{row['prompt']},{row['response']}\n" for row in ROWS).encode(),
    "a.TSV": b"prompt\tresponse\n" + "".join(f"{row['prompt']}\t{row['response']}\n" for row in ROWS).encode(),
}


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


COMPRESS = {".gz": gzip.compress, ".zst": zstd, ".GZ": gzip.compress}


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr("data.sources.formats.content.BLOCK_BYTES", 64)


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("name", CONTENTS)
def test_compressed_files_have_the_rows_and_places_of_plain_ones(tmp_path, small_blocks, name, suffix):
    (tmp_path / name).write_bytes(CONTENTS[name])
    path = tmp_path / (name + suffix)
    path.write_bytes(COMPRESS[suffix](CONTENTS[name]))
    plain, source = read(open_source(of_file(tmp_path / name))), open_source(of_file(path))
    assert read(source) == [(place.replace(name, name + suffix), row) for place, row in plain]
    assert values(plain) == ROWS
    assert source.inputs[0]["bytes"] == source.total == path.stat().st_size


def test_sizes_of_chunks_add_up_to_the_file_on_disk(tmp_path, small_blocks):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(os.urandom(50_000).hex().encode() + b"\n" + JSONL))
    source = open_source(of_file(path))
    assert sum(chunk.size for chunk in chunks_of(source)) == source.total


def test_a_large_row_counts_with_what_it_takes_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("data.sources.files.LARGE", 100_000)
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstd(json.dumps({"text": "x" * 3_000_000}).encode() + b"\n" + JSONL))
    large, *others = [chunk.size for chunk in chunks_of(open_source(of_file(path)))]
    assert large > 3_000_000
    assert others == [0] * len(others)


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
def test_members_and_frames_in_a_row_are_read_whole(tmp_path, compress):
    lines = JSONL.splitlines(keepends=True)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(b"".join(compress(b"".join(lines[i : i + 7])) for i in range(0, 200, 7)) + compress(b""))
    assert values(read(open_source(of_file(path)))) == ROWS


def test_a_file_of_pzstd_begins_with_a_frame_without_data(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + zstd(JSONL))
    assert values(read(open_source(of_file(path)))) == ROWS


@pytest.mark.parametrize("cut", [1, 9, 500])
@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_truncated_compressed_file_is_refused(tmp_path, suffix, cut):
    content = COMPRESS[suffix](os.urandom(20_000).hex().encode() + b"\n" + JSONL)[:-cut]
    text = refusal(tmp_path / f"a.jsonl{suffix}", content)
    kind = {".gz": "gzip", ".zst": "zstd"}[suffix]
    assert text.startswith(f"{tmp_path}/a.jsonl{suffix} is not a complete {kind} file (")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_with_other_bytes_in_it_is_refused(tmp_path, suffix):
    content = bytearray(COMPRESS[suffix](os.urandom(20_000).hex().encode() + b"\n" + JSONL))
    content[9_000:9_100] = bytes(100)
    assert "is not a complete" in refusal(tmp_path / f"a.jsonl{suffix}", bytes(content))


def test_the_name_may_be_wrong_about_compression(tmp_path):
    """A server or browser may have decompressed the file, or the file was never renamed."""
    (tmp_path / "a.jsonl.gz").write_bytes(JSONL)
    (tmp_path / "b.jsonl").write_bytes(gzip.compress(JSONL))
    assert values(read(open_source(of_folder(tmp_path)))) == ROWS + ROWS


def test_a_changed_compressed_file_is_refused(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(JSONL))
    source = open_source(of_file(path))
    assert source.fingerprint
    path.write_bytes(gzip.compress(JSONL.replace(b"7", b"8")))
    with pytest.raises(DataError, match="changed while it was being read"):
        read(source)


def test_compressed_text_is_a_document(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("\ufeffcafé\n".encode()))
    (tmp_path / "b.TXT.zst").write_bytes(zstd(b"two"))
    source = open_source(DatasetConfig(text=str(tmp_path), max_seq_len=8))
    assert values(read(source)) == [{"text": "café\n"}, {"text": "two"}]


def test_a_file_that_is_compressed_twice_is_refused(tmp_path):
    text = refusal(tmp_path / "a.jsonl.gz", gzip.compress(gzip.compress(JSONL)))
    assert text.endswith("a.jsonl.gz is not UTF-8 text but gzip: decompress the file first")
