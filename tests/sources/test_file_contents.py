"""Files whose content does not match their name, empty files, and columns that differ between files."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.base import console
from data.base.errors import DataError
from data.base.problems import Problem
from data.config.dataset import DatasetConfig
from data.sources.source import open_source
from tests.helpers.read_source import chunks_of, of_file, of_folder, read, refusal, rows_of, values
from tests.helpers.toy_tokenizer import write_jsonl

ROWS = [{"prompt": f"{i}?", "response": "a"} for i in range(30)]


# Files without rows


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows, pa.schema({"prompt": pa.string(), "response": pa.string()})), path)


def test_files_without_rows_are_skipped(tmp_path, capsys):
    for suffix, empty in (("jsonl", "\n \n"), ("json", "[]"), ("csv", "prompt,response\n")):
        folder = tmp_path / suffix
        folder.mkdir()
        (folder / f"0.{suffix}").write_text("")
        (folder / f"1.{suffix}").write_text(empty)
        full = {"jsonl": json.dumps(ROWS[0]), "json": json.dumps(ROWS[:1]), "csv": "prompt,response\n0?,a\n"}
        (folder / f"2.{suffix}").write_text(full[suffix])
        assert values(read(open_source(of_folder(folder)))) == ROWS[:1]
        names = f"{folder}/0.{suffix}, {folder}/1.{suffix}"
        assert capsys.readouterr().out == f"2 files have no rows and are skipped: {names}\n"


def test_parquet_files_without_rows_are_skipped(tmp_path, capsys):
    (tmp_path / "0.parquet").touch()
    for number in range(1, 15):
        write_parquet(tmp_path / f"{number:02}.parquet", ROWS[:1] if number == 7 else [])
    assert values(read(open_source(of_folder(tmp_path)))) == ROWS[:1]
    printed = capsys.readouterr().out
    assert printed.startswith("14 files have no rows and are skipped: ")
    assert printed.endswith("10.parquet and 4 more\n")


def test_a_set_without_any_rows_is_refused(tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.jsonl").write_text("\n" * number)
    with pytest.raises(DataError, match=r"none of the 2 files has any rows \(.*0.jsonl, .*1.jsonl\): choose other"):
        read(open_source(of_folder(tmp_path)))


def test_an_empty_file_does_not_change_the_fingerprint(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    mark = open_source(of_folder(tmp_path)).fingerprint
    (tmp_path / "b.jsonl").touch()
    assert open_source(of_folder(tmp_path)).fingerprint == mark


# Columns that differ between files


def test_columns_may_differ_between_files(tmp_path):
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "a.csv").write_text("prompt,response\n0?,a\n")
    (tmp_path / "csv" / "b.csv").write_text("id,response,prompt\n9,a,1?\n")
    expected = [ROWS[0], {"id": "9", **ROWS[1]}]
    assert values(read(open_source(of_folder(tmp_path / "csv")))) == expected
    (tmp_path / "parquet").mkdir()
    write_parquet(tmp_path / "parquet" / "a.parquet", ROWS[:1])
    pq.write_table(pa.Table.from_pylist([{"id": 9, **ROWS[1]}]), tmp_path / "parquet" / "b.parquet")
    assert values(read(open_source(of_folder(tmp_path / "parquet")))) == [ROWS[0], {"id": 9, **ROWS[1]}]


# JSON objects that are not rows


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("n_rows", [1, 3000])
def test_an_object_that_contains_the_rows_is_refused_with_the_command_that_extracts_them(tmp_path, indent, n_rows):
    value = {"version": "1.0", "data": [ROWS[0]] * n_rows, "more": 1}
    text = refusal(tmp_path / "a.json", json.dumps(value, indent=indent).encode())
    assert text.startswith(f"{tmp_path}/a.json is one JSON object (with version, data")
    assert "under 'data': write one row per line with `jq -c '.data[]' FILE > FILE.jsonl`" in text


def test_rows_of_the_hub_viewer_are_unwrapped(tmp_path):
    value = {"features": [{"name": "a"}], "rows": [{"row_idx": 0, "row": ROWS[0]}], "partial": False}
    assert "`jq -c '.rows[].row' FILE" in refusal(tmp_path / "a.json", json.dumps(value).encode())


def test_a_key_with_a_space_is_quoted_for_jq(tmp_path):
    text = refusal(tmp_path / "a.jsonl", json.dumps({"my rows": ROWS}, indent=1).encode())
    assert """`jq -c '.["my rows"][]' FILE""" in text


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_objects_over_several_lines_are_refused_with_the_command(tmp_path, suffix):
    content = "\n".join(json.dumps(row, indent=2) for row in ROWS).encode()
    text = refusal(tmp_path / f"a.{suffix}", content)
    assert "has JSON objects that span several lines: write one object per line with `jq -c . FILE" in text


LONG = {"dialog": [{"text": "x" * 200_000}]}


@pytest.mark.parametrize(
    "rows",
    [
        [{"messages": [{"role": "user", "content": "x"}]}],
        [{"messages": [{"role": "user", "content": "x" * 200_000}]}],
        [LONG, LONG],
        [{"version": 1, "tags": ["a"]}],
        [{"data": [{"a": 1}]}, {"data": [{"a": 2}]}],
        [{"": {}}, {}],
    ],
)
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_rows_with_lists_are_rows(tmp_path, suffix, rows):
    assert values(rows_of(tmp_path / f"a.{suffix}", "\n".join(map(json.dumps, rows)).encode())) == rows


@pytest.mark.parametrize("first", ['{"a": [{"b": 1}], oops}', '{"prompt": "x",', '{"prompt": "x', "{", "{]", '{"a" 1}'])
def test_an_invalid_first_line_is_a_problem_of_that_row(tmp_path, first):
    pairs = rows_of(tmp_path / "a.json", f'{first}\n{{"a": 2}}\n'.encode())
    assert isinstance(pairs[0][1], Problem)
    assert pairs[1][1] == {"a": 2}


# CSV from other tools


def test_an_unnamed_index_column_is_skipped_with_one_message(tmp_path, capsys):
    console.notice.cache_clear()
    for number in range(2):
        (tmp_path / f"{number}.csv").write_text(f",prompt,response\nrow-{number},{number}?,a\n")
    config = of_folder(tmp_path)
    assert values(read(open_source(config))) == ROWS[:2]
    out = capsys.readouterr().out
    assert out.startswith(
        "Skipping the first column, which has no name (such as the index that pandas writes) in 2 files:"
    )
    assert out.count("\n") == 1


@pytest.mark.parametrize("block", [7, 1 << 20])
def test_lines_of_csv_may_end_with_cr(tmp_path, monkeypatch, block):
    monkeypatch.setattr("data.sources.formats.content.BLOCK_BYTES", block)
    path = tmp_path / "a.csv"
    content = b'prompt,response\r1?,"a\rb"\r\r2?,"c\nd"\r3?,e'
    assert rows_of(path, content) == [
        (f"{path} row 1 (line 2)", {"prompt": "1?", "response": "a\rb"}),
        (f"{path} row 2 (line 5)", {"prompt": "2?", "response": "c\nd"}),
        (f"{path} row 3 (line 6)", {"prompt": "3?", "response": "e"}),
    ]
    source = open_source(of_file(path))
    assert sum(chunk.size for chunk in chunks_of(source)) == len(content) - len(b"prompt,response\r")


def test_a_cr_inside_a_row_of_other_csv_is_still_a_problem(tmp_path):
    ((_, problem),) = rows_of(tmp_path / "a.csv", b"prompt,response\r\n1?,a\rb\r\n")
    assert problem.kind == "not CSV"


# NUL bytes


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "txt"])
def test_a_file_of_nul_bytes_is_reported_as_such(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(bytes(5000))
    config = DatasetConfig(text=str(path), max_seq_len=8) if suffix == "txt" else of_file(path)
    with pytest.raises(
        DataError, match=r"a\.\w+ contains NUL bytes \(\\0\), perhaps because a copy was interrupted or"
    ):
        open_source(config)


@pytest.mark.parametrize(
    ("encoding", "kind"), [("utf-16-le", "UTF-16"), ("utf-32-le", "UTF-32"), ("utf-32-be", "UTF-32")]
)
def test_other_encodings_without_a_byte_order_mark_are_recognized(tmp_path, encoding, kind):
    assert f"is not UTF-8 text but {kind}:" in refusal(tmp_path / "a.jsonl", '{"a": 1}'.encode(encoding))


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "txt"])
def test_a_file_that_ends_with_nul_bytes_has_a_row_of_them(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(
        {"jsonl": b'{"prompt": "1?"}\n', "csv": b"prompt\n1?\n", "txt": b""}[suffix] + b"1?\n" + bytes(900)
    )
    config = DatasetConfig(text=str(path), max_seq_len=8) if suffix == "txt" else of_file(path)
    (_, problem) = read(open_source(config))[-1]
    assert problem.kind == "NUL bytes"
