"""A dataset of the Hugging Face hub: one commit of it, downloaded into the hub's cache, where it is found offline."""

import contextlib
import glob
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import xxhash

from data.base.errors import ConfigError, DataError
from data.base.problems import listed
from data.config.dataset import DatasetConfig, HFKwargs
from data.config.splits import SplitPart, parse_split
from data.hub.client import first_line, quiet
from data.sources.files import FileSource, read_rows
from data.sources.find import Part
from data.sources.folders import say_unread
from data.sources.formats.content import CHUNK_ROWS, FileChunk
from data.sources.formats.names import DATA_SUFFIXES, looks_like_data, named_format, suffix_of
from data.sources.formats.parquet import arrow_chunk
from data.sources.hub_commit import CARD, Commit, find_commit, record_of

if TYPE_CHECKING:
    import pyarrow as pa

_DOWNLOADS = 8


@dataclass(frozen=True)
class Chosen:
    """The files of the splits that are asked for, as the `datasets` library chooses them."""

    splits: dict[str, list[str]]
    parts: list[SplitPart]
    """What of them is read, in this order."""
    format: str | None
    """A key of FORMATS; None for what only the library can read."""

    @property
    def files(self) -> list[str]:
        return list(dict.fromkeys(file for part in self.parts for file in self.splits[part.name]))

    @property
    def slices(self) -> list[SplitPart]:
        return [part for part in self.parts if part.is_slice]


def open_hub(config: DatasetConfig, name: str) -> "HubSource":
    """Asks for the commit, the list of its files and its card; none of the data is downloaded.

    Raises ConfigError for a dataset, revision, subset or split that is not there, one that may not be read, one that
    is all code, and without a network when the dataset is not in the hub's cache.
    """
    commit = find_commit(config, name)
    chosen = _choose(config, commit)
    others = [file for file in chosen.files if named_format(file) is None]
    if config.safe_load and others:
        raise ConfigError(
            f"safe_load is true, but not all files of {name!r} are {', '.join(DATA_SUFFIXES)} ({listed(others, 5)}): "
            "name those that are in hf_kwargs.data_files, or set safe_load: false"
        )
    return HubSource(config, commit, chosen)


class HubSource:
    """A split of a commit. Its files are downloaded when chunks() is first asked for."""

    unit = "B"

    def __init__(self, config: DatasetConfig, commit: Commit, chosen: Chosen) -> None:
        self._config, self._commit, self._chosen = config, commit, chosen
        # How many of the bytes a slice has is known once they are here.
        is_known = chosen.format is not None and not chosen.slices
        self.total = sum(commit.files[file] for file in chosen.files) if is_known else 0

    @property
    def fingerprint(self) -> str:
        """Of the commit and the files' names: a commit's content does not change, so nothing need be downloaded."""
        chosen = self._chosen
        parts: list[Any] = [self._commit.sha, chosen.format, chosen.files]
        if chosen.slices:
            parts.append([[chosen.splits[part.name], part.start, part.end, part.percent] for part in chosen.parts])
        return xxhash.xxh3_128_hexdigest(json.dumps(parts).encode())

    @property
    def inputs(self) -> list[dict[str, Any]]:
        of_all = {"dataset": self._commit.dataset, "revision": self._commit.sha}
        return [{**of_all, "path": file, "bytes": self._commit.files[file]} for file in self._chosen.files]

    def chunks(self) -> Iterator[FileChunk]:
        paths = _download(self._config, self._commit, self._chosen.files)
        if self._chosen.format is None:
            yield from _chunks_of_builder(self._config, self._commit, self._chosen)
            return
        by_name = dict(zip(self._chosen.files, paths, strict=True))
        names = {path: f"{self._commit.dataset}/{file}" for file, path in by_name.items()}
        parts = [
            Part(tuple(by_name[file] for file in self._chosen.splits[part.name]), part if part.is_slice else None)
            for part in self._chosen.parts
        ]
        yield from FileSource(parts, self._chosen.format, names).chunks()

    def rows(self, chunk: FileChunk) -> Iterator[tuple[str, Any]]:
        return read_rows(chunk)


def _choose(config: DatasetConfig, commit: Commit) -> Chosen:
    """The library finds subsets and splits in a folder by the card and by files' names, so it is given those alone."""
    kwargs = config.hf_kwargs
    with TemporaryDirectory() as folder:
        root = Path(folder) / commit.dataset.rpartition("/")[2]
        builder = _builder(config, commit, root)
        splits: dict[str, list[str]] = {
            # The library names a file once for each pattern that it matches.
            str(split): [Path(file).relative_to(root.resolve()).as_posix() for file in dict.fromkeys(files)]
            for split, files in (builder.config.data_files or {}).items()
        }
    parts = parse_split(config.split or "train")
    if unknown := [part.name for part in parts if part.name not in splits]:
        at = f" of subset {kwargs.name!r}" if kwargs.name is not None else ""
        raise ConfigError(
            f"split is {unknown[0]!r}, but the splits{at} of {commit.dataset!r} are {', '.join(splits)}"
            f"{_only_cached(commit)}"
        )
    if kwargs == HFKwargs(revision=kwargs.revision) and set(builder.builder_configs) <= {"default"}:
        _name_unread(commit, {file for files in splits.values() for file in files})
    chosen = {part.name: splits[part.name] for part in parts}
    return Chosen(chosen, parts, _format([file for files in chosen.values() for file in files], builder.config))


def _builder(config: DatasetConfig, commit: Commit, root: Path) -> Any:
    """The library's, of a folder made at `root` that has the card and empty files with the names of the others."""
    import datasets
    from datasets.exceptions import DatasetsError

    for file in commit.files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for file in CARD:
        if (commit.card / file).is_file():
            (root / file).write_bytes((commit.card / file).read_bytes())
    kwargs = config.hf_kwargs
    try:
        with quiet():
            return datasets.load_dataset_builder(
                str(root), name=kwargs.name, data_dir=kwargs.data_dir, data_files=kwargs.data_files
            )
    except (ValueError, FileNotFoundError, RuntimeError, DatasetsError) as error:
        raise ConfigError(_why_not_chosen(config, commit, root, error)) from None


def _name_unread(commit: Commit, read: set[str]) -> None:
    """Of a dataset without subsets: what is in none of its splits, such as files with a suffix in capital letters."""
    unread = [file for file in sorted(commit.files) if file not in read and looks_like_data(PurePath(file))]
    hidden = {file for file in unread if any(part.startswith(".") for part in PurePath(file).parts)}
    say_unread(f"hf_name is {commit.dataset!r}", [file for file in unread if file not in hidden])


def _format(files: list[str], builder_config: Any) -> str | None:
    """The format that our readers are to read the files as; None when they would read them otherwise than is meant."""
    kinds = {named_format(file) for file in files}
    if len(kinds) != 1:
        return None
    (kind,) = kinds
    delimiter = getattr(builder_config, "delimiter", None) or getattr(builder_config, "sep", ",")
    if kind == "csv" and any(delimiter != ("\t" if suffix_of(file) == ".tsv" else ",") for file in files):
        return None
    return None if kind == "json" and getattr(builder_config, "field", None) is not None else kind


def _why_not_chosen(config: DatasetConfig, commit: Commit, root: Path, error: Exception) -> str:
    import datasets

    kwargs, name = config.hf_kwargs, commit.dataset
    if isinstance(error, FileNotFoundError) and (kwargs.data_dir is not None or kwargs.data_files is not None):
        key = "data_files" if kwargs.data_files is not None else "data_dir"
        return (
            f"hf_kwargs.{key} is {getattr(kwargs, key)!r}, but {name!r} has no such data (it has {_files_of(commit)})"
            f"{_only_cached(commit)}"
        )
    subsets: list[str] = []
    with contextlib.suppress(Exception), quiet():
        subsets = list(datasets.get_dataset_config_names(str(root)))
    if subsets and kwargs.name not in subsets:
        return f"hf_kwargs.name is {kwargs.name!r}, but {name!r} has the subsets {', '.join(subsets)}: choose one"
    nothing = isinstance(error, RuntimeError | FileNotFoundError)  # a script stands in the way, or there is no data
    if nothing and any(file.endswith(".py") and "/" not in file for file in commit.files):
        return (
            f"hf_name is {name!r}, which is read by code of its own, and such code is never run: try "
            "hf_kwargs.revision: refs/convert/parquet, where the hub keeps a copy as Parquet"
        )
    return (
        f"hf_name is {name!r}, but no data is found in it ({first_line(error)}; it has {_files_of(commit)}): name "
        "the files in hf_kwargs.data_files"
    )


def _download(config: DatasetConfig, commit: Commit, files: list[str]) -> list[Path]:
    """The files in the hub's cache. Those that are there already are not asked for."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
    from requests import RequestException

    def fetch(file: str) -> Path:
        return Path(
            hf_hub_download(
                commit.dataset,
                file,
                repo_type="dataset",
                revision=commit.sha,
                local_files_only=commit.offline is not None,
            )
        )

    if commit.offline is None:
        record = record_of(config, commit.dataset, commit.sha)
        record.parent.mkdir(parents=True, exist_ok=True)
        unfinished = record.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(commit.files))
        unfinished.rename(record)
    with ThreadPoolExecutor(_DOWNLOADS) as pool:
        tasks = [pool.submit(fetch, file) for file in files]
        try:
            return [task.result() for task in tasks]
        except (EntryNotFoundError, HfHubHTTPError, RequestException) as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if commit.offline is not None:
                missing = next(
                    file for file, task in zip(files, tasks, strict=True) if task.done() and task.exception()
                )
                raise DataError(
                    f"{commit.dataset}/{missing} is not in the hub's cache, and {commit.offline}: start once where "
                    "there is a network, which completes the download"
                ) from None
            raise DataError(
                f"the download of {commit.dataset} stopped ({first_line(error)}): start again, and it goes on"
            ) from None


def _chunks_of_builder(config: DatasetConfig, commit: Commit, chosen: Chosen) -> Iterator[FileChunk]:
    """For files that only the `datasets` library reads: it makes Arrow tables of them, in its own cache."""
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
        raise DataError(f"{commit.dataset}: the `datasets` library cannot read it ({first_line(why)})") from None
    assert isinstance(table, datasets.Dataset)
    name, row = f"{commit.dataset}[{split}]", 1
    for part in table.with_format("arrow").iter(CHUNK_ROWS):
        for batch in cast("pa.Table", part).combine_chunks().to_batches():
            yield arrow_chunk(name, batch, row, batch.nbytes)
            row += batch.num_rows
    if row == 1:
        raise DataError(f"{name}: there are no rows in it")


def _only_cached(commit: Commit) -> str:
    return f" (of what is in the hub's cache; {commit.offline})" if commit.offline is not None else ""


def _files_of(commit: Commit) -> str:
    return listed(list(commit.files), 5) or "no files"
