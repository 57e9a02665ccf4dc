import bz2
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from data.base.errors import ConfigError, DataError
from data.base.problems import Problem
from data.config.dataset import DatasetConfig
from data.config.source import HFKwargs
from data.sources.find import find
from data.sources.source import open_source
from tests.helpers.read_source import chunks_of, of_file, read, refusal, rows_of, values
from tests.helpers.toy_tokenizer import dataset_config, write_jsonl

GOOD = {"prompt": "2 + 2?", "response": "4"}
LINE = json.dumps(GOOD).encode()


def files_of(config) -> list:
    """The files of the one split."""
    _, (part,) = find(config)
    return list(part.files)


def problem_of(path, content: bytes) -> str:
    """Place and text of the only problem in the content."""
    ((place, problem),) = [(place, row) for place, row in rows_of(path, content) if isinstance(row, Problem)]
    return f"{place}: {problem.text}"


@pytest.fixture
def small_blocks(monkeypatch):
    """Chunks of about 64 bytes; a row may have 200."""
    monkeypatch.setattr("data.sources.formats.content.BLOCK_BYTES", 64)
    monkeypatch.setattr("data.sources.formats.content.MAX_ROW_BYTES", 200)


# JSONL


def test_crlf_blank_lines_bom_and_no_last_newline_are_fine(tmp_path):
    path = tmp_path / "a.jsonl"
    pairs = rows_of(path, b"\xef\xbb\xbf" + LINE + b"\r\n\r\n" + LINE + b"\n  \n" + LINE)
    assert pairs == [(f"{path}:{number}", GOOD) for number in (1, 3, 5)]


def test_u2028_inside_a_string_does_not_end_the_line(tmp_path):
    row = {"prompt": "a\u2028b", "response": "c\x85d"}
    assert values(rows_of(tmp_path / "a.jsonl", json.dumps(row, ensure_ascii=False).encode())) == [row]


def test_a_line_that_is_not_json_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    text = problem_of(path, LINE + b'\n\n{"prompt": "x",}\n' + LINE)
    assert text.startswith(f"{path}:3: is not JSON (")
    assert '{"prompt": "x",}' in text
    assert text.endswith("write one JSON object per line")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_duplicate_key_is_named(tmp_path, name):
    line = b'{"prompt": "a", "more": {"response": "b", "response": "c"}}'
    text = problem_of(tmp_path / name, b"[" + line + b"]" if name == "a.json" else line)
    assert "has the duplicate key 'response' in an object: remove one" in text


def test_lines_that_end_with_cr_are_named(tmp_path):
    assert "its lines end with CR: `tr '\\r' '\\n'" in problem_of(tmp_path / "a.jsonl", LINE + b"\r" + LINE + b"\r")


def test_lists_on_lines_of_their_own_are_named(tmp_path):
    text = refusal(tmp_path / "a.jsonl", b'[{"role": "user"}]\n[{"role": "user"}]\n')
    assert text.endswith('write one object per line, such as {"messages": [...]} for a list of messages')


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    path = tmp_path / "a.jsonl"
    text = problem_of(path, LINE + b'\n{"prompt": "caf\xe9"}\n')
    assert text == f"{path}:2: is not UTF-8 (byte 0xe9 at position 15): save the file as UTF-8"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_other_unicode_encodings_are_refused_once_a_file(tmp_path, suffix, encoding):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes((LINE.decode() + "\n").encode(encoding) * 3)
    with pytest.raises(
        DataError, match=r"a\.\w+ is not UTF-8 text but UTF-(16|32): save the file as UTF-8 \(`iconv -f U"
    ):
        open_source(of_file(path))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (bz2.compress(LINE), "is not UTF-8 text but bzip2: decompress the file first"),
        (b"PAR1" + LINE, "is not UTF-8 text but Parquet: set `hf_name: parquet`"),
    ],
)
def test_files_that_are_not_text_are_refused(tmp_path, content, text):
    assert refusal(tmp_path / "a.jsonl", content) == f"{tmp_path / 'a.jsonl'} {text}"


@pytest.mark.parametrize(
    ("suffix", "content"),
    [("jsonl", b""), ("jsonl", b"\xef\xbb\xbf"), ("json", b""), ("csv", b""), ("parquet", b"")],
)
def test_an_empty_file_is_refused_when_it_is_opened(tmp_path, suffix, content):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.\w+: the file is empty: remove the file, or add rows to it"):
        open_source(of_file(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b"\n \r\n"),
        ("b.json", b" [ ]\n"),
        ("c.csv", b"a,b\r\n\r\n"),
    ],
)
def test_a_file_without_rows_is_refused(tmp_path, name, content):
    assert refusal(tmp_path / name, content).startswith(f"{tmp_path / name}: the file has no rows")


def test_a_file_that_cannot_be_read_is_refused_when_it_is_opened(tmp_path):
    path = tmp_path / "a.jsonl"
    path.symlink_to("/proc/self/mem")  # a file, and reading its beginning fails, for root too
    with pytest.raises(DataError, match=r"a\.jsonl cannot be read: Input/output error"):
        open_source(of_file(path))


def test_chunks_are_whole_lines_and_the_same_each_time(tmp_path, small_blocks):
    rows = [{"prompt": str(i) * (i % 40), "response": "\u00e9" * (i % 13)} for i in range(200)]
    content = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
    path = tmp_path / "a.jsonl"
    assert values(rows_of(path, content)) == rows
    source = open_source(of_file(path))
    chunks = list(chunks_of(source))
    assert chunks == list(chunks_of(source))
    assert len(chunks) > 50
    assert sum(chunk.size for chunk in chunks) == source.total == len(content)


def test_places_are_the_lines_of_the_file(tmp_path, small_blocks):
    path = tmp_path / "a.jsonl"
    lines = ["" if i % 3 == 0 else json.dumps({"line": i}) for i in range(1, 100)]
    pairs = rows_of(path, "\n".join(lines).encode())
    assert pairs == [(f"{path}:{i}", {"line": i}) for i in range(1, 100) if i % 3]


@pytest.mark.parametrize("n_bytes", [201, 264, 5000])
def test_a_row_that_is_too_large_is_a_problem_and_the_next_are_read(tmp_path, small_blocks, n_bytes):
    path = tmp_path / "a.jsonl"
    large = b'"' + b"x" * (n_bytes - 2) + b'"'
    pairs = rows_of(path, LINE + b"\n" + large + b"\n" + LINE + b"\n" + large)
    assert [place for place, _ in pairs] == [f"{path}:{number}" for number in (1, 2, 3, 4)]
    assert values(pairs)[0::2] == [GOOD, GOOD]
    assert all("but the maximum is 200b: split the row" in problem.text for problem in values(pairs)[1::2])


def test_a_file_changed_after_it_was_hashed_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [GOOD])
    source = open_source(of_file(path))
    assert source.fingerprint
    path.write_bytes(LINE.replace(b"4", b"5") + b"\n")
    with pytest.raises(DataError, match=r"a\.jsonl changed while it was being read"):
        read(source)


@pytest.mark.parametrize("more", [b"\n" + LINE, b" "])
def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path, small_blocks, more):
    path = write_jsonl(tmp_path / "a.jsonl", [GOOD] * 20)
    chunks = chunks_of(open_source(of_file(path)))
    next(chunks)
    with path.open("ab") as file:
        file.write(more)
    with pytest.raises(DataError, match=r"a\.jsonl changed while it was being read"):
        list(chunks)


def test_the_fingerprint_is_of_content_and_format_not_of_place(tmp_path):
    one = write_jsonl(tmp_path / "a.jsonl", [GOOD])
    moved = write_jsonl(tmp_path / "b" / "c.jsonl", [GOOD])
    other = write_jsonl(tmp_path / "d.jsonl", [GOOD, GOOD])
    marks = [open_source(of_file(path, "json")).fingerprint for path in (one, moved, other)]
    assert marks[0] == marks[1] != marks[2]
    text = DatasetConfig(text=str(one), max_seq_len=8)
    assert open_source(text).fingerprint != marks[0]
    assert open_source(of_file(one)).inputs == [
        {"path": str(one), "bytes": len(LINE) + 1, "xxh3_128": xxhash.xxh3_128_hexdigest(LINE + b"\n")}
    ]


# JSON arrays


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("block", [1, 7, 64, 1 << 20])
def test_arrays_are_read_element_by_element(tmp_path, monkeypatch, indent, block):
    monkeypatch.setattr("data.sources.formats.content.BLOCK_BYTES", block)
    pick = random.Random(7)
    letters = ['"', "\\", ",", "[", "]", "{", "}", "\n", "é", "😀", " ", "a"]
    rows = [
        {"prompt": "".join(pick.choices(letters, k=pick.randrange(20))), "turns": [[i, {"a": None}], []]}
        for i in range(60)
    ]
    path = tmp_path / "a.json"
    content = b"\xef\xbb\xbf \n" + json.dumps(rows, indent=indent, ensure_ascii=pick.random() < 0.5).encode() + b"\n"
    assert rows_of(path, content) == [(f"{path} row {number}", row) for number, row in enumerate(rows, start=1)]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b'[\n  {"a": 1},\n]', "row 2: there is no row after the comma (line 3, column 1): remove the comma"),
        (b'[{"a": 1}, , {"a": 2}]', "row 2: there is no row after the comma (line 1, column 12)"),
        (
            b'[\n  {"a": 1},\n  {"\xc3\xa9": 1 "b"}\n]',
            "row 2: is not JSON (Expecting ',' delimiter, line 3, column 11)",
        ),
        (b'[{"a": 1} {"a": 2}]', "row 1: is not JSON (Extra data, line 1, column 11)"),
        (b'[{"a": 1},\n{"a": "\xe9"}]', "row 2: is not UTF-8 (byte 0xe9 at position 8)"),
    ],
)
@pytest.mark.parametrize("block", [3, 1 << 20])
def test_errors_in_an_array_name_line_and_column(tmp_path, monkeypatch, content, text, block):
    monkeypatch.setattr("data.sources.formats.content.BLOCK_BYTES", block)
    path = tmp_path / "a.json"
    assert problem_of(path, content).startswith(f"{path} {text}")


def test_a_truncated_array_names_its_incomplete_row(tmp_path):
    pairs = rows_of(tmp_path / "a.json", b'[{"a": 1},\n {"a": ')
    assert pairs[0][1] == {"a": 1}
    assert "is not JSON (Expecting value, line 2, column 8)" in pairs[1][1].text
    assert pairs[2][1].text.startswith(
        "the array is not closed at the end of the file (line 2, column 8): the file is truncated"
    )


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b'[{"a": 1}]\n{"a": 2}\n', "unexpected '{\"a\": 2}\\n' after the end of the array (line 2, column 1)"),
        (b'[{"a": 1}},\n {"a": 2}]', "unmatched } in the array (line 1, column 10)"),
    ],
)
def test_an_array_that_ends_before_the_file_is_refused(tmp_path, content, text):
    assert text in refusal(tmp_path / "a.json", content)


@pytest.mark.parametrize("n_bytes", [201, 264, 5000])
def test_an_element_that_is_too_large_is_a_problem_and_the_next_are_read(tmp_path, small_blocks, n_bytes):
    path = tmp_path / "a.json"
    large = b'"' + b"\n," * (n_bytes // 2) + b'"'
    pairs = rows_of(path, b"[" + b",".join([LINE, large, LINE, large]) + b"]")
    assert [place for place, _ in pairs] == [f"{path} row {number}" for number in (1, 2, 3, 4)]
    assert values(pairs)[0::2] == [GOOD, GOOD]
    assert all("but the maximum is 200b" in problem.text for problem in values(pairs)[1::2])


# CSV


def test_cells_of_csv_stay_text_and_places_have_row_and_line(tmp_path):
    path = tmp_path / "a.csv"
    content = '\ufeffprompt,response\r\n12,"4,0"\r\n\r\n"two\nlines, ""quoted""",\r\nnull,é\x85\u2028\r\n'
    assert rows_of(path, content.encode()) == [
        (f"{path} row 1 (line 2)", {"prompt": "12", "response": "4,0"}),
        (f"{path} row 2 (line 4)", {"prompt": 'two\nlines, "quoted"', "response": ""}),
        (f"{path} row 3 (line 6)", {"prompt": "null", "response": "é\x85\u2028"}),
    ]


def test_csv_in_chunks_is_csv_whole(tmp_path, small_blocks):
    pick = random.Random(3)
    rows = [
        {"a": "".join(pick.choices('"\n,é x', k=pick.randrange(30))) or "-", "b": str(number)} for number in range(100)
    ]
    quoted = ['"{}",{}'.format(row["a"].replace('"', '""'), row["b"]) for row in rows]
    pairs = rows_of(tmp_path / "a.csv", "\n".join(["a,b", *quoted]).encode())
    assert values(pairs) == rows
    assert [place.split(" row ")[1].split()[0] for place, _ in pairs] == [str(number) for number in range(1, 101)]


def test_tabs_separate_the_columns_of_tsv(tmp_path):
    assert values(rows_of(tmp_path / "a.tsv", b"a\tb\n1,2\t3\n")) == [{"a": "1,2", "b": "3"}]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (b"1,2,3", "has 3 cells, but the header has 2 (a, b): quote cells that contain a comma"),
        (b"1", "has 1 cell, but the header has 2 (a, b)"),
        (b",,", "has 3 cells, all of them empty: remove the line"),
        (b'"1"x,2', "is not CSV (',' expected after '\"'): quote every cell"),
        (b"1,\xe9", "is not UTF-8 (byte 0xe9 at position 0)"),
    ],
)
def test_a_row_of_csv_that_is_wrong_is_a_problem_and_the_next_are_read(tmp_path, row, text):
    path = tmp_path / "a.csv"
    content = b"a,b\n1,2\n" + row + "\né,4\n".encode()
    assert problem_of(path, content).startswith(f"{path} row 2 (line 3): {text}")
    assert [each for each in values(rows_of(path, content)) if isinstance(each, dict)] == [
        {"a": "1", "b": "2"},
        {"a": "é", "b": "4"},
    ]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"a,b,a\n1,2,3\n", ":1: two columns of the header are named 'a'"),
        (b"a,,b\n1,2,3\n", ":1: column 2 of the header has no name"),
        (b"sep=,\na,b\n1,2\n", ":1: the first line is 'sep=,', which Excel reads as a setting: remove this line"),
        (b"a;b\n1;2\n", ":1: the header is 'a;b': separate columns by commas, not by ';'"),
        (b"a,\xe9\n1,2\n", ":1: the header is not UTF-8"),
        (b'a,b\n1,2\n3,"4\n5,6\n', " row 2 (line 3): a quote that opens here is never closed"),
    ],
)
def test_csv_that_cannot_be_cut_into_rows_is_refused(tmp_path, content, text):
    assert refusal(tmp_path / "a.csv", content).startswith(f"{tmp_path / 'a.csv'}{text}")


@pytest.mark.parametrize("cell", [b"x" * 400, b'"' + b"x\n" * 200, b'"' + b"x" * 99 + b'","' + b"x" * 99 + b'\n"'])
def test_a_row_of_csv_that_is_too_large_is_refused(tmp_path, small_blocks, cell):
    text = refusal(tmp_path / "a.csv", b"a,b\n1,2\n" + cell + b",2\n")
    assert text.startswith(f"{tmp_path / 'a.csv'}:3: the ")
    assert "the maximum is 200b" in text


# Parquet


def write_parquet(path, rows, **options):
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def test_parquet_comes_row_by_row_over_groups(tmp_path, monkeypatch):
    monkeypatch.setattr("data.sources.formats.content.CHUNK_ROWS", 3)
    rows = [{"prompt": str(i), "turns": [{"role": "user", "n": i}], "none": None} for i in range(25)]
    path = write_parquet(tmp_path / "a.parquet", rows, row_group_size=10)
    source = open_source(of_file(path))
    chunks = list(chunks_of(source))
    assert len(chunks) == 4 + 4 + 2
    assert chunks == list(chunks_of(source))
    assert read(source) == [(f"{path} row {number}", row) for number, row in enumerate(rows, start=1)]


def test_chunks_of_parquet_are_of_about_a_megabyte(tmp_path):
    pick = random.Random(5)
    rows = [{"text": pick.randbytes(8000).hex()} for _ in range(400)]
    chunks = list(chunks_of(open_source(of_file(write_parquet(tmp_path / "a.parquet", rows)))))
    assert all(500_000 < len(chunk.content) < 2_000_000 for chunk in chunks[:-1])
    assert 5 < len(chunks) < 13


def test_broken_parquet_is_refused_when_it_is_opened(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [GOOD] * 100)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(
        DataError, match=r"a\.parquet is not a complete Parquet file \(.+\): download or write it again"
    ):
        open_source(of_file(path))


def test_parquet_that_is_broken_inside_is_refused(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [{"text": str(i) * 50} for i in range(2000)], use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet is not a complete Parquet file \(at row 1: "):
        read(open_source(of_file(path)))


def test_parquet_without_rows_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    with pytest.raises(DataError, match="the file has no rows"):
        read(open_source(of_file(path)))


def test_parquet_changed_while_it_is_read_is_refused(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [GOOD])
    source = open_source(of_file(path))
    assert source.fingerprint
    write_parquet(path, [GOOD, GOOD])
    with pytest.raises(DataError, match="changed while it was being read"):
        read(source)


def test_a_row_of_parquet_that_is_too_large_is_a_problem(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "a.parquet", [{"text": "a"}, {"text": "x" * 5000}, {"text": "b"}])
    monkeypatch.setattr("data.sources.formats.content.MAX_ROW_BYTES", 200)
    pairs = read(open_source(of_file(path)))
    assert [pairs[0], pairs[2]] == [(f"{path} row 1", {"text": "a"}), (f"{path} row 3", {"text": "b"})]
    assert "but the maximum is 200b" in pairs[1][1].text


# Text


def test_a_text_file_is_a_document(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\n\n")
    (tmp_path / "a.txt").write_text("café")
    source = open_source(DatasetConfig(text=str(tmp_path / "*.txt"), max_seq_len=8))
    assert read(source) == [
        (f"{tmp_path / 'a.txt'}:1", {"text": "café"}),
        (f"{tmp_path / 'b.txt'}:1", {"text": "one\r\ntwo\n\n"}),
    ]


def test_a_large_text_file_is_cut_at_line_ends(tmp_path, small_blocks):
    lines = [f"line {i} é\n" for i in range(1, 60)]
    (tmp_path / "a.txt").write_text("".join(lines))
    pairs = read(open_source(DatasetConfig(text=str(tmp_path / "a.txt"), max_seq_len=8)))
    assert len(pairs) > 5
    assert "".join(row["text"] for _, row in pairs) == "".join(lines)
    assert all(row["text"].startswith(f"line {place.rpartition(':')[2]} é\n") for place, row in pairs)


def test_text_that_is_not_utf8_is_a_problem_with_its_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\ncaf\xe9\n")
    ((place, problem),) = read(open_source(DatasetConfig(text=str(tmp_path / "a.txt"), max_seq_len=8)))
    assert place == f"{tmp_path / 'a.txt'}:3"
    assert problem.text == "is not UTF-8 (byte 0xe9 at position 3): save the file as UTF-8"


@pytest.fixture
def short_names(monkeypatch):
    """Simulate a file system that allows only shorter names than the config check does."""
    monkeypatch.setattr("data.base.paths.MAX_NAME_BYTES", 1000)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"text": "no.txt"}, "text has 'no.txt', but no such file exists"),
        ({"text": "x" * 300}, "x', which cannot be accessed (File name too long): use another path"),
        ({"text": "."}, "text has '.', but there is no .txt file in this folder"),
        ({"text": []}, "text is empty: specify at least one file"),
        ({"text": "a.txt", "split": "train"}, "split is 'train', but text files have no splits"),
    ],
)
def test_text_files_that_are_not_there_are_named(tmp_path, monkeypatch, short_names, changes, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        open_source(DatasetConfig(max_seq_len=8, **changes))
    assert text in str(error.value)


# Which files


@pytest.mark.parametrize("named", ["data_files", "hf_name"])
def test_a_split_of_files_that_are_named_can_only_be_train(tmp_path, named):
    file = str(write_jsonl(tmp_path / "test.jsonl", [{"prompt": "a", "response": "b"}]))
    settings = {"hf_name": file}
    if named == "data_files":
        settings = {"hf_name": "json", "hf_kwargs": HFKwargs(data_files=file)}
    for split in (None, "train"):
        open_source(DatasetConfig(split=split, max_seq_len=8, **settings))
    with pytest.raises(
        ConfigError, match=rf"split is 'test', but (hf_kwargs\.)?{named} specifies files that all belong"
    ):
        open_source(DatasetConfig(split="test", max_seq_len=8, **settings))


@pytest.mark.parametrize("key", ["cache_dir", "hf_name", "local", "remote", "text"])
def test_a_path_with_a_nul_byte_is_refused(key):
    source = {} if key != "cache_dir" else {"hf_name": "a.jsonl"}
    with pytest.raises(ValueError, match=rf"{key} has 'a\\x00b', but a path cannot contain a NUL byte"):
        DatasetConfig(max_seq_len=8, **{key: "a\0b"}, **source)
    with pytest.raises(ValueError, match=r"data_files has 'a\\x00b', but a path cannot"):
        HFKwargs(data_files=["a", "a\0b"])


def folder_config(folder, split="train") -> DatasetConfig:
    return DatasetConfig(hf_name="json", hf_kwargs=HFKwargs(data_dir=str(folder)), split=split, max_seq_len=8)


def test_the_split_chooses_files_as_datasets_does(tmp_path):
    for name in ("train.jsonl", "part-train-1.jsonl", "val.jsonl", "training/a.json", ".train.jsonl", "strain.txt"):
        write_jsonl(tmp_path / name, [GOOD])
    names = [str(path.relative_to(tmp_path)) for path in files_of(folder_config(tmp_path))]
    assert names == ["part-train-1.jsonl", "train.jsonl", "training/a.json"]
    assert [path.name for path in files_of(folder_config(tmp_path, "validation"))] == ["val.jsonl"]


def test_files_without_a_split_word_are_all_training_files(tmp_path):
    for name in ("b.jsonl", "a.json"):
        write_jsonl(tmp_path / name, [GOOD])
    assert [path.name for path in files_of(folder_config(tmp_path, None))] == ["a.json", "b.jsonl"]


def test_test_files_are_never_taken_for_training(tmp_path):
    write_jsonl(tmp_path / "test.jsonl", [GOOD])
    with pytest.raises(ConfigError, match=r"split is 'train', but no file .* has this name .*set split to test"):
        files_of(folder_config(tmp_path))


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"data_dir": "nowhere"}, "hf_kwargs.data_dir is 'nowhere', which does not exist"),
        ({"data_dir": "."}, "it contains no .jsonl, .json or .ndjson file (it contains a.csv, a.txt)"),
        ({"data_dir": "a.txt"}, "is a file: specify it in hf_kwargs.data_files"),
        ({"data_files": "no.jsonl"}, "hf_kwargs.data_files has 'no.jsonl', but no such file exists"),
        ({"data_files": "x" * 300}, "x', which cannot be accessed (File name too long): use another path"),
        ({"data_files": ["a.txt", "*.jsonl"]}, "hf_kwargs.data_files has '*.jsonl', but no such file exists"),
        ({"data_files": "."}, "it is a folder: specify it in hf_kwargs.data_dir"),
        ({"data_files": []}, "hf_kwargs.data_files is empty"),
        ({"data_files": "a.csv"}, "hf_kwargs.data_files has 'a.csv', but hf_name is 'json': set `hf_name: csv`"),
        ({}, "neither hf_kwargs.data_dir nor hf_kwargs.data_files"),
        ({"data_dir": ".", "name": "main"}, "hf_kwargs.name is 'main', but hf_name is 'json', and local files have no"),
        ({"data_dir": ".", "revision": "v1"}, "hf_kwargs.revision is 'v1', but hf_name is 'json', and local files"),
    ],
)
def test_files_that_are_not_there_are_named(tmp_path, monkeypatch, short_names, kwargs, text):
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "a.csv"):
        (tmp_path / name).write_text("")
    with pytest.raises(ConfigError) as error:
        open_source(DatasetConfig(hf_name="json", hf_kwargs=HFKwargs(**kwargs), max_seq_len=8))
    assert text in str(error.value)


def test_a_path_that_cannot_be_accessed_is_named(short_names):
    with pytest.raises(ConfigError, match=r"hf_name has '/x+', which cannot be accessed"):
        open_source(DatasetConfig(hf_name="/" + "x" * 300, max_seq_len=8))


def test_data_files_keep_their_order_and_come_once(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "c.jsonl"):
        write_jsonl(tmp_path / name, [GOOD])
    kwargs = HFKwargs(data_dir=str(tmp_path), data_files=["c.jsonl", "*.jsonl"])
    found = files_of(dataset_config(tmp_path, hf_kwargs=kwargs))
    assert [path.name for path in found] == ["c.jsonl", "a.jsonl", "b.jsonl"]
    absolute = dataset_config(tmp_path, hf_kwargs=HFKwargs(data_files=str(tmp_path / "[ab].jsonl")))
    assert [path.name for path in files_of(absolute)] == ["a.jsonl", "b.jsonl"]


def test_a_folder_is_read_by_its_path(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [GOOD])
    write_parquet(tmp_path / "test.parquet", [GOOD])
    for split, place in (("train", "train.jsonl:1"), ("test", "test.parquet row 1")):
        config = DatasetConfig(hf_name=str(tmp_path), split=split, max_seq_len=8)
        assert read(open_source(config)) == [(f"{tmp_path}/{place}", GOOD)]


def test_files_of_different_kinds_are_not_mixed(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [GOOD])
    write_parquet(tmp_path / "train.parquet", [GOOD])
    with pytest.raises(ConfigError, match=r"files of different formats \('.*train.jsonl' and '.*train.parquet'\)"):
        open_source(DatasetConfig(hf_name=str(tmp_path), max_seq_len=8))


@pytest.mark.parametrize("name", ["no.jsonl", "./no", "/no/where", "~/no-such-folder-here"])
def test_a_missing_path_is_not_looked_up_on_the_hub(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"hf_name is '{name}', but no such file or folder exists"):
        open_source(DatasetConfig(hf_name=name, max_seq_len=8))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("jsonl", "hf_name is 'jsonl', but the hf_name for these files is `hf_name: json`"),
        ("text", "hf_name is 'text', but plain text files are specified in `text`"),
    ],
)
def test_other_names_of_local_formats_suggest_the_right_key(name, text):
    with pytest.raises(ConfigError, match=text):
        open_source(DatasetConfig(hf_name=name, hf_kwargs=HFKwargs(data_files="a"), max_seq_len=8))
