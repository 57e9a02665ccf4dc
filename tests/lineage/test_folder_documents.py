"""The documents of the rows of a folder: local, remote, and damaged."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.base.errors import DataError
from data.lineage.folder_documents import Document, FolderDocuments
from data.lineage.seen import files_seen
from data.mds.folder import MdsFolder
from tests.helpers.documented_folder import Documented, write_documented


@pytest.fixture
def documented(tmp_path: Path) -> Documented:
    return write_documented(tmp_path / "rows", 40, seed=1)


def documents_of(row: list[tuple[int, int, int]]) -> list[Document]:
    return [Document(file, position) for file, position, _ in row]


def change_manifest(folder: Path, **changes: object) -> None:
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_each_row_has_its_documents(documented: Documented) -> None:
    folder = FolderDocuments(documented.mds)
    assert [folder.of_row(row) for row in range(40)] == [documents_of(row) for row in documented.rows]


def test_each_document_has_its_rows(documented: Documented) -> None:
    folder = FolderDocuments(documented.mds)
    every = sorted({document for row in documented.rows for document in documents_of(row)})
    rows_of = {each: [n for n, row in enumerate(documented.rows) if each in documents_of(row)] for each in every}
    assert max(map(len, rows_of.values())) > 1
    for document, rows in rows_of.items():
        assert [*folder.rows_of([(document, document)])] == [(0, document, row) for row in rows]
    found = [*folder.rows_of([(every[3], every[20]), (every[10], every[40])])]
    expected = [(0, every[3:21]), (1, every[10:41])]
    assert sorted(found) == [(n, each, row) for n, documents in expected for each in documents for row in rows_of[each]]


def test_a_document_that_is_not_in_the_rows_has_none(documented: Documented) -> None:
    folder = FolderDocuments(documented.mds)
    assert [*folder.rows_of([(Document(0, 5), Document(0, 5))])] == []
    assert [*folder.rows_of([(Document(2, 10**9), Document(2, 2**62)), (Document(9, 0), Document(9, 0))])] == []
    assert [*folder.rows_of([])] == []


def test_only_parts_that_may_contain_the_document_are_read(documented: Documented) -> None:
    entries = json.loads((documented.folder / "manifest.json").read_text())["documents"]
    first = 0
    for entry in entries:
        documents = [each for row in documented.rows[first : first + entry["rows"]] for each in documents_of(row)]
        entry |= {"first": min(documents), "last": max(documents)}
        first += entry["rows"]
    change_manifest(documented.folder, documents=entries)
    for entry in entries[1:]:
        (documented.folder / entry["basename"]).unlink()
    folder = FolderDocuments(documented.mds)
    document = documents_of(documented.rows[5])[0]
    assert 5 in [row for *_, row in folder.rows_of([(document, document)])]


def test_only_the_files_that_are_needed_are_downloaded(documented: Documented, tmp_path: Path) -> None:
    local = tmp_path / "local"
    mds = MdsFolder.open(local=str(local), remote=str(documented.folder), split=None, cache_dir="")
    assert FolderDocuments(mds).of_row(20) == documents_of(documented.rows[20])
    assert [path.name for path in local.glob("*.bin")] == ["documents.00001.bin"]
    shutil.rmtree(documented.folder)
    assert FolderDocuments(mds).of_row(21) == documents_of(documented.rows[21])


def test_a_folder_without_documents_is_an_error(documented: Documented) -> None:
    manifest = json.loads((documented.folder / "manifest.json").read_text())
    del manifest["documents"]
    (documented.folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"stream web .* has no lineage: .* prepare its rows again"):
        FolderDocuments(documented.mds, "web")
    (documented.folder / "manifest.json").unlink()
    with pytest.raises(DataError, match="has no lineage"):
        FolderDocuments(documented.mds)


@pytest.mark.parametrize(
    "entry",
    [
        {"basename": "../other.bin"},
        {"basename": "documents.00000.bin", "bytes": "many"},
        {"xxh64": None},
        {"rows": -1},
        {"first": 5},
    ],
    ids=str,
)
def test_an_invalid_entry_is_an_error(documented: Documented, entry: dict) -> None:
    entries = json.loads((documented.folder / "manifest.json").read_text())["documents"]
    change_manifest(documented.folder, documents=[entries[0] | entry, *entries[1:]])
    with pytest.raises(DataError, match=r"manifest.json has an invalid entry"):
        FolderDocuments(documented.mds)


def test_entries_for_other_rows_are_an_error(documented: Documented) -> None:
    entries = json.loads((documented.folder / "manifest.json").read_text())["documents"]
    change_manifest(documented.folder, documents=entries[:-1])
    with pytest.raises(DataError, match="of 40 rows"):
        FolderDocuments(documented.mds)


def test_a_damaged_file_is_an_error(documented: Documented) -> None:
    file = documented.folder / "documents.00000.bin"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"documents.00000.bin has a different hash"):
        FolderDocuments(documented.mds).of_row(0)


def test_documents_and_tokens_of_each_file_are_counted(documented: Documented) -> None:
    times = np.random.default_rng(0).integers(0, 4, 40) * (np.arange(40) > 10)
    for file, seen in enumerate(files_seen(FolderDocuments(documented.mds), times)):
        pieces = [(n, each) for n, row in enumerate(documented.rows) for each in row if each[0] == file]
        drawn = [(int(times[n]), each) for n, each in pieces if times[n]]
        assert seen.name == f"{documented.folder}/file{file}.jsonl"
        assert seen.n_documents == len({position for _, (_, position, _) in pieces})
        assert seen.documents == len({position for _, (_, position, _) in drawn})
        assert seen.pieces == sum(often for often, _ in drawn)
        assert seen.tokens == sum(often * length for often, (*_, length) in drawn)
