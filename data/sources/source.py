"""Open the source that a config specifies. A source yields chunks, and a chunk yields `(place, record)` pairs; the
place is the location of the record, for messages.

The content of records is checked in data/examples/examples.py.
"""

from collections.abc import Iterator
from typing import Any, Protocol

from data.base.errors import ConfigError, setting
from data.config.dataset import DatasetConfig
from data.sources.input_files import InputFiles


class Chunk(Protocol):
    """A part of a source, about a megabyte in size. Chunks are made in the parent process and sent to workers, so they
    can be pickled."""

    @property
    def size(self) -> int:
        """Size in the unit of the source."""
        ...


class Source(Protocol):
    """One open source. Opening a source only checks that the data exists. New files are read when the fingerprint is
    computed."""

    unit: str
    """The unit in which progress is counted: `B` or `rows`."""

    @property
    def total(self) -> int:
        """Size of the whole source in this unit; 0 if unknown."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of the content and its order. The hash does not depend on the location of the data."""
        ...

    @property
    def inputs(self) -> list[dict[str, Any]]:
        """The manifest's entries about the input files, as plain JSON values: path or name, bytes or rows, hash or
        revision."""
        ...

    def chunks(self) -> Iterator[Chunk]:
        """The chunks, which are the same in each call. Raises DataError if the content has changed since the
        fingerprint was computed."""
        ...

    def rows(self, chunk: Any) -> Iterator[tuple[str, Any]]:
        """`(place, row)` pairs of a chunk. A row that cannot be read is a Problem. Called in forked workers."""
        ...


def open_source(config: DatasetConfig, *, rehash: bool = False) -> Source:
    """Open the config's single source: find its files, and check that their formats are supported.

    With `rehash`, files are read again for the fingerprint even if they seem unchanged. Raises ConfigError for data
    that does not exist, and DataError for a file that cannot be read, is empty, is not UTF-8 or has an invalid header.
    For a hub dataset, only the list of its files and its card are requested.
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
            f"is 'text', but plain text files are specified in `{setting('text')}` instead of {setting('hf_name')}",
            key="hf_name",
        )
    for format, suffixes in FORMATS.items():
        if f".{name}" in suffixes:
            raise ConfigError(
                f"is {name!r}, but the {setting('hf_name')} for these files is `{setting('hf_name', format)}`",
                key="hf_name",
            )
    return open_hub(config, name, record)
