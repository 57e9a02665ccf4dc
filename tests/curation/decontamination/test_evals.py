"""Evaluation sets are read from files."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.base.errors import ConfigError, DataError
from data.curation.decontamination.evals import EvalFiles, read_evals

ROW = {"id": "x1", "question": "What is it?", "choices": {"text": ["One", "Two"], "label": ["A", "B"]}, "answer": 1}


def read(path, **files):
    return read_evals("mine", EvalFiles(path=path, **files)).questions


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_all_strings_of_a_record_are_its_text(tmp_path):
    (question,) = read(write(tmp_path / "a.jsonl", ROW))
    assert question.place == f"{tmp_path}/a.jsonl:1"
    assert question.texts == ("x1 What is it? One Two A B", "What is it?")
    assert question.exact == "What is it?"


def test_every_format_is_read(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([ROW]))
    pq.write_table(pa.Table.from_pylist([ROW]), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("id,question\nx1,What is it?\n")
    write(tmp_path / "a.jsonl", ROW)
    for name in ("a.json", "a.parquet", "a.csv", "a.jsonl"):
        (question,) = read(str(tmp_path / name))
        assert question.exact == "What is it?"
        assert question.texts[0].startswith("x1 What is it?")


def test_patterns_and_lists_select_several_files(tmp_path):
    for name in ("b", "a"):
        write(tmp_path / f"{name}.jsonl", {"question": name})
    assert [question.exact for question in read(str(tmp_path / "*.jsonl"))] == ["a", "b"]
    both = [str(tmp_path / "b.jsonl"), str(tmp_path / "a.jsonl")]
    assert [question.exact for question in read(both)] == ["b", "a"]


def test_fields_select_texts_and_the_first_field_is_the_question(tmp_path):
    path = write(tmp_path / "a.jsonl", {"q": {"stem": "Why?", "topic": "x"}, "a": ["because"], "source": "y"})
    (question,) = read(path, fields=["q.stem", "a"])
    assert (question.texts[0], question.exact) == ("Why? because", "Why?")


def test_known_question_fields_need_no_fields(tmp_path):
    rows = ({"question": {"stem": "Why?", "choices": ["x"]}}, {"input": "a", "prompt": "Why?"}, {"text": "Why?"})
    assert [question.exact for question in read(write(tmp_path / "a.jsonl", *rows))] == ["Why?"] * 3


@pytest.mark.parametrize(
    ("content", "files", "message"),
    [
        ('{"question": ""}', {}, "a.jsonl:1: has no text in any field"),
        ('{"question": "a"}\n{"question": null}', {"fields": ["question"]}, "a.jsonl:2: has no text in the fields que"),
        ('{"term": "a"}', {}, "a.jsonl:1: has no field that is known as a question"),
        ('{"question": "a"}\n"b"', {}, "a.jsonl:2: is 'b', but it must be an object"),
        ('{"question": "a"}\n{"question"', {}, "a.jsonl:2: is not JSON"),
        ("", {}, "a.jsonl: the file is empty"),
        ('{"a": {"c": "x"}}', {"fields": ["a.b"]}, "fields contains 'a.b', but no record has this field"),
    ],
)
def test_invalid_files_are_refused_with_their_lines(tmp_path, content, files, message):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises((ConfigError, DataError)) as raised:
        read(str(tmp_path / "a.jsonl"), **files)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none.jsonl", "path has 'none.jsonl', but no such file exists"),
        ("none/*.csv", "path has 'none/*.csv', but no such file exists"),
        ("a.txt", "path has 'a.txt', which does not end in .jsonl"),
        ([], "path is empty"),
    ],
)
def test_paths_without_files_are_refused(path, message):
    with pytest.raises(ConfigError) as raised:
        read(path)
    assert str(raised.value).startswith(message)
