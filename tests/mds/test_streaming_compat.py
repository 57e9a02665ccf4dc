"""Streaming is patched only where necessary."""

from pathlib import Path

import pytest
from streaming import MDSWriter
from streaming.base.storage.upload import CloudUploader

from data.mds import streaming_compat
from data.mds.streaming_compat import open_uploader, take_encoded_samples

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def forget_probes():
    yield
    streaming_compat._uploader_wants_an_empty_folder.cache_clear()


def test_a_writer_takes_samples_as_they_are_and_encoded(tmp_path):
    writer = MDSWriter(columns={"text": "str"}, out=str(tmp_path))
    encoded = writer.encode_sample({"text": "a"})
    take_encoded_samples(writer)
    assert writer.encode_sample({"text": "a"}) == writer.encode_sample(encoded) == encoded  # pyright: ignore


def test_a_writer_that_takes_encoded_samples_is_left_as_it_is():
    class Writer:
        def encode_sample(self, sample):
            return sample

    writer = Writer()
    take_encoded_samples(writer)
    assert vars(writer) == {}


@pytest.mark.parametrize("folder", ["absent", "full"])
def test_an_uploader_leaves_the_folder_that_it_sends_from(tmp_path, folder):
    local = tmp_path / folder
    if folder == "full":
        local.mkdir()
        (local / "a").write_text("a")
    uploader = open_uploader(local, str(tmp_path / "remote"))
    assert local.exists() == (folder == "full")
    local.mkdir(exist_ok=True)
    (local / "a").write_text("a")
    uploader.upload_file("a")
    assert (tmp_path / "remote" / "a").read_text() == "a"
    assert (local / "a").exists()


def test_an_uploader_that_creates_no_folder_gets_ours(tmp_path, monkeypatch):
    asked: list[Path] = []
    monkeypatch.setattr(CloudUploader, "get", lambda out, **settings: asked.append(Path(out[0])))
    open_uploader(tmp_path / "mine", str(tmp_path / "remote"))
    assert asked[-1] == tmp_path / "mine"
