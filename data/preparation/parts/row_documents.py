"""The documents of each row of a part, and the format of the file in which they are stored.

The file `documents.SSSSS.bin` consists of a magic number and a zlib stream. The stream contains the numbers of rows,
pieces and documents, the width of each column, and the columns. Consecutive values are similar, so their differences
are stored, with the smallest number of bytes that is sufficient for the whole column. All first bytes of a column are
stored before all second bytes, because the high bytes are mostly zero and are compressed well. The file has 0.1% to
0.6% of the size of the rows.

Shapes: R rows, P pieces of documents, D documents.
"""

import struct
import zlib
from dataclasses import dataclass

import numpy as np

from data.base.errors import DataError

_MAGIC = b"rowdocs1"
_HEADER = struct.Struct("<3Q5B")
"""R, P, D, and the width in bytes of each of the five columns."""


@dataclass(frozen=True, eq=False)
class RowDocuments:
    """The documents of consecutive rows.

    A document is identified by its file and its position in the file. Documents are in the order of the source. A
    document that was split has one piece in each of its rows.
    """

    counts_R: np.ndarray
    """Number of documents (or pieces of documents) in each row; at least 1."""
    documents_P: np.ndarray
    """For each piece, in the order of rows: index of its document (0 <= index < D)."""
    files_D: np.ndarray
    """For each document: index of its file in the manifest's `inputs`."""
    positions_D: np.ndarray
    """For each document: its position in the file. Byte offset of the first byte in the decompressed file for JSONL,
    JSON arrays and text; record number for Parquet, Arrow and CSV; sample number for MDS."""

    def encode(self) -> bytes:
        """The content of the file. The same documents always result in the same bytes. Raises ValueError for arrays
        that do not match."""
        arrays = (self.counts_R, self.documents_P, self.files_D, self.positions_D)
        given = RowDocuments(*(np.asarray(array, dtype=np.int64) for array in arrays))
        defect = given._defect()
        if defect is not None:
            raise ValueError(defect)
        columns = given._columns()
        widths = [_width(column) for column in columns]
        header = _HEADER.pack(len(given.counts_R), len(given.documents_P), len(given.files_D), *widths)
        planes = [_planes(column, width) for column, width in zip(columns, widths, strict=True)]
        return _MAGIC + zlib.compress(b"".join([header, *planes]), 6)

    @classmethod
    def decode(cls, content: bytes) -> "RowDocuments":
        """Read the content of the file; all arrays are int64. Raises DataError for damaged content. The message does
        not contain the name of the file."""
        if not content.startswith(_MAGIC):
            raise DataError(f"does not begin with {_MAGIC.decode()}, so it is not a file of documents")
        try:
            values = zlib.decompress(content[len(_MAGIC) :])
            n_rows, n_pieces, n_documents, *widths = _HEADER.unpack_from(values)
        except (zlib.error, struct.error) as error:
            raise DataError(f"is damaged ({error})") from None
        lengths = (n_rows, n_rows, n_pieces - n_rows, n_documents, n_documents)
        sizes = [length * width for length, width in zip(lengths, widths, strict=True)]
        is_valid = n_pieces >= n_rows and all(1 <= width <= 8 for width in widths)
        if not is_valid or _HEADER.size + sum(sizes) != len(values):
            raise DataError(f"is damaged (its columns do not have {len(values):,} bytes)")
        ends = (_HEADER.size + np.cumsum(sizes)).tolist()
        parts = [values[end - size : end] for end, size in zip(ends, sizes, strict=True)]
        found = cls._of_columns(*(_joined(part, width) for part, width in zip(parts, widths, strict=True)))
        defect = found._defect()
        if defect is not None:
            raise DataError(f"is damaged ({defect})")
        return found

    def _defect(self) -> str | None:
        counts_R, documents_P, files_D, positions_D = vars(self).values()
        if len(counts_R) and counts_R.min() < 1:
            return "a row has no documents"
        if counts_R.sum() != len(documents_P):
            return f"the rows have {counts_R.sum()} pieces, but there are {len(documents_P)}"
        if len(files_D) != len(positions_D):
            return f"there are {len(files_D)} files of documents, but {len(positions_D)} positions"
        if len(documents_P) and not 0 <= documents_P.min() <= documents_P.max() < len(files_D):
            return f"a row has a document that is not one of the {len(files_D)} documents"
        if len(files_D) and (files_D.min() < 0 or positions_D.min() < 0):
            return "a file or position is negative"
        files, positions = np.diff(files_D), np.diff(positions_D)
        if (files < 0).any() or ((files == 0) & (positions < 0)).any():
            return "the documents are not in the order of the source"
        return None

    def _columns(self) -> list[np.ndarray]:
        """The columns of the file: values that are not negative, and mostly small."""
        starts_R = np.cumsum(self.counts_R) - self.counts_R
        follows_P = np.ones(len(self.documents_P), dtype=bool)
        follows_P[starts_R] = False
        steps_P = np.diff(self.documents_P, prepend=0)
        new_file_D = np.diff(self.files_D, prepend=-1) != 0
        return [
            self.counts_R,
            _zigzag(np.diff(self.documents_P[starts_R], prepend=0)),
            _zigzag(steps_P[follows_P]),
            np.diff(self.files_D, prepend=0),
            np.where(new_file_D, self.positions_D, np.diff(self.positions_D, prepend=0)),
        ]

    @classmethod
    def _of_columns(
        cls, counts_R: np.ndarray, first_R: np.ndarray, steps: np.ndarray, files_D: np.ndarray, positions_D: np.ndarray
    ) -> "RowDocuments":
        """The inverse of `_columns`. Raises DataError if the number of pieces differs from the sum of the counts."""
        n_pieces = len(counts_R) + len(steps)
        if len(counts_R) and not (1 <= counts_R.min() <= counts_R.max() <= n_pieces == counts_R.sum()):
            raise DataError("is damaged (the numbers of documents in the rows do not match)")
        starts_R = np.cumsum(counts_R) - counts_R
        values_P, follows_P = np.zeros(n_pieces, dtype=np.int64), np.ones(n_pieces, dtype=bool)
        follows_P[starts_R] = False
        values_P[starts_R], values_P[follows_P] = np.cumsum(_from_zigzag(first_R)), _from_zigzag(steps)
        new_file_D = files_D != 0
        new_file_D[:1] = True
        return cls(
            counts_R=counts_R,
            documents_P=_sums(values_P, starts_R),
            files_D=np.cumsum(files_D),
            positions_D=_sums(positions_D, np.flatnonzero(new_file_D)),
        )


def _sums(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Cumulative sums that begin again at each start. The first start is 0."""
    sums = np.cumsum(values)
    lengths = np.diff(starts, append=len(values))
    return sums - np.repeat(sums[starts] - values[starts], lengths)


def _zigzag(values: np.ndarray) -> np.ndarray:
    """Map 0, -1, 1, -2, ... to 0, 1, 2, 3, ..."""
    return (values << 1) ^ (values >> 63)


def _from_zigzag(values: np.ndarray) -> np.ndarray:
    return (values >> 1) ^ -(values & 1)


def _width(column: np.ndarray) -> int:
    """Number of bytes of the largest value; at least 1."""
    return max(1, -(-int(column.max()).bit_length() // 8)) if len(column) else 1


def _planes(column: np.ndarray, width: int) -> bytes:
    """All first bytes, then all second bytes, and so on, from the least significant byte."""
    return column.astype("<i8").view(np.uint8).reshape(-1, 8).T[:width].tobytes()


def _joined(planes: bytes, width: int) -> np.ndarray:
    """The inverse of `_planes`; int64."""
    values = np.zeros((len(planes) // width, 8), dtype=np.uint8)
    values[:, :width] = np.frombuffer(planes, dtype=np.uint8).reshape(width, -1).T
    return values.reshape(-1).view("<i8").astype(np.int64)
