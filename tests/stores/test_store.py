"""Folders in object stores, against an S3 server and a Google storage on loopback."""

from pathlib import Path

import pytest

from data.base.errors import ConfigError
from data.stores.address import folder_for, url_defect
from data.stores.store import Store, StoreError, open_store
from tests.helpers.store_faults import Fault
from tests.helpers.stores import Server, serve, shorten_waits

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module", params=["s3", "gs"])
def served(request):
    with serve(request.param) as server, pytest.MonkeyPatch.context() as patch:
        shorten_waits(patch)
        yield server, open_store(f"{server.url}/runs/x/")


@pytest.fixture
def server(served: tuple[Server, Store]):
    yield served[0]
    served[0].faults.clear()
    for key in served[0].content():
        served[0].delete(key)


@pytest.fixture
def store(served: tuple[Server, Store], server: Server) -> Store:
    return served[1]


def written(folder: Path, **contents: str) -> list[tuple[Path, str]]:
    for name, text in contents.items():
        (folder / name).write_text(text)
    return [(folder / name, f"below/{name}") for name in contents]


def test_files_are_sent_listed_fetched_and_deleted(store: Store, server: Server, tmp_path: Path) -> None:
    store.send(written(tmp_path, a="A" * 1000, b="B"))
    assert server.content() == {"runs/x/below/a": b"A" * 1000, "runs/x/below/b": b"B"}
    server.put("runs/xyz/c", b"of another folder")
    assert store.sizes() == {"below/a": 1000, "below/b": 1}
    store.fetch([(tmp_path / "again", "below/a")])
    assert (tmp_path / "again").read_text() == "A" * 1000
    store.delete(["below/a", "below/none"])
    assert store.sizes("below/") == {"below/b": 1}
    assert store.read("below/a") is None


def test_a_conditional_write_fails_if_the_object_has_changed(store: Store) -> None:
    version = store.write("owner", b"1", replaces="")
    assert version is not None
    assert store.write("owner", b"2", replaces="") is None
    assert store.read("owner") == (b"1", version)
    newer = store.write("owner", b"3", replaces=version)
    assert newer not in (None, version)
    assert store.write("owner", b"4", replaces=version) is None
    assert store.read("owner") == (b"3", newer)


def test_the_last_file_of_a_folder_is_sent_last(store: Store, server: Server, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("config.json", "a", "sub/z"):
        (tmp_path / name).write_text(name)
    before = len(server.written())
    store.send_folder(tmp_path, "export", last="config.json")
    sent = server.written()[before:]
    assert sorted(sent) == [f"runs/x/export/{name}" for name in ("a", "config.json", "sub/z")]
    assert sent[-1] == "runs/x/export/config.json"


@pytest.mark.parametrize("kind", ["error", "reset", "cut"])
def test_temporary_failures_are_retried(store: Store, server: Server, tmp_path: Path, kind: str) -> None:
    (path, name), *_ = written(tmp_path, a="A" * 5000)
    sending = "POST" if server.scheme == "gs" else "PUT"
    server.faults += [Fault(sending, "", 1, "error" if kind == "cut" else kind)]
    store.send([(path, name)])
    server.faults += [Fault("GET", "below/a", 1, kind)]
    store.fetch([(tmp_path / "again", name)])
    assert (tmp_path / "again").read_text() == "A" * 5000
    assert not any(fault.times for fault in server.faults)


def test_a_refusal_names_the_object(store: Store, server: Server, tmp_path: Path) -> None:
    sending = "POST" if server.scheme == "gs" else "PUT"
    server.faults += [Fault(sending, "", 1, "denied")]
    with pytest.raises(StoreError, match=rf"{server.url}/runs/x/below/a cannot be written: permission denied"):
        store.send(written(tmp_path, a="A"))
    server.faults += [Fault(sending, "", 10, "error")]
    with pytest.raises(StoreError, match=rf"{server.url}/runs/x/below/a cannot be written: .*500"):
        store.send(written(tmp_path, a="A"))
    server.faults.clear()
    with pytest.raises(StoreError, match=rf"{server.url}/runs/x/none cannot be read: no such file"):
        store.fetch([(tmp_path / "none", "none")])
    with pytest.raises(FileNotFoundError):
        store.send([(tmp_path / "not-here", "x")])


def test_a_missing_bucket_is_an_error(server: Server) -> None:
    with pytest.raises(StoreError, match=rf"{server.scheme}://no-bucket/x cannot be listed: the bucket does"):
        open_store(f"{server.scheme}://no-bucket/x").sizes()


def test_a_large_file_is_sent_in_pieces(server: Server, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("data.stores.s3._PART_BYTES", 5 * 2**20)
    monkeypatch.setattr("data.stores.gcs._CHUNK_BYTES", 5 * 2**20)
    store, data = open_store(server.url), bytes(range(256)) * (12 * 2**12)
    (tmp_path / "large").write_bytes(data)
    store.send([(tmp_path / "large", "large")])
    assert server.content() == {"large": data}


def test_s3_without_credentials(monkeypatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="no credentials for S3 found: set AWS_ACCESS_KEY_ID and"):
        open_store("s3://bucket/x")
    open_store("s3://bucket/x", writable=False)  # as for a public bucket


def test_gs_without_credentials(monkeypatch, tmp_path: Path) -> None:
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    with pytest.raises(ConfigError, match="no credentials for Google Cloud Storage found: run `gcloud auth"):
        open_store("gs://bucket/x")
    open_store("gs://bucket/x", writable=False)


@pytest.mark.parametrize(
    ("url", "defect"),
    [
        ("s3://bucket", None),
        ("gs://bucket/a b/c/", None),
        ("oci://bucket/x", "the supported object stores are s3:// and gs://"),
        ("s3:///x", "it must have the form s3://BUCKET/PREFIX"),
        ("s3://bucket/x?y=1", "it must have the form s3://BUCKET/PREFIX"),
        ("s3://key:word@bucket/x", "credentials are not allowed in a URL"),
        ("s3://bucket/a//b", "a prefix must not contain empty"),
        ("s3://bucket/../b", "a prefix must not contain empty"),
        (f"s3://bucket/{'x' * 701}", "702 bytes, but the maximum is 700"),
    ],
)
def test_urls(url: str, defect: str | None) -> None:
    found = url_defect(url)
    assert (found is None) if defect is None else (found is not None and defect in found and "word" not in found)


def test_a_folder_for_each_url(tmp_path: Path) -> None:
    folders = [folder_for(url, tmp_path) for url in ("s3://b/a/b", "s3://b/a-b", "gs://b/a/b", "s3://b/a/b/")]
    assert len({*folders}) == 3
    assert folders[0] == folders[3]
    assert folders[0].name.startswith("b-a-b-")
