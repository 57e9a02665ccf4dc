"""Open the source that a config specifies. A source is cut into slices, which are prepared independently of each other.
A slice yields chunks, and a chunk yields `(place, record)` pairs; the place is the location of the record.

The content of records is checked in data/examples/examples.py.
"""

from collections.abc import Iterator
from typing import Any, Protocol

from data.base.errors import ConfigError, setting
from data.base.problems import Place
from data.config.dataset import DatasetConfig
from data.sources.input_files import InputFiles
from data.sources.slices import Slice


class Chunk(Protocol):
    """A part of a slice, about a megabyte in size. Chunks can be pickled, because they may be sent to workers."""

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
    def is_local_only(self) -> bool:
        """Whether slices must be prepared in the process that opened the source, or in its child processes."""
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

    def slices(self, n_bytes: int) -> list[Slice]:
        """The slices, each with about `n_bytes` bytes of input. A file that can only be read from its start, such as a
        compressed file, is not cut. Slices are the same in each call and on each machine, and are computed without
        reading the content."""
        ...

    def chunks(self, slice: Slice) -> Iterator[Chunk]:
        """The chunks of a slice, which are the same in each call. Raises DataError if the content has changed since
        the fingerprint was computed. Called in workers."""
        ...

    def rows(self, chunk: Any) -> Iterator[tuple[Place, Any]]:
        """`(place, row)` pairs of a chunk. A row that cannot be read is a Problem. Called in workers."""
        ...

    def check_visible(self) -> None:
        """Raises DataError if this machine does not see the input files as they were when the fingerprint was computed.
        Called on other machines before slices are read there. Of many files, only some are checked, because each file
        is checked when it is read."""
        ...

    def check_done(self, files: set[int]) -> None:
        """Called when all slices were read. `files` are the indices of the files in which rows were found. Raises
        DataError if a file has changed since the fingerprint was computed, or if no rows were found."""
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
