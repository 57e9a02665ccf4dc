"""Read a whole source, for tests of its content."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from data.base.errors import DataError
from data.config.dataset import DatasetConfig
from data.config.source import HFKwargs
from data.sources.source import open_source


def of_file(path, format=None) -> DatasetConfig:
    """Return the source in the given format, or in the format that its name implies."""
    cache_dir = str(Path(path).parent / ".cache")
    if format is None:
        return DatasetConfig(hf_name=str(path), max_seq_len=8, cache_dir=cache_dir)
    return DatasetConfig(hf_name=format, hf_kwargs=HFKwargs(data_files=str(path)), max_seq_len=8, cache_dir=cache_dir)


def of_folder(folder, split=None, **kwargs) -> DatasetConfig:
    settings = {"split": split, "hf_kwargs": HFKwargs(**kwargs), "cache_dir": str(Path(folder) / ".cache")}
    return DatasetConfig(hf_name=str(folder), max_seq_len=8, **settings)


def chunks_of(source, n_bytes: int = 1 << 40) -> Iterator:
    """Yield the chunks of all slices of about n_bytes bytes, and then check the source."""
    files = set()
    for slice in source.slices(n_bytes):
        for chunk in source.chunks(slice):
            files.add(getattr(chunk, "file", 0))
            yield chunk
    source.check_done(files)


def read(source, n_bytes: int = 1 << 40) -> list:
    """Return all pairs (place, row), with the place as text."""
    return [(str(place), row) for chunk in chunks_of(source, n_bytes) for place, row in source.rows(chunk)]


def values(pairs) -> list:
    return [row for _, row in pairs]


def rows_of(path, content: bytes) -> list:
    path.write_bytes(content)
    return read(open_source(of_file(path)))


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read(open_source(of_file(path)))
    return str(error.value)
