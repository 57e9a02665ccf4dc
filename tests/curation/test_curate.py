"""Curations from the sources to the written documents. All tests use one Spark session."""

import hashlib
import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data.base.errors import ConfigError, DataError
from data.curation import config as config_module
from data.curation import curate as curate_module
from data.curation.config import read_config
from data.curation.curate import check, curate
from data.mds.folder import MdsFolder
from tests.helpers.curation_steps import Lengths
from tests.helpers.toy_tokenizer import ToyTokenizer, write_jsonl

pytestmark = [pytest.mark.slow, pytest.mark.subprocess]

FUNCTIONS = """
def not_word(document, word):
    if document["text"] == word:
        raise ValueError(f"found {word}")
    return True

def upper(document):
    return document["text"].upper()

def without(document, letter):
    return letter not in document["text"]
"""


@pytest.fixture
def run(tmp_path, monkeypatch, spark):
    """Return a function that curates two sources with the given steps."""
    monkeypatch.setattr(curate_module, "build_tokenizer", lambda config: ToyTokenizer())
    monkeypatch.setitem(config_module.STEPS, "lengths", Lengths)
    (tmp_path / "functions_of_curation.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "functions_of_curation", raising=False)
    write_jsonl(tmp_path / "web.jsonl", [{"text": word} for word in ("one", "two", "three", "four", "five")])
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("a document")

    def curate_with(*steps, **values):
        given = {
            "sources": {"web": {"hf_name": str(tmp_path / "web.jsonl")}, "docs": {"text": str(tmp_path / "docs")}},
            "tokenizer": {"name": "toy"},
            "steps": list(steps),
            "output": str(tmp_path / "out"),
            "cache_dir": str(tmp_path / "cache"),
        }
        return curate(*read_config({**given, **values}))

    return curate_with


def lengths(tmp_path: Path, **parameters) -> dict:
    return {"lengths": {"calls": str(tmp_path / "calls"), **parameters}}


def documents(folder: Path) -> list[dict]:
    return pq.read_table(folder / "out" / "documents").to_pylist(maps_as_pydicts="strict")


def step_files(folder: Path) -> dict[str, int]:
    """The reports of the steps, and the times at which they were written."""
    return {file.parent.name[:2]: file.stat().st_mtime_ns for file in (folder / "out" / "steps").glob("*/step.json")}


def test_documents_are_written_with_their_origin(tmp_path, run):
    report = run({"functions_of_curation:without": {"letter": "w"}}, "functions_of_curation:upper")
    assert [row["text"] for row in documents(tmp_path)] == ["ONE", "THREE", "FOUR", "FIVE", "A DOCUMENT"]
    row = documents(tmp_path)[1]
    assert (row["source"], row["file"], row["position"]) == ("web", str(tmp_path / "web.jsonl"), 32)
    assert row["n_tokens"] == 5
    flows = [(step.name, step.total().before.documents, step.total().after.documents) for step in report.steps]
    assert flows == [
        ("read", 6, 6),
        ("functions_of_curation:without", 6, 5),
        ("functions_of_curation:upper", 5, 5),
    ]
    assert report.steps[1].reasons["functions_of_curation:without"].documents == 1
    assert report.steps[1].removed[0].place == f"web: {tmp_path}/web.jsonl:2"
    assert {(sample.other_text, sample.text) for sample in report.steps[2].changed} <= {
        (row["text"].lower(), row["text"]) for row in documents(tmp_path)
    }


def test_complete_steps_are_not_repeated(tmp_path, run, monkeypatch):
    run("functions_of_curation:upper", lengths(tmp_path, min_length=4))
    before = step_files(tmp_path)
    run(
        "functions_of_curation:upper",
        lengths(tmp_path, min_length=4),
        {"functions_of_curation:without": {"letter": "A"}},
    )
    after = step_files(tmp_path)
    assert {number: after[number] for number in before} == before
    assert [row["text"] for row in documents(tmp_path)] == ["THREE", "FOUR", "FIVE"]
    with monkeypatch.context() as patch:
        patch.setattr(curate_module, "spark_session", None)
        run(
            "functions_of_curation:upper",
            lengths(tmp_path, min_length=4),
            {"functions_of_curation:without": {"letter": "A"}},
        )
    run({"functions_of_curation:without": {"letter": "u"}}, "functions_of_curation:upper")
    assert step_files(tmp_path)["00"] == before["00"]
    assert sorted(step_files(tmp_path)) == ["00", "01", "02"]


def test_changed_thresholds_do_not_repeat_scores(tmp_path, run):
    run(lengths(tmp_path, min_length=4))
    assert len((tmp_path / "calls").read_text()) == 6
    report = run(lengths(tmp_path, max_length=4))
    assert len((tmp_path / "calls").read_text()) == 6
    assert [row["text"] for row in documents(tmp_path)] == ["one", "two", "four", "five"]
    assert documents(tmp_path)[0]["scores"] == {"lengths.length": 3.0}
    assert report.steps[1].reasons["lengths.max_length"].documents == 2
    assert report.steps[1].note
    fresh = run(lengths(tmp_path, max_length=4), output=str(tmp_path / "other"))
    assert fresh.steps[1].flows == report.steps[1].flows


def test_an_exception_names_the_file_the_line_and_the_step(tmp_path, run):
    with pytest.raises(DataError) as raised:
        run("functions_of_curation:upper", {"functions_of_curation:not_word": {"word": "THREE"}})
    place = f"web: {tmp_path}/web.jsonl:3"
    assert str(raised.value).startswith(f"{place}: the step functions_of_curation:not_word raised")
    assert "ValueError: found THREE" in str(raised.value)
    before = step_files(tmp_path)
    run("functions_of_curation:upper", {"functions_of_curation:not_word": {"word": "SIX"}})
    assert {number: step_files(tmp_path)[number] for number in before} == before


def test_invalid_records_are_reported_or_dropped(tmp_path, run):
    rows = [{"text": "one"}, {"text": ""}, {"prompt": "p", "response": "r"}, {"text": 3}, {"text": ""}]
    write_jsonl(tmp_path / "web.jsonl", rows)
    with pytest.raises(DataError) as raised:
        run()
    text = str(raised.value)
    assert "4 rows cannot be used" in text
    assert f"web: {tmp_path}/web.jsonl:2: text is empty" in text
    assert f"web: {tmp_path}/web.jsonl:3: has prompt and response, but it must be a text" in text
    report = run(on_bad_example="drop")
    assert report.steps[0].flows["web"].before.documents == 5
    assert report.steps[0].reasons["invalid: text is empty"].documents == 2
    assert [row["text"] for row in documents(tmp_path)] == ["one", "a document"]


def test_a_step_that_removes_all_documents_stops_the_curation(tmp_path, run):
    with pytest.raises(ConfigError) as raised:
        run(lengths(tmp_path, min_length=100), "functions_of_curation:upper")
    text = str(raised.value)
    assert text.startswith("steps[0].lengths.min_length removes all 6 documents (lengths.min_length: 6, such as web:")
    assert "change the threshold (now 100)" in text
    assert not (tmp_path / "out" / "documents").exists()


def test_the_files_do_not_depend_on_partitions(tmp_path, run, spark, monkeypatch):
    monkeypatch.setattr("data.curation.reading.SLICE_BYTES", 200)
    write_jsonl(tmp_path / "web.jsonl", [{"text": f"document {number}"} for number in range(40)])
    found = []
    for partitions in ("1", "5"):
        spark.conf.set("spark.sql.shuffle.partitions", partitions)
        spark.conf.set("spark.sql.files.maxPartitionBytes", "3000" if partitions == "5" else "128m")
        run("functions_of_curation:upper", output=str(tmp_path / partitions))
        files = sorted((tmp_path / partitions / "documents").iterdir())
        found.append({file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files})
    assert found[0] == found[1]
    assert len(found[0]) > 4


def test_rows_are_prepared_on_the_executors(tmp_path, run):
    run(rows={"max_seq_len": 16})
    run("functions_of_curation:upper", rows={"max_seq_len": 8})  # rows of other documents are replaced
    folder = MdsFolder.open(local=str(tmp_path / "out" / "rows"), remote=None, split=None, cache_dir=str(tmp_path))
    assert folder.is_rows
    assert json.loads((tmp_path / "out" / "rows" / "manifest.json").read_text())["max_seq_len"] == 8


def test_the_output_folder_must_be_its_own(tmp_path, run):
    with pytest.raises(ConfigError, match=r"output is .*, which contains files of something else \(a.txt\)"):
        run(output=str(tmp_path / "docs"))
    with pytest.raises(ConfigError, match="is not a folder"):
        run(output=str(tmp_path / "web.jsonl"))


def test_problems_are_found_before_spark_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(curate_module, "spark_session", None)
    values = {
        "sources": {"web": {"hf_name": str(tmp_path / "missing.jsonl")}},
        "tokenizer": {"name": "tiktoken", "kwargs": {"vocab_file": str(tmp_path / "missing")}},
        "steps": ["missing_module_of_curation:function"],
        "output": str(tmp_path / "out"),
    }
    with pytest.raises(ConfigError) as raised:
        check(*read_config(values))
    text = str(raised.value)
    assert "3 problems" in text
    assert "sources.web" in text
    assert "steps[0]" in text
    assert "missing_module_of_curation cannot be imported" in text
    assert not (tmp_path / "out").exists()
