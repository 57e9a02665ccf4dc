"""Parts in an object store."""

from dataclasses import replace

import pytest

from data.base.errors import ConfigError
from data.preparation.parts.part import PartError
from data.preparation.parts.plan import plan
from data.preparation.parts.remote import RemoteParts
from data.preparation.parts.write import write_part
from data.preparation.prepare import _tokenizing
from data.sources.source import open_source
from tests.helpers.prepared import TOY
from tests.helpers.stores import serve
from tests.helpers.toy_tokenizer import dataset_config, questions, write_jsonl


@pytest.fixture(scope="module")
def server():
    with serve("gs") as server:
        yield server


@pytest.fixture
def job(tmp_path, small_pieces):
    write_jsonl(tmp_path / "train.jsonl", questions(100))
    config, folder = dataset_config(tmp_path, prepare_workers=1), tmp_path / "out"
    source = open_source(config)
    return plan(folder, _tokenizing(folder, config, source, TOY), config, {"input": source.fingerprint}, None)


@pytest.fixture
def parts(server, job, request):
    """The parts of a store in which slice 0 is prepared."""
    parts = RemoteParts(f"{server.url}/{request.node.name}")
    parts.claim(job.folder)
    write_part(job, job.slices[0])
    parts.commit(job.folder, 0)
    return parts


def names_in(server, parts) -> list[str]:
    prefix = parts.url.removeprefix(f"{server.url}/")
    return sorted(name.removeprefix(f"{prefix}/") for name in server.content() if name.startswith(f"{prefix}/"))


def test_a_part_is_complete_when_its_manifest_is_written(server, parts, job):
    names = names_in(server, parts)
    assert names[0] == "documents.00000.bin"
    assert "unfinished/parts/00000.json" in names
    assert server.written()[-1].endswith("unfinished/parts/00000.json")
    parts.claim(job.folder)  # a preparation that is resumed
    assert parts.done() == {0}


def test_a_missing_file_is_named(server, parts, job):
    prefix = parts.url.removeprefix(f"{server.url}/")
    server.delete(f"{prefix}/shard.00000.00.mds")
    with pytest.raises(PartError, match=r"shard\.00000\.00\.mds is missing.*delete .*/unfinished/parts/00000\.json"):
        parts.fetch_manifests(job.folder)


def test_clean_keeps_the_shards_and_discard_does_not(server, parts, job):
    parts.fetch_manifests(job.folder)
    parts.check_writable()
    parts.clean()
    assert {name.partition(".")[0] for name in names_in(server, parts)} == {"documents", "shard"}
    parts.discard()  # without a plan, the files may belong to somebody else
    with pytest.raises(ConfigError, match=r"already contains shard\.00000\.00\.mds"):
        parts.claim(job.folder)


def test_a_failed_preparation_is_removed(server, parts, job):
    parts.discard()
    assert names_in(server, parts) == []


def test_the_parts_of_other_data_are_refused(server, parts, job, tmp_path):
    other = plan(tmp_path / "other", replace(job.recipe, spool=tmp_path), job.config, {"input": "x"}, None)
    with pytest.raises(ConfigError, match="was prepared from other data or settings"):
        parts.claim(other.folder)
