"""The curated documents as Parquet files, with columns that say where each document comes from.

The documents of each slice of the input are one file, in the order of the input. The files therefore do not depend on
the number of executors or partitions.
"""

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from data.curation.base.document import COLUMNS, ID_BITS
from data.curation.base.tasks import ARROW_SCHEMA, errors_for_driver
from data.spark.executors import arrow_function

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

ROWS = 1024
"""Number of documents in a row group."""
_PART = ".part-"


def write_documents(documents: "DataFrame", folder: Path) -> int:
    """Write the documents into the folder, which is replaced, and return their number. A reader sees either all old or
    all new files."""
    from pyspark.sql import functions as F

    part = folder.with_name(f"{_PART}{uuid.uuid4().hex[:8]}-{folder.name}")
    part.mkdir(parents=True)
    try:
        slices = documents.select(F.shiftright("id", ID_BITS).alias("slice"), *COLUMNS)
        ordered = slices.repartition("slice").sortWithinPartitions("id")
        files = ordered.mapInArrow(arrow_function(write_batches, str(part)), "file string, documents long").collect()
        old = folder.with_name(f"{_PART}{uuid.uuid4().hex[:8]}-old")
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
        return sum(row["documents"] for row in files)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_batches(batches: Iterator[pa.RecordBatch], folder: str) -> Iterator[pa.RecordBatch]:
    """The function of a task: write one file per slice. The batches are sorted by id."""
    with errors_for_driver():
        number, held, n_held = None, list[pa.Table](), 0
        written = _Slices(Path(folder))
        for batch in batches:
            for start, stop in _runs(batch.column(0).to_pylist()):
                slice = batch.column(0)[start].as_py()
                if slice != number:
                    written.flush(held)
                    number, held, n_held = slice, [], 0
                    written.open(slice)
                held.append(pa.Table.from_batches([batch.slice(start, stop - start)]).drop_columns(["slice"]))
                n_held += stop - start
                while n_held >= ROWS:
                    table = pa.concat_tables(held)
                    written.write(table.slice(0, ROWS))
                    held, n_held = [table.slice(ROWS)], n_held - ROWS
        written.flush(held)
        written.close()
        files = pa.array(list(written.files), type=pa.string())
        yield pa.RecordBatch.from_pydict(
            {"file": files, "documents": pa.array(written.files.values(), type=pa.int64())}
        )


def _runs(values: list[int]) -> Iterator[tuple[int, int]]:
    """The ranges of equal consecutive values."""
    start = 0
    for index in range(1, len(values) + 1):
        if index == len(values) or values[index] != values[start]:
            yield start, index
            start = index


class _Slices:
    """Writes one file after the other. A file gets its name when it is complete, so a repeated task does no harm."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.files = folder, dict[str, int]()
        self._writer, self._part, self._file = None, Path(), Path()

    def open(self, number: int) -> None:
        import pyarrow.parquet as pq

        self.close()
        self._file = self.folder / f"documents-{number:05d}.parquet"
        self._part = self.folder / f"{_PART}{uuid.uuid4().hex}-{self._file.name}"
        self._writer = pq.ParquetWriter(self._part, ARROW_SCHEMA, compression="zstd")

    def write(self, table: pa.Table) -> None:
        assert self._writer is not None
        self._writer.write_table(table.cast(ARROW_SCHEMA), row_group_size=ROWS)
        self.files[self._file.name] = self.files.get(self._file.name, 0) + table.num_rows

    def flush(self, held: list[pa.Table]) -> None:
        if held and (table := pa.concat_tables(held)).num_rows:
            self.write(table)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._part.replace(self._file)
            self._writer = None
