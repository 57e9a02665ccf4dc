"""Samples of MDS folders as a source of rows."""

import json

import pytest

from data.base.errors import ConfigError
from data.config.source import HFKwargs
from data.sources.mds import MdsSource
from data.sources.source import open_source
from tests.helpers.mds_folders import texts, write_mds
from tests.helpers.read_source import chunks_of, read
from tests.helpers.toy_tokenizer import dataset_config

pytestmark = pytest.mark.timeout(60)


def source_of(folder, **changes):
    settings = {"hf_name": None, "hf_kwargs": HFKwargs(), "local": str(folder)} | changes
    source = open_source(dataset_config(folder.parent, **settings))
    assert isinstance(source, MdsSource)
    return source


def rows_of(source):
    return read(source)


CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
TURNS = [{"input_ids": [1, 2], "labels": [3, 256]}]


@pytest.mark.parametrize(
    ("columns", "written", "row"),
    [
        ({"prompt": "str", "response": "str"}, {"prompt": "é", "response": "b"}, {"prompt": "é", "response": "b"}),
        (
            {"prompt": "bytes", "response": "bytes"},
            {"prompt": "é".encode(), "response": b"b"},
            {"prompt": "é", "response": "b"},
        ),
        ({"messages": "json"}, {"messages": CHAT}, {"messages": CHAT}),
        ({"messages": "str"}, {"messages": json.dumps(CHAT)}, {"messages": CHAT}),
        ({"turns": "json"}, {"turns": TURNS}, {"turns": TURNS}),
        ({"text": "str", "n": "int32"}, {"text": "a", "n": 3}, {"text": "a", "n": 3}),
        ({"text": "bytes"}, {"text": b"\xff"}, {"text": b"\xff"}),
    ],
)
def test_samples_of_llm_foundry_become_rows(tmp_path, columns, written, row):
    folder = write_mds(tmp_path / "mds", columns, [written, written])
    assert rows_of(source_of(folder)) == [(f"{folder} sample {number}", row) for number in range(2)]


def test_chunks_are_those_of_the_index(folder, tmp_path):
    here, there = (
        source_of(folder),
        source_of(folder, local=None, remote=str(folder), cache_dir=str(tmp_path / "cache")),
    )
    assert list(chunks_of(here)) == list(chunks_of(there))
    assert not list((tmp_path / "cache").rglob("*.mds"))
    assert sum(chunk.size for chunk in chunks_of(there)) == there.total == 60
    assert [row for _, row in rows_of(there)] == texts()
    assert here.fingerprint == there.fingerprint
    assert here.inputs[0]["samples"] == 60


@pytest.mark.parametrize("hashes", [(), ("xxh64",)])
def test_the_fingerprint_is_the_content_s(tmp_path, hashes):
    sources = [
        source_of(write_mds(tmp_path / name, {"text": "str"}, [{"text": text}], hashes=hashes))
        for name, text in [("a", "same"), ("b", "same"), ("c", "sama")]
    ]
    same, moved, other = (source.fingerprint for source in sources)
    assert same == moved != other


def test_a_sample_too_large_is_a_problem(folder, monkeypatch):
    monkeypatch.setattr("data.sources.formats.content.MAX_ROW_BYTES", 60)
    rows = rows_of(source_of(folder))
    assert {type(row).__name__ for _, row in rows[20:]} == {"Problem"}
    assert [row for _, row in rows[:10]] == texts(10)


def test_a_remote_too_large_names_the_converter(folder, tmp_path):
    changes = {"local": str(tmp_path / "here"), "remote": str(folder)}
    with pytest.raises(
        ConfigError, match=r"max_prepare_bytes is 100: convert the original data .* scripts/convert_fine"
    ):
        source_of(folder, max_prepare_bytes=100, **changes)
    source_of(folder, max_prepare_bytes=100)  # a local folder may have any size


def test_columns_that_form_no_example_are_refused(tmp_path):
    folder = write_mds(tmp_path / "mds", {"question": "str", "answer": "str"}, [{"question": "a", "answer": "b"}])
    with pytest.raises(
        ConfigError, match=r"columns answer, question, but the supported columns are prompt and response;"
    ):
        source_of(folder)
    source = source_of(folder, preprocessing_fn={"prompt": "question", "response": "answer"})
    assert rows_of(source)[0][1] == {"question": "a", "answer": "b"}
