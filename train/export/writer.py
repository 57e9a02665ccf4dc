"""Write tensors to safetensors files with an index. Only a few rows are in memory at a time, and a killed export can be
continued."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from pathlib import Path

from tqdm import tqdm

from data.base.errors import ConfigError
from data.base.sizes import parse_bytes, progress_bar
from train.hf.raw_rows import Piece, Scratch
from train.hf.repository import INDEX, write_json
from train.hf.safetensors_file import header
from train.hf.tensors import TensorSource, n_bytes, row_blocks
from train.models.precision import FORMATS, Precision

MAX_SHARD_BYTES = parse_bytes("5gb")
_WORKERS = 2
"""Number of threads: while one thread writes to the file, the other thread reads and casts the next rows."""
_COPY_BYTES = 1 << 23
_WRITE_BYTES = 1 << 16
"""Bytes per write call. For larger writes, ext4 uses larger folios, and writing takes up to eight times as long if the
machine's memory is fragmented, or if it belongs to a virtual machine and has not been used before."""
_scratch = Scratch()


def write_weights(
    source: TensorSource,
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    precision: Precision,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write the tensors, in the order of `shapes`, and the index. Files that already exist are kept."""
    shards = list(cut(shapes, precision, max_shard_bytes))
    total = sum(n_bytes(shape, precision) for shape in shapes.values())
    weight_map = {}
    with progress_bar("export", total, disable=None) as progress:
        for number, names in enumerate(shards, start=1):
            file = folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            weight_map |= dict.fromkeys(names, file.name)
            if file.exists():
                progress.update(sum(n_bytes(shapes[name], precision) for name in names))
                continue
            part = file.with_suffix(".part")
            write_file(source, part, {name: shapes[name] for name in names}, precision, progress)
            part.rename(file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / INDEX, index)


def cut(shapes: Mapping[str, tuple[int, ...]], precision: Precision, max_bytes: int) -> Iterator[list[str]]:
    """Yield the names of the tensors in each file, in order. A tensor larger than the maximum gets its own file."""
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        more = n_bytes(shape, precision)
        if names and size + more > max_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += more
    yield names


def write_file(
    source: TensorSource, path: Path, shapes: Mapping[str, tuple[int, ...]], precision: Precision, progress: tqdm
) -> None:
    """Write one safetensors file. Tensors that an earlier, killed call has written completely are kept."""
    begin = header(shapes, precision)
    # The file is opened without a buffer, because each write is large, and because os.sendfile would bypass a buffer.
    mode = "r+b" if path.exists() else "w+b"
    with path.open(mode, buffering=0) as stream, ThreadPoolExecutor(_WORKERS) as pool:
        there = stream.seek(0, 2)
        if there < len(begin):
            stream.seek(0)
            _write_all(stream, memoryview(begin))
        end = len(begin)
        for name, shape in shapes.items():
            end += n_bytes(shape, precision)
            if there < end:
                # A partly written tensor is written again from its beginning.
                stream.seek(end - n_bytes(shape, precision))
                _write_tensor(source, stream, pool, name, shape, precision, progress)
            else:
                progress.update(n_bytes(shape, precision))
        stream.truncate(end)


def _write_tensor(
    source: TensorSource,
    stream: FileIO,
    pool: ThreadPoolExecutor,
    name: str,
    shape: tuple[int, ...],
    precision: Precision,
    progress: tqdm,
) -> None:
    dtype = FORMATS[precision].torch_dtype
    pieces = source.pieces(name, dtype)
    if pieces is not None:
        for piece in pieces:
            _copy(piece, stream, progress)
        return

    def write(start: int, stop: int, before: Future[int] | None) -> int:
        rows, data = _scratch.take((stop - start, *shape[1:]), dtype)
        source.rows(name, start, stop, rows)
        # Blocks are written in order, so that the file size shows which tensors are complete.
        if before is not None:
            before.result()
        for first in range(0, len(data), _WRITE_BYTES):
            _write_all(stream, data[first : first + _WRITE_BYTES])
        return len(data)

    blocks: list[Future[int]] = []
    for start, stop in row_blocks(shape, dtype.itemsize):
        blocks.append(pool.submit(write, start, stop, blocks[-1] if blocks else None))
    try:
        for block in blocks:
            progress.update(block.result())
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise


def _copy(piece: Piece, stream: FileIO, progress: tqdm) -> None:
    """Copy from file to file in the kernel, without reading the data into this process."""
    done = 0
    with piece.path.open("rb", buffering=0) as file:
        while done < piece.length:
            count = os.sendfile(
                stream.fileno(), file.fileno(), piece.offset + done, min(piece.length - done, _COPY_BYTES)
            )
            if not count:
                raise ConfigError(f"{piece.path} is truncated: copy or download it again")
            done += count
            progress.update(count)


def _write_all(stream: FileIO, data: memoryview) -> None:
    while len(data):
        data = data[stream.write(data) :]
