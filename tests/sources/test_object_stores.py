"""Files in object stores as sources, against an S3 server and a Google storage on loopback."""

import glob
import gzip
import io
import itertools
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.base.errors import ConfigError, DataError
from data.config.dataset import DatasetConfig
from data.config.source import HFKwargs
from data.sources.remote import remote_file
from data.sources.remote.listing import _matches
from data.sources.source import open_source
from tests.helpers.read_source import of_file, of_folder, read, values
from tests.helpers.store_faults import Fault
from tests.helpers.stores import Server, serve, shorten_waits

pytestmark = pytest.mark.timeout(60)

ROWS = [{"prompt": f"{i} é?", "response": "12" * (i % 50)} for i in range(2000)]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), sink, row_group_size=300)
    return sink.getvalue()


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


FILES = {
    "a.jsonl": JSONL,
    "a.jsonl.gz": gzip.compress(JSONL),
    "a.jsonl.zst": zstd(JSONL),
    "a.json": json.dumps(ROWS).encode(),
    "a.csv": b"prompt,response\n" + b"".join(f'"{row["prompt"]}",{row["response"]}\n'.encode() for row in ROWS),
    "a.parquet": parquet(),
}


@pytest.fixture(scope="module", params=["s3", "gs"])
def served(request):
    with serve(request.param) as server, pytest.MonkeyPatch.context() as patch:
        shorten_waits(patch)
        yield server


@pytest.fixture
def server(served: Server):
    yield served
    served.faults.clear()
    for key in served.content():
        served.delete(key)


def of(name: str, tmp_path: Path, split: str | None = None, **kwargs) -> DatasetConfig:
    hf_kwargs = HFKwargs(**kwargs)
    return DatasetConfig(hf_name=name, split=split, hf_kwargs=hf_kwargs, max_seq_len=8, cache_dir=str(tmp_path / "c"))


def refusal(config: DatasetConfig) -> str:
    with pytest.raises((ConfigError, DataError)) as error:
        read(open_source(config))
    return str(error.value)


@pytest.mark.parametrize("name", FILES)
def test_rows_equal_those_of_a_local_file(server: Server, tmp_path: Path, monkeypatch, name: str) -> None:
    """With small requests, so that every file needs several."""
    for constant, value in (("PART_BYTES", 50_000), ("FIRST_PART_BYTES", 10_000), ("KEPT_BYTES", 3000)):
        monkeypatch.setattr(remote_file, constant, value)
    (tmp_path / name).write_bytes(FILES[name])
    server.put(f"x/{name}", FILES[name])
    local, remote = open_source(of_file(tmp_path / name)), open_source(of(f"{server.url}/x/{name}", tmp_path))
    assert remote.total == local.total
    expected = read(local, n_bytes=9000)
    assert len(expected) == len(ROWS)
    assert values(read(remote, n_bytes=9000)) == values(expected)
    assert remote.inputs[0]["path"] == f"{server.url}/x/{name}"


def test_a_slice_requests_only_its_bytes(server: Server, tmp_path: Path) -> None:
    server.put("a.jsonl", b"".join(itertools.repeat(JSONL, 40)))
    before = server.bytes_sent()
    source = open_source(of(f"{server.url}/a.jsonl", tmp_path))
    slices = source.slices(1 << 18)
    assert len(slices) > 8
    assert server.bytes_sent() - before < 2 * remote_file.KEPT_BYTES
    before = server.bytes_sent()
    assert sum(len(chunk.content) for chunk in source.chunks(slices[3])) > 0
    assert server.bytes_sent() - before < (1 << 18) + 4 * remote_file.KEPT_BYTES


def test_texts_are_split_as_in_local_files(server: Server, tmp_path: Path) -> None:
    text = JSONL * 20
    for name in ("b/2.txt", "b.txt", "b/readme.md"):
        server.put(f"texts/{name}", text)
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_bytes(text)
    configs = [
        DatasetConfig(text=place, max_seq_len=8, cache_dir=str(tmp_path / "c"))
        for place in (f"{server.url}/texts", str(tmp_path / "texts"), f"{server.url}/texts/**/*.txt")
    ]
    remote, local, pattern = (values(read(open_source(config))) for config in configs)
    assert len(local) > 4
    assert remote == local == pattern


def test_the_files_of_a_split_are_those_of_a_local_folder(server: Server, tmp_path: Path) -> None:
    names = ("train/b/1.jsonl", "train/b.jsonl", "test.jsonl", "notes.txt", ".hidden/train.jsonl")
    for number, name in enumerate(names):
        line = json.dumps({"prompt": f"{number}?", "response": "1"}).encode()
        server.put(f"d/{name}", line)
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(line)
    server.put("d/train/", b"")
    for split in ("train", "test"):
        expected = values(read(open_source(of_folder(tmp_path / "d", split))))
        assert values(read(open_source(of(f"{server.url}/d/", tmp_path, split)))) == expected
        named = of("json", tmp_path, split, data_dir=f"{server.url}/d", data_files={split: f"**/{split}*/*", "x": "y"})
        assert split == "test" or len(values(read(open_source(named)))) == 1
    text = refusal(of(f"{server.url}/d", tmp_path, "validation"))
    assert text.startswith(f"split is 'validation', but no file in '{server.url}/d' has this name")


def test_the_fingerprint_depends_on_the_content_and_the_order(server: Server, tmp_path: Path) -> None:
    for name, content in (("a/0.jsonl", b""), ("a/1.jsonl", b'{"text": "1"}'), ("a/2.jsonl", b'{"text": "2"}')):
        server.put(name, content)
        server.put(f"copied/{name}", content)

    def mark(*files: str) -> str:
        return open_source(of("json", tmp_path, data_files=[f"{server.url}/{file}" for file in files])).fingerprint

    first = mark("a/1.jsonl", "a/2.jsonl")
    assert mark("copied/a/*.jsonl") == first != mark("a/2.jsonl", "a/1.jsonl")
    server.put("a/1.jsonl", b'{"text": "3"}')
    assert mark("a/*.jsonl") != first


@pytest.mark.parametrize("name", FILES)
def test_an_object_that_changes_while_it_is_read_is_refused(server: Server, tmp_path: Path, name: str) -> None:
    server.put(name, FILES[name])
    source = open_source(of(f"{server.url}/{name}", tmp_path))
    slices = source.slices(1 << 40)
    server.put(name, FILES[name] + b" ")
    with pytest.raises(DataError, match=f"{server.url}/{name} changed while it was being read: start again when"):
        list(source.chunks(slices[0]))
    server.delete(name)
    with pytest.raises(DataError, match=f"{server.url}/{name} cannot be read: no such file exists: it was deleted"):
        list(source.chunks(slices[0]))
    server.put(name, FILES[name])


@pytest.mark.parametrize("kind", ["error", "cut", "reset"])
def test_failed_requests_are_sent_again(server: Server, tmp_path: Path, kind: str) -> None:
    server.put("a.parquet", FILES["a.parquet"])
    server.faults.append(Fault("GET", "a.parquet", times=2, kind=kind))
    assert len(read(open_source(of(f"{server.url}/a.parquet", tmp_path)))) == len(ROWS)


def test_an_invalid_row_is_reported_with_its_position(server: Server, tmp_path: Path) -> None:
    server.put("a.jsonl", JSONL + b"{\n")
    pairs = read(open_source(of(f"{server.url}/a.jsonl", tmp_path)), n_bytes=len(JSONL) // 3)
    assert pairs[-1][0] == f"{server.url}/a.jsonl (line at byte {len(JSONL)})"
    assert pairs[0][0] == f"{server.url}/a.jsonl:1"


def test_a_store_that_cannot_be_read_is_a_config_error(server: Server, tmp_path: Path) -> None:
    server.put("a/b.jsonl", JSONL)
    scheme = server.scheme
    for address, text in (
        (f"{scheme}://missing/a/*.jsonl", "cannot be listed: the bucket does not exist: check the name of the bucket"),
        (f"{scheme}://missing/a.jsonl", "cannot be listed: the bucket does not exist: check the name of the bucket"),
        (f"{scheme}://bucket/a/c.jsonl", "but there is no such object, and there are no objects below it"),
        (f"{scheme}://bucket/c", "but there is no such object, and there are no objects below it"),
        (f"{scheme}://bucket/a/*.csv", "but no object matches this pattern: check the pattern"),
        (f"{scheme}://B?/a.jsonl", "but it must have the form"),
    ):
        message = refusal(of(address, tmp_path))
        assert message.startswith(("hf_name has", "hf_name is"))
        assert address.rpartition("?")[0] in message
        assert text in message


def test_denied_access_is_a_config_error(server: Server, tmp_path: Path) -> None:
    server.put("a/b.jsonl", JSONL)
    method = "HEAD" if server.scheme == "s3" else "GET"
    for address, fault in (("a/*.jsonl", Fault("GET", "", 1, "denied")), ("a/b.jsonl", Fault(method, "", 1, "denied"))):
        server.faults[:] = [fault]
        message = refusal(of("json", tmp_path, data_files=f"{server.url}/{address}"))
        assert message.startswith(f"hf_kwargs.data_files has '{server.url}/{address}', but ")
        assert "permission denied: check the credentials, and their permission to list" in message


def test_patterns_match_as_in_glob(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    names = {"/".join(rng.choices(["a", "b", ".h", "ab"], k=rng.randint(1, 4))) + ".j" for _ in range(60)}
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    for _ in range(200):
        pattern = "/".join(rng.choices(["a", "*", "**", "a*", "[ab]", "?", ".h", "*.j", "**"], k=rng.randint(1, 4)))
        expected = {path for path in glob.glob(pattern, recursive=True) if Path(path).is_file()}  # noqa: PTH207
        assert {name for name in names if _matches(name.split("/"), pattern.split("/"))} == expected, pattern
