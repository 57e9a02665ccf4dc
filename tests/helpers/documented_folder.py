"""Prepared folders of random rows whose documents are known, written without data/preparation."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from data.mds.folder import MdsFolder
from data.mds.row import COLUMNS, Row
from data.preparation.parts.row_documents import RowDocuments
from tests.helpers.mds_folders import write_mds


@dataclass(frozen=True)
class Documented:
    """A folder, and the documents of each row as (file, position, number of tokens)."""

    folder: Path
    rows: list[list[tuple[int, int, int]]]

    @property
    def mds(self) -> MdsFolder:
        return MdsFolder.open(local=str(self.folder), remote=None, split=None, cache_dir="")


def write_documented(
    folder: Path, n_rows: int, *, seed: int = 0, n_files: int = 3, n_parts: int = 3, prefix: str = "", **manifest
) -> Documented:
    """Write rows of 1 to 4 documents, of which about a third continue in the next row of the same part. The position of
    document d of a file is 10 d."""
    rng = np.random.default_rng(seed)
    rows: list[list[tuple[int, int, int]]] = []
    contents, parts = [], np.array_split(np.arange(n_rows), n_parts)
    document, n_documents = 0, 4 * n_rows
    for part in parts:
        known: list[tuple[int, int]] = []
        of_rows: list[list[int]] = []
        for _ in part:
            pieces = []
            for _ in range(rng.integers(1, 5)):
                if not (known and not pieces and rng.random() < 0.3):
                    place = divmod(document, -(-n_documents // n_files))
                    known.append((place[0], 10 * place[1]))
                    document += 1
                pieces.append(len(known) - 1)
            of_rows.append(pieces)
        rows += [[(*known[index], int(rng.integers(1, 400))) for index in pieces] for pieces in of_rows]
        contents.append((of_rows, known))
    write_rows(folder, rows)
    entries = [write_part(folder, number, *content) for number, content in enumerate(contents)]
    (folder / "manifest.json").write_text(
        json.dumps(
            {
                "format": 4,
                "fingerprint": folder.name,
                "max_seq_len": 2048,
                "rows": n_rows,
                "tokens_kept": sum(length for row in rows for *_, length in row),
                "inputs": [{"path": f"{prefix or folder}/file{n}.jsonl", "bytes": 10**6} for n in range(n_files)],
                "documents": entries,
            }
            | manifest
        )
    )
    return Documented(folder, rows)


def write_part(folder: Path, number: int, rows: list[list[int]], documents: list[tuple[int, int]]) -> dict:
    """Write the file of a part's documents. Return its entry in the manifest."""
    content = RowDocuments(
        counts_R=np.array([len(row) for row in rows]),
        documents_P=np.array([index for row in rows for index in row]),
        files_D=np.array([file for file, _ in documents]),
        positions_D=np.array([position for _, position in documents]),
    ).encode()
    name = f"documents.{number:05}.bin"
    (folder / name).write_bytes(content)
    sizes = {"rows": len(rows), "n_documents": len(documents), "bytes": len(content)}
    return {"slice": number, **sizes, "basename": name, "xxh64": xxhash.xxh64_hexdigest(content)}


def write_rows(folder: Path, rows: list[list[tuple[int, int, int]]]) -> None:
    samples = []
    for row in rows:
        lengths = [length for *_, length in row]
        tokens = np.zeros(sum(lengths), dtype=np.int32)
        samples.append(vars(Row(tokens, np.ones(len(tokens), np.uint8), np.array(lengths, np.int32))))
    write_mds(folder, COLUMNS, samples, size_limit=20_000)
