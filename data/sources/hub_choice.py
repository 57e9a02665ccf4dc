"""Choose the files to read from a commit of a hub dataset. The choice is the same as that of the `datasets` library."""

import contextlib
from dataclasses import dataclass
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Any

from data.base.errors import ConfigError, setting
from data.base.problems import listed
from data.config.dataset import DatasetConfig
from data.config.source import HFKwargs
from data.config.splits import SplitPart, parse_split
from data.hub.client import first_line, quiet
from data.sources.folders import notice_unread
from data.sources.formats.names import looks_like_data, named_format, suffix_of
from data.sources.hub_commit import CARD, Commit


@dataclass(frozen=True)
class Chosen:
    """The files of the requested splits, as chosen by the `datasets` library."""

    splits: dict[str, list[str]]
    parts: list[SplitPart]
    """The splits and slices to read, in this order."""
    format: str | None
    """A key of FORMATS; None for files that only the `datasets` library can read."""

    @property
    def files(self) -> list[str]:
        return list(dict.fromkeys(file for part in self.parts for file in self.splits[part.name]))

    @property
    def slices(self) -> list[SplitPart]:
        return [part for part in self.parts if part.is_slice]


def choose(config: DatasetConfig, commit: Commit) -> Chosen:
    """Choose the files of the splits with the `datasets` library. For this, the library needs only the dataset card and
    the file names, so it is called with a folder that contains the card and empty files."""
    kwargs = config.hf_kwargs
    with TemporaryDirectory() as folder:
        root = Path(folder) / commit.dataset.rpartition("/")[2]
        builder = _builder(config, commit, root)
        splits: dict[str, list[str]] = {
            # The library lists a file once for each pattern that the file matches.
            str(split): [Path(file).relative_to(root.resolve()).as_posix() for file in dict.fromkeys(files)]
            for split, files in (builder.config.data_files or {}).items()
        }
    parts = parse_split(config.split or "train")
    if unknown := [part.name for part in parts if part.name not in splits]:
        at = f" of subset {kwargs.name!r}" if kwargs.name is not None else ""
        raise ConfigError(
            f"is {unknown[0]!r}, but the splits{at} of {commit.dataset!r} are {', '.join(splits)}"
            f"{_only_cached(commit)}",
            key="split",
        )
    if kwargs == HFKwargs(revision=kwargs.revision, streaming=kwargs.streaming) and set(builder.builder_configs) <= {
        "default"
    }:
        _notice_unread(commit, {file for files in splits.values() for file in files})
    chosen = {part.name: splits[part.name] for part in parts}
    return Chosen(chosen, parts, _format([file for files in chosen.values() for file in files], builder.config))


def _builder(config: DatasetConfig, commit: Commit, root: Path) -> Any:
    """The library's builder for a folder that contains the dataset card and an empty file in place of each other file.
    The folder is created at `root`."""
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
        raise _why_not_chosen(config, commit, root, error) from None


def _notice_unread(commit: Commit, read: set[str]) -> None:
    """Log the files that do not belong to any split, such as files with an upper-case suffix. Only used for datasets
    without subsets."""
    unread = [file for file in sorted(commit.files) if file not in read and looks_like_data(PurePath(file))]
    hidden = {file for file in unread if any(part.startswith(".") for part in PurePath(file).parts)}
    notice_unread(f"{setting('hf_name')} is {commit.dataset!r}", [file for file in unread if file not in hidden])


def _format(files: list[str], builder_config: Any) -> str | None:
    """The format for the readers in data/sources/formats; None if these readers would not read the files in the same
    way as the library."""
    kinds = {named_format(file) for file in files}
    if len(kinds) != 1:
        return None
    (kind,) = kinds
    delimiter = getattr(builder_config, "delimiter", None) or getattr(builder_config, "sep", ",")
    if kind == "csv" and any(delimiter != ("\t" if suffix_of(file) == ".tsv" else ",") for file in files):
        return None
    return None if kind == "json" and getattr(builder_config, "field", None) is not None else kind


def _why_not_chosen(config: DatasetConfig, commit: Commit, root: Path, error: Exception) -> ConfigError:
    import datasets

    kwargs, name = config.hf_kwargs, commit.dataset
    if isinstance(error, FileNotFoundError) and (kwargs.data_dir is not None or kwargs.data_files is not None):
        key = "data_files" if kwargs.data_files is not None else "data_dir"
        return ConfigError(
            f"is {getattr(kwargs, key)!r}, but {name!r} has no such data (its files: {_files_of(commit)})"
            f"{_only_cached(commit)}",
            key=f"hf_kwargs.{key}",
        )
    subsets: list[str] = []
    with contextlib.suppress(Exception), quiet():
        subsets = list(datasets.get_dataset_config_names(str(root)))
    if subsets and kwargs.name not in subsets:
        return ConfigError(
            f"is {kwargs.name!r}, but the subsets of {name!r} are {', '.join(subsets)}: choose one of these subsets",
            key="hf_kwargs.name",
        )
    nothing = isinstance(error, RuntimeError | FileNotFoundError)  # the dataset has a loading script, or no data
    if nothing and any(file.endswith(".py") and "/" not in file for file in commit.files):
        return ConfigError(
            f"is {name!r}, which is loaded by its own script, but scripts of datasets are never run: try "
            f"{setting('hf_kwargs.revision', 'refs/convert/parquet')}, where the hub provides a copy in Parquet format",
            key="hf_name",
        )
    return ConfigError(
        f"is {name!r}, but it contains no data ({first_line(error)}; its files: {_files_of(commit)}): specify "
        f"the files in {setting('hf_kwargs.data_files')}",
        key="hf_name",
    )


def _only_cached(commit: Commit) -> str:
    return f" (only the hub's cache was searched: {commit.offline})" if commit.offline is not None else ""


def _files_of(commit: Commit) -> str:
    return listed(list(commit.files), 5) or "no files"
