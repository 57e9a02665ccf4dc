"""Parquet files. Slices of row groups are sent to workers as Arrow streams. The location of a row in messages is `path
row N`."""

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from data.base.errors import DataError
from data.base.problems import Place
from data.sources.formats import content as c
from data.sources.remote.remote_file import ExactReader, InputPath, RemoteFile

if TYPE_CHECKING:
    import pyarrow as pa

_REQUEST_BYTES = 4 << 20
"""Size of the requests for a column of a remote file, which is larger than for local files because each request takes
tens of milliseconds."""


def check(path: InputPath, name: str) -> None:
    """Raises DataError if the file has no valid footer, for example because the file is truncated."""
    _facts(path, name)


def count(path: InputPath, name: str) -> int:
    """Number of rows according to the footer."""
    return _facts(path, name)[0]


def row_groups(path: InputPath, name: str) -> list[int]:
    """The size in bytes of each row group, before compression."""
    return _facts(path, name)[1]


def split(content: c.Content, groups: tuple[int, int] | None = None) -> Iterator[c.FileChunk]:
    """The chunks of the file, or only of the row groups from groups[0] to groups[1] - 1.

    Pages are read only when they are needed, so a row group does not have to fit into memory.
    """
    import pyarrow as pa

    content.check_unchanged()
    with _open(content.file.path, content.name) as file:
        first, stop = groups or (0, file.num_row_groups)
        row = 1 + sum(file.metadata.row_group(group).num_rows for group in range(first))
        for group in range(first, stop):
            about = file.metadata.row_group(group)
            n_rows = min(max(c.BLOCK_BYTES * about.num_rows // max(about.total_byte_size, 1), 1), c.CHUNK_ROWS)
            size = content.file.bytes * n_rows // max(file.metadata.num_rows, 1)
            try:
                for batch in file.iter_batches(n_rows, row_groups=[group], use_threads=False):
                    yield arrow_chunk(content.name, batch, row, size, content.number)
                    row += batch.num_rows
            except (pa.ArrowException, OSError) as error:
                raise DataError(_broken(content.name, f"at row {row}: {error}")) from None
    content.check_unchanged()


def arrow_chunk(name: str, batch: "pa.RecordBatch", row: int, size: int, file: int = 0) -> c.FileChunk:
    """A chunk with the rows of an Arrow batch. The location of the first row in messages is `name row ROW`. `file` is
    the index of the file in the source's `inputs`."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return c.FileChunk("parquet", name, sink.getvalue().to_pybytes(), size, row=row, n_rows=batch.num_rows, file=file)


def rows(chunk: c.FileChunk) -> Iterator[tuple[Place, Any]]:
    """A row is `{column: value}`."""
    import pyarrow as pa

    table = pa.ipc.open_stream(chunk.content).read_all()
    for index in range(table.num_rows):
        one = table.slice(index, 1)
        n_bytes = one.nbytes if len(chunk.content) > c.MAX_ROW_BYTES else 0
        place = Place(chunk.file, chunk.row + index - 1, f"{chunk.name} row {chunk.row + index}")
        yield place, c.too_large(n_bytes) if n_bytes > c.MAX_ROW_BYTES else one.to_pylist()[0]


def _facts(path: InputPath, name: str) -> tuple[int, list[int]]:
    """The number of rows, and the size of each row group before compression. The footer of a remote file is read only
    once per process."""
    return _remote_facts(path, name) if isinstance(path, RemoteFile) else _read_facts(path, name)


def _read_facts(path: InputPath, name: str) -> tuple[int, list[int]]:
    with _open(path, name) as file:
        sizes = [file.metadata.row_group(group).total_byte_size for group in range(file.num_row_groups)]
        return file.metadata.num_rows, sizes


_remote_facts = functools.cache(_read_facts)


def _open(path: InputPath, name: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if isinstance(path, RemoteFile):
            return pq.ParquetFile(pa.PythonFile(ExactReader(path)), buffer_size=_REQUEST_BYTES, pre_buffer=False)
        return pq.ParquetFile(path, buffer_size=c.BLOCK_BYTES, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise DataError(_broken(name, str(error))) from None


def _broken(name: str, why: str) -> str:
    return f"{name} is not a complete Parquet file ({why.strip().splitlines()[0]}): download or write it again"
