"""The file that stores the documents of a part's rows."""

import zlib
from contextlib import suppress

import numpy as np
import pytest

from data.base.errors import DataError
from data.mds.row import Row
from data.preparation.packing.packers import best_fit, concatenate_and_cut
from data.preparation.parts.row_documents import RowDocuments


def of_rows(rows: list[list[int]], files: list[int], positions: list[int]) -> RowDocuments:
    return RowDocuments(
        counts_R=np.array([len(row) for row in rows], dtype=np.int64),
        documents_P=np.array([document for row in rows for document in row], dtype=np.int64),
        files_D=np.array(files, dtype=np.int64),
        positions_D=np.array(positions, dtype=np.int64),
    )


def assert_same(a: RowDocuments, b: RowDocuments) -> None:
    for name, values in vars(a).items():
        np.testing.assert_array_equal(values, getattr(b, name), err_msg=name)


@pytest.mark.parametrize("seed", range(20))
def test_random_documents_are_read_as_they_were_written(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_documents = int(rng.integers(1, 300))
    rows = [rng.integers(0, n_documents, rng.integers(1, 20)).tolist() for _ in range(rng.integers(1, 100))]
    largest = 10 ** int(rng.integers(1, 18))
    places = sorted(zip(rng.integers(0, 5, n_documents), rng.integers(0, largest, n_documents), strict=True))
    documents = of_rows(rows, [file for file, _ in places], [position for _, position in places])
    assert_same(RowDocuments.decode(documents.encode()), documents)


@pytest.mark.parametrize(
    "documents",
    [
        of_rows([], [], []),
        of_rows([[0]], [3], [2**62]),
        of_rows([[0], [0], [0, 1]], [0, 1], [5, 0]),
    ],
    ids=["empty", "one", "cut"],
)
def test_small_parts(documents: RowDocuments) -> None:
    assert_same(RowDocuments.decode(documents.encode()), documents)


def test_the_bytes_do_not_depend_on_dtypes() -> None:
    documents = of_rows([[0, 2], [1]], [0, 0, 1], [0, 100, 7])
    narrow = RowDocuments(*(values.astype(np.int32) for values in vars(documents).values()))
    assert narrow.encode() == documents.encode()


def packed(lengths: np.ndarray) -> RowDocuments:
    """Documents with about 4 bytes per token, packed into rows of 2048 tokens."""
    positions = np.cumsum(lengths * 4 + 30 + lengths % 7) - lengths * 4
    rows = [row.tolist() for row in best_fit(lengths, 2048)]
    return of_rows(rows, [0] * len(lengths), positions.tolist())


def cut(lengths: np.ndarray) -> RowDocuments:
    """The same documents as texts that may continue in the next row."""
    whole, document, left, rows = packed(lengths), 0, int(lengths[0]), []
    for pieces in concatenate_and_cut(lengths, 2048):
        rows.append([])
        for piece in pieces:
            rows[-1].append(document)
            left -= piece
            if not left and document + 1 < len(lengths):
                document += 1
                left = int(lengths[document])
    return of_rows(rows, whole.files_D.tolist(), whole.positions_D.tolist())


@pytest.mark.parametrize(("low", "high"), [(50, 52), (50, 2000), (1000, 2000)])
@pytest.mark.parametrize("layout", [packed, cut])
def test_the_file_is_below_one_percent_of_the_rows(layout, low: int, high: int) -> None:
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.uniform(np.log(low), np.log(high), 20_000)).astype(np.int64)
    documents = layout(lengths)
    zeros = np.zeros(2048, dtype=np.int32)
    rows = sum(len(Row(zeros, zeros, np.zeros(count)).encode()) for count in documents.counts_R.tolist())
    assert len(documents.encode()) < 0.01 * rows


def damaged(content: bytes, change) -> bytes:
    values = bytearray(zlib.decompress(content[8:]))
    change(values)
    return content[:8] + zlib.compress(bytes(values))


def test_damaged_content_is_an_error() -> None:
    content = of_rows([[0, 1], [2]], [0, 0, 1], [0, 9, 4]).encode()
    flipped = bytes([*content[:-3], content[-3] ^ 1, *content[-2:]])
    for bad in (b"", b"rowdocs1", b"another file", content[:-1], flipped):
        with pytest.raises(DataError, match=r"damaged|does not begin"):
            RowDocuments.decode(bad)


@pytest.mark.parametrize("value", [0, 1, 200, 255])
def test_no_change_in_the_header_causes_another_error(value: int) -> None:
    content = of_rows([[0, 1], [2]], [0, 0, 1], [0, 9, 4]).encode()
    for place in range(29):
        with suppress(DataError):
            RowDocuments.decode(damaged(content, lambda values, place=place: values.__setitem__(place, value)))


def test_wrong_documents_are_an_error() -> None:
    good = of_rows([[0, 1], [2]], [0, 0, 1], [0, 9, 4])
    for change in (
        {"documents_P": np.array([0, 1, 3])},
        {"files_D": np.array([1, 0, 1])},
        {"counts_R": np.array([3, 0])},
    ):
        with pytest.raises(ValueError, match=r"document"):
            RowDocuments(**{**vars(good), **change}).encode()
