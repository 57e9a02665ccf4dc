"""How often the files of a stream were drawn, in documents and tokens."""

from dataclasses import dataclass

import numpy as np

from data.base.errors import DataError
from data.lineage.folder_documents import FolderDocuments
from data.lineage.licenses import license_of
from data.mds.folder import MdsFolder
from data.mds.row import COLUMNS

_HEADS = np.array([2, 3, 5])
"""Size in bytes of the header of an array, for the header bytes 4, 5 and 6 (see data/mds/row.py)."""


@dataclass(frozen=True, kw_only=True)
class FileSeen:
    """How often the documents of one file were drawn."""

    name: str
    license: str | None
    n_documents: int
    """Number of the file's documents in the rows."""
    documents: int
    """Number of these documents of which at least a piece was drawn."""
    pieces: int
    """Number of times that a document, or a piece of a document that was split, was drawn."""
    tokens: int | None
    """Number of tokens of these pieces; None if not all shards of the folder are local."""


def files_seen(folder: FolderDocuments, times_R: np.ndarray) -> list[FileSeen]:
    """Count the documents and tokens of each file. times_R: how often each row of the folder was drawn."""
    n_files = len(folder.inputs)
    totals, documents, pieces, tokens = (np.zeros(n_files, dtype=np.int64) for _ in range(4))
    tokens_known = set(folder.mds.columns) == set(COLUMNS) and len(folder.mds.here()) == len(folder.mds.shards)
    for first, part in folder.each_part():
        n_rows = len(part.counts_R)
        times_P = np.repeat(times_R[first : first + n_rows], part.counts_R)
        files_P = part.files_D[part.documents_P]
        seen = np.zeros(len(part.files_D), dtype=bool)
        seen[part.documents_P[times_P > 0]] = True
        totals += np.bincount(part.files_D, minlength=n_files)
        documents += np.bincount(part.files_D[seen], minlength=n_files)
        np.add.at(pieces, files_P, times_P)
        if tokens_known:
            np.add.at(tokens, files_P, times_P * piece_lengths(folder.mds, first, part.counts_R))
    return [
        FileSeen(
            name=name,
            license=license_of(folder.inputs[file]),
            n_documents=int(totals[file]),
            documents=int(documents[file]),
            pieces=int(pieces[file]),
            tokens=int(tokens[file]) if tokens_known else None,
        )
        for file, name in enumerate(folder.names)
    ]


def piece_lengths(mds: MdsFolder, first: int, counts_R: np.ndarray) -> np.ndarray:
    """Number of tokens of each piece in the rows from `first` on, read from the shards. counts_R: number of pieces in
    each of these rows. Raises DataError if a row has another number of pieces."""
    parts, row, stop = [np.empty(0, dtype=np.int64)], first, first + len(counts_R)
    while row < stop:
        shard, place = mds.place(row)
        n_rows = min(stop, int(mds.ends[shard])) - row
        mds.ensure(shard)
        parts.append(_lengths_in(mds, shard, place, counts_R[row - first : row - first + n_rows]))
        row += n_rows
    return np.concatenate(parts)


def _lengths_in(mds: MdsFolder, shard: int, place: int, counts_R: np.ndarray) -> np.ndarray:
    content = np.fromfile(mds.file(shard), dtype=np.uint8)
    # A shard begins with the number of samples and the offset of each sample. A sample begins with the sizes of its
    # three columns, of which `lengths` is the first.
    starts_R = content[4 * (1 + place) : 4 * (1 + place + len(counts_R))].view("<u4").astype(np.int64)
    sizes_R = content[starts_R[:, None] + np.arange(4)].reshape(-1).view("<u4").astype(np.int64)
    heads_R = _HEADS[content[starts_R + 12].astype(np.int64) - 4]
    if (sizes_R - heads_R != 4 * counts_R).any():
        raise DataError(f"{mds.file(shard)} does not match the documents of its rows: {mds.hint}")
    within_P = np.arange(counts_R.sum()) - np.repeat(np.cumsum(counts_R) - counts_R, counts_R)
    values_P = np.repeat(starts_R + 12 + heads_R, counts_R) + 4 * within_P
    return content[values_P[:, None] + np.arange(4)].reshape(-1).view("<i4").astype(np.int64)
