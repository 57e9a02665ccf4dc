"""References to documents: positions, line numbers, whole files, and unknown files."""

import gzip
from pathlib import Path

import pytest

from data.base.errors import ConfigError
from data.lineage.folder_documents import FolderDocuments
from data.lineage.references import Wanted, find_documents, parse_reference, read_references
from tests.helpers.documented_folder import write_documented


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, FolderDocuments]:
    """Streams with the files /in/web/file0.jsonl to file2.jsonl, and /in/code/file0.jsonl."""
    n_files = {"web": 3, "code": 1}
    return {
        name: FolderDocuments(write_documented(tmp_path / name, 6, n_files=n, prefix=f"/in/{name}").mds)
        for name, n in n_files.items()
    }


def find(text: str, folders: dict[str, FolderDocuments]) -> list[tuple[str, int, int, int]]:
    found: list[Wanted] = find_documents([parse_reference(text)], folders)
    return [(each.stream, each.first.file, each.first.position, each.last.position) for each in found]


def test_a_position_and_a_file(folders: dict[str, FolderDocuments]) -> None:
    assert find("/in/web/file1.jsonl:70", folders) == [("web", 1, 70, 70)]
    assert find("web/file1.jsonl:70", folders) == find("file1.jsonl:70", folders) == [("web", 1, 70, 70)]
    ((stream, file, first, last),) = find("web/file2.jsonl", folders)
    assert (stream, file, first) == ("web", 2, 0)
    assert last > 10**18


def test_a_file_that_two_streams_read_is_found_in_both(tmp_path: Path) -> None:
    folders = {
        name: FolderDocuments(write_documented(tmp_path / name, 6, prefix="/in", n_files=n).mds)
        for name, n in (("a", 1), ("b", 2))
    }
    assert find("/in/file0.jsonl:10", folders) == [("a", 0, 10, 10), ("b", 0, 10, 10)]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_line_number_becomes_the_bytes_of_the_line(tmp_path: Path, suffix: str) -> None:
    content = b'{"text": "a"}\n\n{"text": "two \xc3\xa4"}\r\n{"text": "last"}'
    path = tmp_path / f"file0{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    inputs = [{"path": str(path), "bytes": path.stat().st_size}]
    folders = {"": FolderDocuments(write_documented(tmp_path / "rows", 6, n_files=1, inputs=inputs).mds)}
    lines = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        start = sum(len(each) + 1 for each in lines[: number - 1])
        found = [("", 0, start, start + max(len(line) - (number == 4), 0))]
        assert find(f"{path}:L{number}", folders) == find(f"{path.name}:L{number}", folders) == found
    with pytest.raises(ConfigError, match=r":L5 does not exist: the file has 4 lines"):
        find(f"{path}:L5", folders)
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(ConfigError, match="the file has changed since its rows were prepared"):
        find(f"{path}:L2", folders)


def test_lines_far_apart_in_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.lineage.references._BLOCK", 64)
    path = tmp_path / "file0.jsonl"
    path.write_text("".join(f"{n:09}\n" for n in range(1000)))
    inputs = [{"path": str(path), "bytes": path.stat().st_size}]
    folders = {"": FolderDocuments(write_documented(tmp_path / "rows", 6, n_files=1, inputs=inputs).mds)}
    for line in (1, 7, 500, 501, 1000):
        assert find(f"{path}:L{line}", folders) == [("", 0, 10 * line - 10, 10 * line - 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("web/fil1.jsonl:3", r"'web/fil1.jsonl' is not an input file of the run's data: did you mean /in/web/file1"),
        ("file0.jsonl:3", r"matches 2 files of the run \(/in/code/file0.jsonl, /in/web/file0.jsonl\)"),
        ("xyz", r"whose files are: /in/web/file0.jsonl"),
        ("/in/web/file1.jsonl:L3", "not on this machine: write /in/web/file1.jsonl:BYTE_OFFSET"),
        ("web/file1.jsonl:abc", "ends with 'abc', which is not a position: write web/file1.jsonl:0"),
        ("a.jsonl:L0", "is not a document: write PATH:POSITION"),
        ("", "is not a document"),
    ],
)
def test_an_unknown_document_is_an_error(folders: dict[str, FolderDocuments], text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find(text, folders)


def test_line_numbers_are_for_json_lines_only(tmp_path: Path) -> None:
    inputs = [{"path": "/in/a.parquet", "bytes": 1}]
    folders = {"": FolderDocuments(write_documented(tmp_path / "rows", 6, n_files=1, inputs=inputs).mds)}
    with pytest.raises(ConfigError, match="only JSONL files have line numbers"):
        find("a.parquet:L3", folders)


def test_a_list_of_documents_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("# removed\n/in/a.jsonl:10\n\n  s3://x/b.jsonl:L2 \nc.txt\n")
    found = [(each.path, each.position, each.line) for each in read_references(file)]
    assert found == [("/in/a.jsonl", 10, None), ("s3://x/b.jsonl", None, 2), ("c.txt", None, None)]
    file.write_text("# nothing\n")
    with pytest.raises(ConfigError, match="contains no documents"):
        read_references(file)
    with pytest.raises(ConfigError, match="No such file"):
        read_references(tmp_path / "missing.txt")


def test_errors_in_a_list_name_all_lines(tmp_path: Path, folders: dict[str, FolderDocuments]) -> None:
    file = tmp_path / "list.txt"
    file.write_text("\ufeff/in/web/file0.jsonl:L0\r\na:L0\r\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"(?s)2 problems.*list.txt:1: '/in/web.*list.txt:2: 'a:L0' is not"):
        read_references(file)
    file.write_text("web/file0.jsonl:0\n" + "".join(f"x{n % 12}.jsonl:1\n" for n in range(24)))
    with pytest.raises(ConfigError, match=r"(?s)list.txt:2: 'x0.jsonl'.*list.txt:11: 'x9.jsonl'.*\.\.\. and 2 more$"):
        find_documents(read_references(file), folders)
