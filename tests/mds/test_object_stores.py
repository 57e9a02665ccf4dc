"""MDS folders in object stores: an S3 server, a Google storage and a hub on loopback."""

import multiprocessing
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from google.auth.credentials import AnonymousCredentials

from data.base.errors import ConfigError, DataError
from data.preparation.prepare import prepare_into
from tests.helpers import gcs_server
from tests.helpers.hub_server import Repository, serve, set_endpoint
from tests.helpers.mds_folders import open_folder, read_all, shorten_waits, texts, write_texts
from tests.helpers.toy_tokenizer import ToyTokenizer, dataset_config, questions, write_jsonl

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    shorten_waits(monkeypatch)


@pytest.fixture(scope="module")
def s3():
    """The client of an S3 server in a separate process: workers forked next to its threads could hang."""
    import boto3

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("S3_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.delenv("AWS_PROFILE", raising=False)
        try:
            wait_for(port)
            yield boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
        finally:
            server.kill()
            server.wait()


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        with socket.socket() as client:
            if not client.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.05)
    raise TimeoutError("the S3 server does not start")


@pytest.fixture
def bucket(s3, tmp_path, request):
    """Texts in s3://BUCKET/mds/train."""
    name = f"b{abs(hash(request.node.name))}"
    s3.create_bucket(Bucket=name)
    for file in write_texts(tmp_path / "up", 30, compression="zstd").iterdir():
        s3.upload_file(str(file), name, f"mds/train/{file.name}")
    return name


@pytest.mark.subprocess
def test_s3(bucket, tmp_path):
    mds = open_folder(f"s3://{bucket}/mds", to=tmp_path / "here", split="train")
    mds.check()
    assert not list(mds.folder.glob("*.mds"))
    assert read_all(mds) == texts(30)


@pytest.mark.subprocess
def test_s3_in_forked_workers(bucket, tmp_path):
    fork = multiprocessing.get_context("fork")
    mds, results = open_folder(f"s3://{bucket}/mds/train", to=tmp_path / "here"), fork.SimpleQueue()
    mds.read(0)
    workers = [fork.Process(target=lambda: results.put(read_all(mds) == texts(30))) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert all(results.get() for _ in workers)
    for worker in workers:
        worker.join(20)


@pytest.mark.subprocess
def test_s3_shards_are_checked_before_training(bucket, s3, tmp_path):
    s3.delete_object(Bucket=bucket, Key="mds/train/shard.00002.mds.zstd")
    mds = open_folder(f"s3://{bucket}/mds/train", to=tmp_path / "here")
    with pytest.raises(DataError, match=rf"s3://{bucket}/mds/train/shard.00002.mds.zstd is missing"):
        mds.check()


@pytest.mark.subprocess
def test_s3_without_the_index_or_the_bucket(bucket, tmp_path):
    with pytest.raises(ConfigError, match=rf"s3://{bucket}/none/index.json cannot be read: no such file"):
        open_folder(f"s3://{bucket}/none", to=tmp_path / "here")
    with pytest.raises(ConfigError, match=r"s3://no-such-bucket/index.json cannot be read: no such file"):
        open_folder("s3://no-such-bucket", to=tmp_path / "here")


def check_keys(after: str) -> None:
    """After this many requests the server checks their keys, and accepts none."""
    url = f"{os.environ['S3_ENDPOINT_URL']}/moto-api/reset-auth"
    with urllib.request.urlopen(urllib.request.Request(url, after.encode(), {"Content-Type": "text/plain"})):
        pass


@pytest.mark.subprocess
def test_s3_without_permission(bucket, tmp_path):
    mds = open_folder(f"s3://{bucket}/mds/train", to=tmp_path / "here")
    check_keys(after="0")
    try:
        with pytest.raises(ConfigError, match=rf"remote is 's3://{bucket}/mds', but .*: permission denied: check"):
            open_folder(f"s3://{bucket}/mds", to=tmp_path / "there")
        with pytest.raises(DataError, match=r"shard.00000.mds.zstd cannot be downloaded \(permission denied\)"):
            mds.check()
    finally:
        check_keys(after="inf")


@pytest.fixture
def gs(folder, monkeypatch):
    """A storage with texts in gs://bucket/mds/train."""
    files = {f"mds/train/{file.name}": file.read_bytes() for file in folder.iterdir()}
    with gcs_server.serve(gcs_server.Storage({"bucket": files})) as storage:
        monkeypatch.setattr("google.auth.default", lambda: (AnonymousCredentials(), None))
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage.endpoint)
        for name in ("GCS_KEY", "GCS_SECRET"):
            monkeypatch.delenv(name, raising=False)
        yield storage


def test_gs(gs, tmp_path):
    mds = open_folder("gs://bucket/mds", to=tmp_path / "here", split="train")
    mds.check()
    assert not list(mds.folder.glob("*.mds"))
    assert read_all(mds) == texts()


def test_gs_shards_are_checked_before_training(gs, tmp_path):
    files = gs.buckets["bucket"].items()
    gs.buckets["lost"] = {name: content for name, content in files if "shard.00002" not in name}
    mds = open_folder("gs://lost/mds/train", to=tmp_path / "here")
    with pytest.raises(DataError, match=r"gs://lost/mds/train/shard.00002.mds is missing"):
        mds.check()


def test_gs_without_the_bucket_or_permission(gs, tmp_path):
    with pytest.raises(ConfigError, match=r"gs://no-such-bucket/index.json cannot be read: no such file"):
        open_folder("gs://no-such-bucket", to=tmp_path / "here")
    gs.denied = True
    with pytest.raises(ConfigError, match=r"remote is 'gs://bucket/mds', but .*: permission denied: check"):
        open_folder("gs://bucket/mds", to=tmp_path / "there")


def test_rows_are_sent_to_gs(gs, tmp_path):
    write_jsonl(tmp_path / "train.jsonl", questions(100))
    config = dataset_config(tmp_path, prepare_workers=1)
    folder = prepare_into(tmp_path / "out", config, ToyTokenizer(), remote="gs://bucket/rows")
    first, *others, last = gs.uploaded
    assert (first, last) == ("rows/manifest.json", "rows/index.json")
    assert sorted(others) == ["rows/documents.00000.bin", "rows/shard.00000.00.mds"]
    sent = {name.removeprefix("rows/"): gs.buckets["bucket"][name] for name in gs.uploaded}
    assert sent == {path.name: path.read_bytes() for path in folder.iterdir()}
    del gs.buckets["bucket"]["rows/index.json"]  # as after a killed upload
    prepare_into(tmp_path / "out", config, ToyTokenizer(), remote="gs://bucket/rows")
    assert gs.uploaded[4:] == ["rows/manifest.json", "rows/index.json"]
    with pytest.raises(ConfigError, match=r"'gs://no-such-bucket/rows' cannot be written \(NotFound: 404"):
        prepare_into(tmp_path / "other", config, ToyTokenizer(), remote="gs://no-such-bucket/rows")


def test_hf(folder, tmp_path, monkeypatch):
    files = {f"mds/train/{file.name}": file.read_bytes() for file in folder.iterdir()}
    some = {name: content for name, content in files.items() if "shard.00001" not in name}
    with serve({"acme/mds": Repository(files), "acme/lost": Repository(some)}) as hub:
        set_endpoint(monkeypatch, hub.endpoint)
        mds = open_folder("hf://datasets/acme/mds/mds", to=tmp_path / "here", split="train")
        mds.check()
        assert read_all(mds) == texts()
        with pytest.raises(DataError, match=r"hf://datasets/acme/lost/mds/train/shard.00001.mds is missing"):
            open_folder("hf://datasets/acme/lost/mds", to=tmp_path / "there", split="train").check()
        with pytest.raises(ConfigError, match=r"hf://datasets/acme/none/index.json cannot be read: no such"):
            open_folder("hf://datasets/acme/none", to=tmp_path / "none")


def test_hf_without_a_network_fails_immediately(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"remote is 'hf://datasets/a/b', but .*no network: http://127.0.0.1:9"):
        open_folder("hf://datasets/a/b", to=tmp_path / "here")
