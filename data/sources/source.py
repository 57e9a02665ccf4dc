"""Where records come from: whatever a config names becomes chunks, and a chunk becomes `(place, record)` pairs.

What a row holds is looked at in data/examples/examples.py.
"""

from collections.abc import Iterator
from typing import Any, Protocol

from data.base.errors import ConfigError, setting
from data.config.dataset import DatasetConfig
from data.sources.input_files import InputFiles


class Chunk(Protocol):
    """A part of a source, about a megabyte of it: made in the parent, sent to a worker. Can be pickled."""

    @property
    def size(self) -> int:
        """In the source's unit of progress."""
        ...


class Source(Protocol):
    """One source, opened. Opening looks whether it is there and no more; the fingerprint reads what is new of it."""

    unit: str
    """Of progress: `B` or `rows`."""

    @property
    def total(self) -> int:
        """Units in the whole source; 0 where it is not known."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of the content in its order; where it lies does not matter."""
        ...

    @property
    def inputs(self) -> list[dict[str, Any]]:
        """What the manifest says of the files: path or name, bytes or rows, hash or revision. Plain JSON values."""
        ...

    def chunks(self) -> Iterator[Chunk]:
        """The same chunks each time. Raises DataError when the content is not what the fingerprint was taken of."""
        ...

    def rows(self, chunk: Any) -> Iterator[tuple[str, Any]]:
        """`(place, row)` of a chunk; a row that cannot be read is a Problem. Runs in workers, which were forked."""
        ...


def open_source(config: DatasetConfig, *, rehash: bool = False) -> Source:
    """The config's one source: which files there are, and whether they can be what they should be.

    With rehash files are read for the fingerprint that have not changed since they were. Raises ConfigError for what is
    not there, DataError for a file that cannot be read, is empty or is not UTF-8, or whose header is wrong. Of a hub
    dataset only the list of its files and its card are asked for.
    """
    record = InputFiles(config.cache_dir, rehash=rehash)
    if config.text is not None:
        from data.sources.files import FileSource
        from data.sources.find import find_text

        return FileSource(find_text(config), "text", record)
    if config.hf_name is not None:
        return _open_hf(config, config.hf_name, record)
    from data.sources.mds import MdsSource, open_mds

    return MdsSource(config, open_mds(config), record)


def _open_hf(config: DatasetConfig, name: str, record: InputFiles) -> Source:
    from data.sources.files import FileSource
    from data.sources.find import find, is_path
    from data.sources.formats.names import FORMATS

    if name not in FORMATS and not is_path(name):
        return _open_hub(config, name, record)
    format, parts = find(config)
    return FileSource(parts, format, record)


def _open_hub(config: DatasetConfig, name: str, record: InputFiles) -> Source:
    from data.sources.formats.names import FORMATS
    from data.sources.hub import open_hub

    if name == "text":
        raise ConfigError(
            f"is 'text', but plain text files are named under `{setting('text')}`, in place of {setting('hf_name')}",
            key="hf_name",
        )
    for format, suffixes in FORMATS.items():
        if f".{name}" in suffixes:
            raise ConfigError(
                f"is {name!r}, but such files are read with `{setting('hf_name', format)}`", key="hf_name"
            )
    return open_hub(config, name, record)
