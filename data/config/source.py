"""Configuration of a source of records."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from data.base.errors import ConfigError
from data.base.paths import STORES, path_defect
from data.config.sections import Defect, Section
from data.config.splits import parse_split
from data.config.values import PathText
from data.secrets.redaction import is_address

Paths = PathText | list[PathText]


def _local_folder(kwargs: "HFKwargs") -> Iterator[Defect]:
    yield from _not_addresses("data_dir", kwargs.data_dir)


def _local_files(kwargs: "HFKwargs") -> Iterator[Defect]:
    splits = kwargs.data_files if isinstance(kwargs.data_files, dict) else {"": kwargs.data_files}
    for split, files in splits.items():
        key = f"data_files.{split}" if split else "data_files"
        if (text := path_defect(files)) is not None:
            yield Defect(key, text)
        yield from _not_addresses(key, files)


def _not_addresses(key: str, value: str | list[str] | None) -> Iterator[Defect]:
    """Yields a defect for each data file that is specified by a URL of an unsupported scheme."""
    for path in [value] if isinstance(value, str) else value or []:
        if is_address(path) and path.partition("://")[0] not in STORES:
            schemes = " and ".join(f"{scheme}://" for scheme in STORES)
            yield Defect(
                key,
                f"has {path!r}, but data files are only read from folders and from object stores ({schemes}): download "
                "the file or mount its folder, and specify the local path (to read a dataset of the hub, set hf_name "
                "to its name; to read MDS shards from an address, set remote)",
            )


@dataclass(frozen=True, kw_only=True)
class HFKwargs(Section):
    """Arguments of `datasets.load_dataset` other than the name."""

    RULES = (_local_folder, _local_files)

    data_dir: PathText | None = None
    """A folder in a hub dataset, or a folder of files, local or in an object store."""
    data_files: str | list[str] | dict[str, str | list[str]] | None = None
    """File names or patterns, also in an object store (`s3://BUCKET/PATTERN`, `gs://BUCKET/PATTERN`). A mapping from
    names of splits to files is also possible; otherwise, all files belong to the split `train`."""
    name: PathText | None = None
    """The subset (configuration) of a hub dataset."""
    revision: PathText | None = None
    """Branch, tag or commit of a hub dataset."""
    streaming: bool = False
    """Read the files of a hub dataset over the network while rows are prepared, instead of first downloading them to
    the hub's cache. The rows are the same. Local files and files in an object store are always read without a copy."""


COLUMN_MAPPINGS = (("prompt", "response"), ("messages",), ("text",))
"""The valid sets of keys for a `preprocessing_fn` that is a mapping of columns."""
SOURCES = ("hf_name", "local", "text")
"""The keys that set the source. Exactly one of these keys is set, except that `remote` and `local` can be set
together."""


def mapping_defect(columns: Mapping[str, str]) -> str | None:
    """Return an error message if the set of keys of a `preprocessing_fn` mapping is not in COLUMN_MAPPINGS; otherwise
    return None. The message can be appended to the name of the key."""
    if tuple(sorted(columns)) in COLUMN_MAPPINGS:
        return None
    forms = " or ".join(f"{{{', '.join(f'{key}: COLUMN' for key in keys)}}}" for keys in COLUMN_MAPPINGS)
    return f"is {dict(columns)}, but a mapping must be {forms}"


MAKES_EXAMPLES = "converts rows to examples"
"""What a `preprocessing_fn` does."""


def standard_library_defect(function: str, purpose: str = MAKES_EXAMPLES) -> str | None:
    """Return an error message if a user's `module:function` is in Python's standard library; otherwise return None. The
    message can be appended to the name of the key. No function in the standard library does what `purpose` describes,
    but some functions would run the rows as commands."""
    module = function.partition(":")[0]
    if ":" not in function or not is_standard_library(module):
        return None
    return (
        f"is {function!r}, but {module} is a module of Python's standard library, which has no function that {purpose}"
        ": use your own module (if this is your own module, rename it)"
    )


def is_standard_library(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


def _preprocessing(source: "SourceConfig") -> Iterator[Defect]:
    if isinstance(source.preprocessing_fn, dict) and (text := mapping_defect(source.preprocessing_fn)):
        yield Defect("preprocessing_fn", text)
    if isinstance(source.preprocessing_fn, str) and (text := standard_library_defect(source.preprocessing_fn)):
        yield Defect("preprocessing_fn", text)


def _local_name(source: "SourceConfig") -> Iterator[Defect]:
    yield from _not_addresses("hf_name", source.hf_name)


def _local_text(source: "SourceConfig") -> Iterator[Defect]:
    yield from _not_addresses("text", source.text)


def _one_source(source: "SourceConfig") -> Iterator[Defect]:
    if len(given := source.sources()) > 1:
        yield Defect(given[1], f"is set together with {given[0]}, but only one of {', '.join(SOURCES)} may be set")


def _of_hf_name(source: "SourceConfig") -> Iterator[Defect]:
    if source.hf_name is not None:
        return
    for key, given in {"hf_kwargs": source.hf_kwargs != HFKwargs(), "safe_load": source.safe_load}.items():
        if given:
            yield Defect(key, "requires hf_name, which is not set")


def _split(source: "SourceConfig") -> Iterator[Defect]:
    split = source.split
    if split is None:
        return
    if source.hf_name is not None:
        try:
            parse_split(split)
        except ConfigError as error:
            yield Defect("split", error.text)
    elif "[" in split and (source.local is not None or source.remote is not None):
        yield Defect(
            "split",
            f"is {split!r}, but for MDS shards split is the name of a folder, and all samples in it are read: remove "
            f"{split[split.index('[') :]!r} (set choose to use fewer rows), or slice the data before writing the "
            "shards",
        )


@dataclass(frozen=True, kw_only=True)
class SourceConfig(Section):
    """A single source of records: a hub dataset or data files (`hf_name`), MDS shards (`local`, `remote`), or plain
    text files (`text`)."""

    RULES = (_preprocessing, _local_name, _local_text, _one_source, _of_hf_name, _split)

    hf_name: PathText | None = None
    """The name of a hub dataset; `json`, `csv` or `parquet` for the files in `hf_kwargs`; or the path of such a file,
    or of a folder that contains such files. A path can be in an object store, and can then be a pattern:
    `s3://BUCKET/FOLDER/*.jsonl.gz`, `gs://BUCKET/FOLDER`."""
    hf_kwargs: HFKwargs = field(default_factory=HFKwargs)
    safe_load: bool = False
    """Download only the csv, json, jsonl and parquet files of a hub dataset. Regardless of this setting, code of a hub
    dataset is never executed."""
    local: PathText | None = None
    """A folder of MDS shards. If `remote` is also set, shards are downloaded to this folder."""
    remote: PathText | None = None
    """The location of MDS shards that are downloaded: a folder, or an address that starts with `s3://`, `gs://` or
    `hf://`."""
    text: Paths | None = None
    """Plain text files for pretraining: file names, patterns, or folders, also in an object store. All `.txt` files in
    a folder are read. Each file is one document."""
    split: PathText | None = None
    """The split. `null` selects the split `train` of hub datasets and data files, and the folder itself for MDS. Hub
    datasets and data files also support slices and sums as in the `datasets` library: `train[:90%]`,
    `train[1000:2000]`, `train+validation`."""
    preprocessing_fn: str | dict[str, str] | None = None
    """How rows are converted to examples: the name of a registered function, `module:function` for your own function,
    or the columns to use: `{prompt: column, response: column}`, `{messages: column}` or `{text: column}`. `null` means
    that the rows are already examples."""

    def sources(self) -> list[str]:
        """Return the keys of the sources that are set. The key of MDS shards is `local`, or `remote` if `local` is not
        set."""
        mds = "local" if self.local is not None else "remote"
        kinds = {"hf_name": self.hf_name, mds: self.local or self.remote, "text": self.text}
        return [key for key, value in kinds.items() if value is not None]
