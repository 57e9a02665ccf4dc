"""Check that executors on other machines see the input, and share the output folder with the driver."""

import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from data.base.errors import DataError, EngineError
from data.curation.base.tasks import errors_for_driver
from data.sources.source import Source
from data.spark.executors import arrow_function, check_versions, executor_error, versions_here

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_SHARED = "choose a folder on a file system that the driver and all executors share"


def probe(session: "SparkSession", sources: list[Source], output: Path) -> None:
    """Raises EngineError if an executor has other packages, or does not see the input or the output."""
    folder = output / f".probe-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    try:
        n = session.sparkContext.defaultParallelism
        task = arrow_function(probe_batches, sources, str(folder.resolve()), versions_here())
        for row in session.range(0, n, 1, n).mapInArrow(task, "host string, file string").collect():
            if not (folder / row["file"]).exists():
                raise EngineError(
                    f"Spark's executor on {row['host']} has written {folder / row['file']}, but this process does not "
                    f"see the file: {_SHARED}"
                )
    finally:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def probe_batches(
    batches: Iterator[pa.RecordBatch], sources: list[Source], folder: str, of_driver: dict[str, str]
) -> Iterator[pa.RecordBatch]:
    """The function of a task: check this executor, and write a file."""
    with errors_for_driver():
        for _ in batches:
            check_versions(of_driver)
            try:
                for source in sources:
                    source.check_visible()
            except DataError as error:
                raise executor_error(f"does not see the input as the driver does ({error}): {_SHARED}") from None
            file = Path(folder) / uuid.uuid4().hex
            try:
                file.write_bytes(b"")
            except OSError as error:
                raise executor_error(f"cannot write to {folder} ({error.strerror}): {_SHARED}") from None
            yield pa.RecordBatch.from_pydict({"host": [socket.gethostname()], "file": [file.name]})
