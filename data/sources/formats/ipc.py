"""Arrow streams, as written by save_to_disk of the `datasets` library. The location of a row in messages is `path row
N`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.base.errors import DataError, os_errors_named
from data.sources.formats import content as c
from data.sources.formats.parquet import arrow_chunk

_END = b"\xff\xff\xff\xff\0\0\0\0"
"""The last bytes of a complete stream. Without a check of these bytes, a stream that was truncated between two batches
would look complete."""


def check(path: Path, name: str) -> None:
    """Raises DataError if the file is not a complete Arrow stream."""
    with os_errors_named(name, as_error=DataError), path.open("rb") as file:
        file.seek(-len(_END), 2)
        whole = file.read() == _END
    if not whole:
        raise DataError(_broken(name, "its end marker is missing"))
    for _ in _batches(path, name):
        break


def count(path: Path, name: str) -> int:
    """Number of rows. Reads only the headers of the batches."""
    return sum(batch.num_rows for batch in _batches(path, name))


def split(content: c.Content) -> Iterator[c.FileChunk]:
    """Batches are memory-mapped, so their content is read only when it is accessed."""
    assert isinstance(content.path, Path)
    content.check_unchanged()
    row = 1
    for batch in _batches(content.path, content.name):
        n_rows = min(max(c.BLOCK_BYTES * batch.num_rows // max(batch.nbytes, 1), 1), c.CHUNK_ROWS)
        for first in range(0, batch.num_rows, n_rows):
            part = batch.slice(first, n_rows)
            yield arrow_chunk(content.name, part, row, part.nbytes, content.number)
            row += part.num_rows
    content.check_unchanged()


def _batches(path: Path, name: str) -> Iterator[Any]:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
            yield from stream
    except (pa.ArrowException, OSError) as error:
        raise DataError(_broken(name, str(error))) from None


def _broken(name: str, why: str) -> str:
    return f"{name} is not a complete Arrow stream ({why.strip().splitlines()[0]}): copy or save the dataset again"
