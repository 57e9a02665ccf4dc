"""The documents of the rows of a prepared folder, read from the files that were written for each part."""

import os
import re
import shutil
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from data.base.errors import DataError, os_errors_named
from data.mds.folder import MdsFolder
from data.mds.remote.fetch import check_network, fetch
from data.mds.writer import MANIFEST
from data.preparation.parts.row_documents import RowDocuments
from data.stores.failures import FetchError

_NAME = re.compile(r"documents\.\d{5,}\.bin")
_KEPT = 16
"""Number of parts whose documents stay in memory."""


class Document(NamedTuple):
    """A document of a stream: a file (index in the inputs of the folder's manifest) and a position in the file."""

    file: int
    position: int


@dataclass(frozen=True, kw_only=True)
class PartFile:
    """A part of a folder, as listed in the manifest."""

    basename: str
    bytes: int
    xxh64: str
    rows: int
    n_documents: int
    first: Document | None
    last: Document | None
    """The first and the last document of the part; None if the manifest does not contain them."""


class FolderDocuments:
    """The documents of all rows of a folder. Only the files that are needed are read; those of a remote folder are
    downloaded first."""

    def __init__(self, mds: MdsFolder, stream: str = "") -> None:
        """stream: name of the stream, for messages. Raises DataError if the folder's manifest lists no documents."""
        self.mds = mds
        self.label = f"stream {stream} ({mds.name})" if stream else mds.name
        manifest = mds.manifest or {}
        if "documents" not in manifest:
            raise DataError(
                f"{self.label} has no lineage: {MANIFEST} does not list the documents of its rows, because another "
                "program or an earlier version wrote the folder: prepare its rows again with this version"
            )
        self.parts = [self._part(entry) for entry in _list(manifest["documents"])]
        self.inputs: list[dict[str, Any]] = [each for each in _list(manifest.get("inputs")) if isinstance(each, dict)]
        self.names = [input_name(each) for each in self.inputs]
        self._first_rows = [0, *accumulate(part.rows for part in self.parts)]
        if self._first_rows[-1] != mds.n_samples:
            raise self._invalid(f"lists the documents of {self._first_rows[-1]} of {mds.n_samples} rows")
        self._load = lru_cache(maxsize=_KEPT)(self._read)

    @property
    def n_rows(self) -> int:
        return self._first_rows[-1]

    @property
    def n_documents(self) -> int:
        return sum(part.n_documents for part in self.parts)

    def name_of(self, document: Document) -> str:
        """`PATH:POSITION`, the name under which users refer to the document."""
        return f"{self.names[document.file]}:{document.position}"

    def of_row(self, row: int) -> list[Document]:
        """The documents of a row, in the order of the row."""
        number = bisect_right(self._first_rows, row) - 1
        part = self._load(number)
        return [Document(*part.document(index)) for index in part.of_row(row - self._first_rows[number]).tolist()]

    def rows_of(self, ranges: Sequence[tuple[Document, Document]]) -> Iterator[tuple[int, Document, int]]:
        """For each document between a range's first and last document, inclusive, and each row that contains a piece of
        the document: the index of the range, the document, and the row. Each part is read at most once."""
        first_R2, last_R2 = (np.array([pair[end] for pair in ranges], dtype=np.int64).reshape(-1, 2) for end in (0, 1))
        for number, described in enumerate(self.parts):
            if described.first is None or described.last is None:
                part = self._load(number)
                if not part.n_documents:
                    continue
                bounds = part.document(0), part.document(part.n_documents - 1)
            else:
                bounds = described.first, described.last
            overlapping = ~_is_before(last_R2, bounds[0]) & ~_is_after(first_R2, bounds[1])
            for index in np.flatnonzero(overlapping).tolist():
                yield from self._rows_in_part(number, index, *ranges[index])

    def _rows_in_part(
        self, number: int, index: int, first: Document, last: Document
    ) -> Iterator[tuple[int, Document, int]]:
        part = self._load(number)
        low, high = part.find(first), part.find(Document(last.file, last.position + 1))
        documents, rows = part.rows_between(low, high)
        for document, row in zip(documents.tolist(), rows.tolist(), strict=True):
            yield index, Document(*part.document(document)), self._first_rows[number] + row

    def each_part(self) -> Iterator[tuple[int, RowDocuments]]:
        """The first row and the documents of each part."""
        for number in range(len(self.parts)):
            yield self._first_rows[number], self._load(number).documents

    # Files

    def _part(self, entry: Any) -> PartFile:
        try:
            first, last = (_document(entry.get(key)) for key in ("first", "last"))
            basename, digest = entry["basename"], entry["xxh64"]
            sizes = {key: entry[key] for key in ("bytes", "rows", "n_documents")}
        except (KeyError, TypeError, ValueError, AttributeError):
            raise self._invalid("has an invalid entry in `documents`") from None
        whole = all(isinstance(size, int) and size >= 0 for size in sizes.values())
        if not whole or not isinstance(digest, str) or not _NAME.fullmatch(str(basename)):
            raise self._invalid("has an invalid entry in `documents`")
        return PartFile(basename=basename, xxh64=digest, first=first, last=last, **sizes)

    def _invalid(self, defect: str) -> DataError:
        return DataError(f"{self.label}: {MANIFEST} {defect}: prepare the rows again")

    def _read(self, number: int) -> "_Part":
        part = self.parts[number]
        file = self.mds.folder / part.basename
        content = self._content(part, file)
        try:
            documents = RowDocuments.decode(content)
        except DataError as error:
            raise DataError(f"{file} {error}: {self.mds.hint}") from None
        if len(documents.counts_R) != part.rows or (documents.files_D >= len(self.inputs)).any():
            raise DataError(f"{file} does not match {MANIFEST}: {self.mds.hint}")
        return _Part(documents)

    def _content(self, part: PartFile, file: Path) -> bytes:
        if self.mds.remote is not None and not file.exists():
            return self._download(part, file)
        with os_errors_named(file, hint=self.mds.hint, as_error=DataError):
            content = file.read_bytes()
        if (defect := _defect(part, content)) is not None:
            raise DataError(f"{file} {defect}: {self.mds.hint}")
        return content

    def _download(self, part: PartFile, file: Path) -> bytes:
        """Download the file into the folder. If the folder is not writable, the file is not kept."""
        remote, is_writable = str(self.mds.remote), os.access(file.parent, os.W_OK)
        folder = Path(tempfile.mkdtemp(prefix=".documents-", dir=file.parent if is_writable else None))
        try:
            check_network(remote)
            got = fetch(f"{remote}/{part.basename}", folder, lambda found: _defect(part, found.read_bytes()))
            content = got.read_bytes()
            if is_writable:
                got.replace(file)
        except FetchError as error:
            raise DataError(f"{self.mds.name}/{part.basename} cannot be downloaded: {error}") from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return content


class _Part:
    """The documents of a part, with the tables to look them up."""

    def __init__(self, documents: RowDocuments) -> None:
        self.documents = documents
        self._starts_R = np.cumsum(documents.counts_R) - documents.counts_R

    @property
    def n_documents(self) -> int:
        return len(self.documents.files_D)

    def of_row(self, row: int) -> np.ndarray:
        start, count = self._starts_R[row], self.documents.counts_R[row]
        return self.documents.documents_P[start : start + count]

    def document(self, index: int) -> tuple[int, int]:
        return int(self.documents.files_D[index]), int(self.documents.positions_D[index])

    def find(self, document: Document) -> int:
        """Index of the first document that is not before the given document."""
        low, high = (int(np.searchsorted(self.documents.files_D, document.file, side)) for side in ("left", "right"))
        return low + int(np.searchsorted(self.documents.positions_D[low:high], document.position))

    def rows_between(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """For the documents low..high-1: each pair of a document and a row that contains a piece of it, by row."""
        sorted_P, order_P = self._by_document
        first, stop = np.searchsorted(sorted_P, [low, high])
        pieces = np.sort(order_P[first:stop])
        rows = np.searchsorted(self._starts_R, pieces, side="right") - 1
        pairs = np.unique(np.stack([rows, self.documents.documents_P[pieces]]), axis=1)
        return pairs[1], pairs[0]

    @cached_property
    def _by_document(self) -> tuple[np.ndarray, np.ndarray]:
        order_P = np.argsort(self.documents.documents_P, kind="stable")
        return self.documents.documents_P[order_P], order_P


def _is_before(places_R2: np.ndarray, place: tuple[int, int]) -> np.ndarray:
    """Whether each (file, position) pair is before the place."""
    file_R, position_R = places_R2.T
    return (file_R < place[0]) | ((file_R == place[0]) & (position_R < place[1]))


def _is_after(places_R2: np.ndarray, place: tuple[int, int]) -> np.ndarray:
    file_R, position_R = places_R2.T
    return (file_R > place[0]) | ((file_R == place[0]) & (position_R > place[1]))


def input_name(entry: Mapping[str, Any]) -> str:
    """The name of an input file: its path, or `DATASET/PATH` for a file of a hub dataset."""
    path = str(entry.get("path", ""))
    return f"{entry['dataset']}/{path}" if "dataset" in entry else path


def _document(place: Sequence[int] | None) -> Document | None:
    return None if place is None else Document(*map(int, place))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _defect(part: PartFile, content: bytes) -> str | None:
    if len(content) != part.bytes:
        return f"has {len(content)} of {part.bytes} bytes"
    return None if xxhash.xxh64_hexdigest(content) == part.xxh64 else f"has a different hash than in {MANIFEST}"
