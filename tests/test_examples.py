import json

import pytest
from toy_tokenizer import dataset_config, write_jsonl

from data.config import DatasetConfig, HFKwargs
from data.errors import ConfigError, DataError
from data.examples import Example, Problems, check_example, read_examples
from data.sources import find_files, hash_file, read_rows

GOOD = {"prompt": "2 + 2?", "response": "4"}


def load(path, content: bytes, preprocess=None):
    """Examples of a file with this content; raises when there are problems."""
    path.write_bytes(content)
    problems = Problems()
    examples = list(read_examples(read_rows([hash_file(path)]), preprocess, problems))
    problems.raise_if_any()
    return examples


def error_of(path, content: bytes, preprocess=None) -> str:
    with pytest.raises(DataError) as error:
        load(path, content, preprocess)
    return str(error.value)


def test_completion_is_another_name_for_response():
    assert check_example({"prompt": "a", "completion": "b", "id": 3}) == Example("a", "b")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"response": None}, "response is null, but it must be text"),
        ({"response": 12}, "response is 12 (int), but it must be text in quotes"),
        ({"response": ["4"]}, "response is ['4'] (list), but it must be text"),
        ({"response": ""}, "response is empty: fill it in"),
        ({"response": " \n"}, "response is only whitespace (' \\n'): fill it in"),
        ({"response": "a\ud800"}, "half of a \\ud800-style pair"),
        ({"completion": "5"}, "has both response and completion"),
        ({"prompt": True}, "prompt is True (bool)"),
        ({"prompt": "x" * 99 + "\ud800"}, "prompt is 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..., but"),
    ],
)
def test_each_way_to_be_wrong_is_said(change, text):
    (problem,) = check_example(GOOD | change)
    assert text in problem.text


def test_missing_fields_show_what_is_there_and_the_way_out():
    problems = check_example({"question": "2 + 2?", "answer": "4"})
    assert [problem.kind for problem in problems] == ["prompt is missing", "response is missing"]
    assert "(the row has question, answer)" in problems[0].text
    assert "preprocessing_fn: {prompt: COLUMN, response: COLUMN}" in problems[0].text


@pytest.mark.parametrize("row", [[GOOD], "text", 3, None])
def test_a_row_must_be_an_object(row):
    assert "an object with prompt and response is needed" in check_example(row)[0].text


def test_crlf_blank_lines_bom_and_no_last_newline_are_fine(tmp_path):
    line = json.dumps(GOOD).encode()
    content = b"\xef\xbb\xbf" + line + b"\r\n\r\n" + line + b"\n  \n" + line
    assert load(tmp_path / "a.jsonl", content) == [Example(**GOOD)] * 3


def test_u2028_inside_a_string_does_not_end_the_line(tmp_path):
    line = json.dumps({"prompt": "a\u2028b", "response": "c"}, ensure_ascii=False).encode()
    assert load(tmp_path / "a.jsonl", line) == [Example("a\u2028b", "c")]


def test_a_line_that_is_not_json_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    text = error_of(path, json.dumps(GOOD).encode() + b'\n\n{"prompt": "x",}\n')
    assert text.startswith("1 row cannot be used:\n")
    assert f"{path}:3: is not JSON (" in text
    assert '{"prompt": "x",}' in text


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    path = tmp_path / "a.jsonl"
    assert f"{path}:1: is not UTF-8 (byte 0xff at 0): save the file as UTF-8" in error_of(path, "{}".encode("utf-16"))


@pytest.mark.parametrize("content", [b'[{"prompt": "a", "response": "b"}]', b"[\n"])
def test_a_json_array_is_explained(tmp_path, content):
    assert "begins a JSON array" in error_of(tmp_path / "a.json", content)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_named(tmp_path, content):
    path = tmp_path / "a.jsonl"
    assert f"{path}: the file is empty" in error_of(path, content)


def test_all_bad_rows_are_reported_together(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(GOOD)] + [json.dumps({"prompt": "a", "response": ""})] * 30 + ["nonsense", json.dumps(GOOD)]
    text = error_of(path, "\n".join(lines).encode())
    assert text.startswith("31 rows cannot be used:\n")
    assert text.count(": response is empty:") == 20
    assert f"{path}:21:" in text
    assert f"{path}:22:" not in text
    assert "... and 11 more" in text
    assert "by kind: response is empty (30), not JSON (1)" in text


def test_what_preprocessing_raises_names_row_and_line(tmp_path):
    path = tmp_path / "a.jsonl"
    text = error_of(path, b'{"q": "x"}\n', lambda row: {"prompt": row["question"]})
    assert f"{path}:1: preprocessing_fn raised KeyError: 'question' at " in text
    assert "test_examples.py:" in text
    assert "the row has q" in text


def test_what_preprocessing_returns_is_checked(tmp_path):
    text = error_of(tmp_path / "a.jsonl", b'{"q": "x"}\n', lambda row: {"prompt": row["q"], "answer": "y"})
    assert "response is missing (what preprocessing_fn returned has prompt, answer)" in text


def test_a_file_changed_while_it_is_read_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [GOOD])
    file = hash_file(path)
    write_jsonl(path, [GOOD, GOOD])
    with pytest.raises(DataError, match="was changed while it was being read"):
        list(read_rows([file]))


def folder_config(folder, split="train") -> DatasetConfig:
    return DatasetConfig(hf_name="json", hf_kwargs=HFKwargs(data_dir=str(folder)), split=split, max_seq_len=8)


def test_the_split_chooses_files_as_datasets_does(tmp_path):
    for name in ("train.jsonl", "part-train-1.jsonl", "val.jsonl", "training/a.json", ".train.jsonl", "strain.txt"):
        write_jsonl(tmp_path / name, [GOOD])
    names = [str(path.relative_to(tmp_path)) for path in find_files(folder_config(tmp_path))]
    assert names == ["part-train-1.jsonl", "train.jsonl", "training/a.json"]
    assert [path.name for path in find_files(folder_config(tmp_path, "validation"))] == ["val.jsonl"]


def test_files_without_a_split_word_are_all_training_files(tmp_path):
    for name in ("b.jsonl", "a.json"):
        write_jsonl(tmp_path / name, [GOOD])
    assert [path.name for path in find_files(folder_config(tmp_path))] == ["a.json", "b.jsonl"]


def test_test_files_are_never_taken_for_training(tmp_path):
    write_jsonl(tmp_path / "test.jsonl", [GOOD])
    with pytest.raises(ConfigError, match=r"split is 'train', but no file .* named so .*split is one of test here"):
        find_files(folder_config(tmp_path))


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"data_dir": "nowhere"}, "hf_kwargs.data_dir is 'nowhere', but this folder is not there"),
        ({"data_dir": "."}, "there is no .jsonl or .json file in it"),
        ({"data_dir": "a.txt"}, "is a file: name it in hf_kwargs.data_files"),
        ({"data_files": "no.jsonl"}, "hf_kwargs.data_files has 'no.jsonl', but there is no such file"),
        ({"data_files": ["a.txt", "*.jsonl"]}, "hf_kwargs.data_files has '*.jsonl', but there is no such file"),
        ({"data_files": "."}, "it is a folder: name it in hf_kwargs.data_dir"),
        ({"data_files": []}, "hf_kwargs.data_files is empty"),
        ({}, "neither hf_kwargs.data_dir nor hf_kwargs.data_files"),
        ({"data_dir": ".", "name": "main"}, "hf_kwargs.name is 'main', but local JSONL has no subsets"),
    ],
)
def test_files_that_are_not_there_are_named(tmp_path, monkeypatch, kwargs, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ConfigError) as error:
        find_files(DatasetConfig(hf_name="json", hf_kwargs=HFKwargs(**kwargs), max_seq_len=8))
    assert text in str(error.value)


def test_data_files_keep_their_order_and_come_once(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "c.jsonl"):
        write_jsonl(tmp_path / name, [GOOD])
    kwargs = HFKwargs(data_dir=str(tmp_path), data_files=["c.jsonl", "*.jsonl"])
    files = find_files(dataset_config(tmp_path, hf_kwargs=kwargs))
    assert [path.name for path in files] == ["c.jsonl", "a.jsonl", "b.jsonl"]
    absolute = dataset_config(tmp_path, hf_kwargs=HFKwargs(data_files=str(tmp_path / "[ab].jsonl")))
    assert [path.name for path in find_files(absolute)] == ["a.jsonl", "b.jsonl"]


def test_a_hub_name_is_refused_with_the_way_out():
    with pytest.raises(ConfigError, match=r"hf_name is 'tatsu-lab/alpaca', but only local JSONL .*`hf_name: json`"):
        find_files(DatasetConfig(hf_name="tatsu-lab/alpaca", max_seq_len=8))


def test_a_file_is_hashed_again_only_when_it_has_changed(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("a\n")
    first = hash_file(path)
    assert hash_file(path) is first
    path.write_text("bb\n")
    assert hash_file(path).xxh3 != first.xxh3
