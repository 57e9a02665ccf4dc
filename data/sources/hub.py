"""A dataset on the Hugging Face hub. One commit is downloaded into the hub's cache, so that the dataset can also be
used offline, or is read over the network."""

import glob
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import xxhash

from data.base.errors import ConfigError, DataError, setting
from data.base.problems import Place, listed
from data.config.dataset import DatasetConfig
from data.hub.client import first_line, quiet
from data.sources.files import FileSource, read_rows
from data.sources.find import Part
from data.sources.formats.content import CHUNK_ROWS, FileChunk
from data.sources.formats.names import DATA_SUFFIXES, named_format
from data.sources.formats.parquet import arrow_chunk
from data.sources.hub_choice import Chosen, choose
from data.sources.hub_commit import Commit, find_commit, record_of
from data.sources.input_files import InputFiles
from data.sources.remote.hub_files import HubFile
from data.sources.remote.remote_file import InputPath
from data.sources.slices import Piece, Slice

if TYPE_CHECKING:
    import pyarrow as pa

_DOWNLOADS = 8
"""Number of parallel downloads."""


def open_hub(config: DatasetConfig, name: str, record: InputFiles) -> "HubSource":
    """Request the commit, its list of files and the dataset card. No data is downloaded yet.

    Raises ConfigError if the dataset, revision, subset or split does not exist, if access is denied, if the dataset is
    loaded by code, or if there is no network and the dataset is not in the hub's cache.
    """
    commit = find_commit(config, name)
    chosen = choose(config, commit)
    others = [file for file in chosen.files if named_format(file) is None]
    if config.safe_load and others:
        raise ConfigError(
            f"is true, but not all files of {name!r} end in {', '.join(DATA_SUFFIXES)} ({listed(others, 5)}): "
            f"specify the files to read in {setting('hf_kwargs.data_files')}, or set {setting('safe_load', False)}",
            key="safe_load",
        )
    if config.hf_kwargs.streaming and chosen.format is None:
        raise ConfigError(
            f"is true, but only the `datasets` library can read the files of {name!r} ({listed(chosen.files, 5)}): "
            "remove streaming",
            key="hf_kwargs.streaming",
        )
    return HubSource(config, commit, chosen, record)


class HubSource:
    """The source for splits of a commit. Files are downloaded when slices() is called, unless they are streamed."""

    unit = "B"

    def __init__(self, config: DatasetConfig, commit: Commit, chosen: Chosen, record: InputFiles) -> None:
        self._config, self._commit, self._chosen, self._record = config, commit, chosen, record
        # The size of a slice is not known before the download.
        is_known = chosen.format is not None and not chosen.slices
        self.total = sum(commit.files[file] for file in chosen.files) if is_known else 0

    @property
    def is_local_only(self) -> bool:
        """The `datasets` library converts files in its own cache, in one process."""
        return self._chosen.format is None

    @property
    def fingerprint(self) -> str:
        """Hash of the commit and the file names. The content of a commit never changes, so no download is needed."""
        chosen = self._chosen
        parts: list[Any] = [self._commit.sha, chosen.format, chosen.files]
        if chosen.slices:
            parts.append([[chosen.splits[part.name], part.start, part.end, part.percent] for part in chosen.parts])
        return xxhash.xxh3_128_hexdigest(json.dumps(parts).encode())

    @property
    def inputs(self) -> list[dict[str, Any]]:
        of_all = {"dataset": self._commit.dataset, "revision": self._commit.sha}
        return [{**of_all, "path": file, "bytes": self._commit.files[file]} for file in self._chosen.files]

    def slices(self, n_bytes: int) -> list[Slice]:
        if self._files is None:
            # Only the `datasets` library can read these files, in one process.
            _download(self._config, self._commit, self._chosen.files)
            return [Slice(number=0, pieces=(Piece(file=0, size=self.total),))]
        return self._files.slices(n_bytes)

    def chunks(self, slice: Slice) -> Iterator[FileChunk]:
        if self._files is None:
            return _chunks_of_builder(self._config, self._commit, self._chosen)
        return self._files.chunks(slice)

    def check_visible(self) -> None:
        if self._files is not None:
            self._files.check_visible()

    def check_done(self, files: set[int]) -> None:
        if self._files is not None:
            self._files.check_done(files)

    @cached_property
    def _files(self) -> FileSource | None:
        """The files, downloaded or remote; None if only the `datasets` library can read them."""
        if self._chosen.format is None:
            return None
        paths = self._paths()
        by_name = dict(zip(self._chosen.files, paths, strict=True))
        names: dict[InputPath, str] = {path: f"{self._commit.dataset}/{file}" for file, path in by_name.items()}
        parts = [
            Part(tuple(by_name[file] for file in self._chosen.splits[part.name]), part if part.is_slice else None)
            for part in self._chosen.parts
        ]
        return FileSource(parts, self._chosen.format, self._record, names, order=paths)

    def _paths(self) -> list[InputPath]:
        commit, files = self._commit, self._chosen.files
        if self._config.hf_kwargs.streaming and commit.offline is None:
            return [HubFile.of(commit.dataset, commit.sha, file, commit.files[file]) for file in files]
        return list[InputPath](_download(self._config, commit, files))

    def rows(self, chunk: FileChunk) -> Iterator[tuple[Place, Any]]:
        return read_rows(chunk)


def _download(config: DatasetConfig, commit: Commit, files: list[str]) -> list[Path]:
    """The paths of the files in the hub's cache. Files that are already cached are not requested again."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
    from requests import RequestException

    if commit.offline is None:
        _record(config, commit)
    of_commit = {"repo_type": "dataset", "revision": commit.sha, "local_files_only": commit.offline is not None}
    with ThreadPoolExecutor(_DOWNLOADS) as pool:
        tasks = [pool.submit(hf_hub_download, commit.dataset, file, **of_commit) for file in files]
        try:
            return [Path(task.result()) for task in tasks]
        except (EntryNotFoundError, HfHubHTTPError, RequestException) as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if commit.offline is not None:
                missing = next(
                    file for file, task in zip(files, tasks, strict=True) if task.done() and task.exception()
                )
                raise DataError(
                    f"{commit.dataset}/{missing} is not in the hub's cache, and {commit.offline}: run once with a "
                    "network connection to complete the download"
                ) from None
            raise DataError(
                f"the download of {commit.dataset} was interrupted ({first_line(error)}): run again to resume it"
            ) from None


def _record(config: DatasetConfig, commit: Commit) -> None:
    """Save the list of the commit's files, which is needed when the commit is opened offline."""
    record = record_of(config, commit.dataset, commit.sha)
    record.parent.mkdir(parents=True, exist_ok=True)
    unfinished = record.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(commit.files))
    unfinished.rename(record)


def _chunks_of_builder(config: DatasetConfig, commit: Commit, chosen: Chosen) -> Iterator[FileChunk]:
    """Chunks of files that only the `datasets` library can read. The library converts these files to Arrow tables in
    its own cache."""
    import datasets
    from datasets.exceptions import DatasetsError

    split = config.split or "train"
    data_files = {name: [glob.escape(file) for file in files] for name, files in chosen.splits.items()}
    try:
        with quiet():
            builder = datasets.load_dataset_builder(str(commit.card), name=config.hf_kwargs.name, data_files=data_files)
        builder.download_and_prepare()
        table = builder.as_dataset(split=split)
    except (ValueError, DatasetsError) as error:
        why = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise DataError(
            f"{commit.dataset}: the `datasets` library cannot read this dataset ({first_line(why)})"
        ) from None
    assert isinstance(table, datasets.Dataset)
    name, row = f"{commit.dataset}[{split}]", 1
    for part in table.with_format("arrow").iter(CHUNK_ROWS):
        for batch in cast("pa.Table", part).combine_chunks().to_batches():
            yield arrow_chunk(name, batch, row, batch.nbytes)
            row += batch.num_rows
    if row == 1:
        raise DataError(f"{name}: the dataset has no rows")
