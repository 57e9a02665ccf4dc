"""Configuration of a dataset and its streams."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Literal

from data.base.errors import ConfigError
from data.base.paths import STORES, label_defect, path_defect
from data.base.redaction import is_address
from data.config.sections import Defect, Section, each
from data.config.splits import parse_split
from data.config.values import Count, Form, NotNegative, PathText, Positive, Range, Size

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
AMOUNTS = ("proportion", "repeat", "choose")
"""The keys that set how many rows are drawn from a stream. At most one of these keys is set."""


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


def _amount(stream: "StreamConfig") -> Iterator[Defect]:
    if len(amounts := stream.amounts()) > 1:
        yield Defect(amounts[1], f"is set together with {amounts[0]}, but only one of them may be set")


def _preprocessing(stream: "StreamConfig") -> Iterator[Defect]:
    if isinstance(stream.preprocessing_fn, dict) and (text := mapping_defect(stream.preprocessing_fn)):
        yield Defect("preprocessing_fn", text)
    if isinstance(stream.preprocessing_fn, str) and (text := standard_library_defect(stream.preprocessing_fn)):
        yield Defect("preprocessing_fn", text)


def _local_name(stream: "StreamConfig") -> Iterator[Defect]:
    yield from _not_addresses("hf_name", stream.hf_name)


def _local_text(stream: "StreamConfig") -> Iterator[Defect]:
    yield from _not_addresses("text", stream.text)


def _one_source(stream: "StreamConfig") -> Iterator[Defect]:
    if len(given := stream.sources()) > 1:
        yield Defect(given[1], f"is set together with {given[0]}, but only one of {', '.join(SOURCES)} may be set")


def _of_hf_name(stream: "StreamConfig") -> Iterator[Defect]:
    if stream.hf_name is not None:
        return
    for key, given in {"hf_kwargs": stream.hf_kwargs != HFKwargs(), "safe_load": stream.safe_load}.items():
        if given:
            yield Defect(key, "requires hf_name, which is not set")


def _split(stream: "StreamConfig") -> Iterator[Defect]:
    split = stream.split
    if split is None:
        return
    if stream.hf_name is not None:
        try:
            parse_split(split)
        except ConfigError as error:
            yield Defect("split", error.text)
    elif "[" in split and (stream.local is not None or stream.remote is not None):
        yield Defect(
            "split",
            f"is {split!r}, but for MDS shards split is the name of a folder, and all samples in it are read: remove "
            f"{split[split.index('[') :]!r} (set choose to use fewer rows), or slice the data before writing the "
            "shards",
        )


@dataclass(frozen=True, kw_only=True)
class StreamConfig(Section):
    """A single source of rows: a hub dataset or data files (`hf_name`), MDS shards (`local`, `remote`), or plain
    text files (`text`)."""

    RULES = (_amount, _preprocessing, _local_name, _local_text, _one_source, _of_hf_name, _split)

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

    proportion: NotNegative | None = None
    """Relative weight of this stream. The stream's share of the run's tokens is this value divided by the sum of the
    values of all streams."""
    repeat: Positive | None = None
    """Alternative to `proportion`: how many times each row of this stream occurs in one epoch of the mixture
    (default: 1)."""
    choose: Count | None = None
    """Alternative to `proportion`: the number of rows of this stream in an epoch of the mixture."""
    max_repeats: Positive = 1.0
    """Maximum number of times that a row of this stream may be drawn during the run. This key is not needed with
    `repeat`, or if the duration is specified in `ep`."""

    def amounts(self) -> list[str]:
        """The keys of AMOUNTS that are set."""
        return [key for key in AMOUNTS if getattr(self, key) is not None]

    def sources(self) -> list[str]:
        """Return the keys of the sources that are set. The key of MDS shards is `local`, or `remote` if `local` is not
        set."""
        mds = "local" if self.local is not None else "remote"
        kinds = {"hf_name": self.hf_name, mds: self.local or self.remote, "text": self.text}
        return [key for key, value in kinds.items() if value is not None]


def _stream_names(dataset: "DatasetConfig") -> Iterator[Defect]:
    """Check the names of streams, which appear in log lines and in the names of metrics."""
    for name in dataset.streams or {}:
        if (defect := label_defect(name)) is not None:
            yield Defect("streams", f"has a name that {defect}")


def _cache_limit(dataset: "DatasetConfig") -> Iterator[Defect]:
    streams = (dataset.streams or {"": dataset}).values()
    if dataset.cache_limit is not None and not any(stream.remote for stream in streams):
        yield Defect("cache_limit", f"is {dataset.cache_limit!r}, but no source is remote: remove cache_limit")


def _own_source(dataset: "DatasetConfig") -> Iterator[Defect]:
    own = dataset.sources() + [
        key for key in ("split", "preprocessing_fn", *AMOUNTS) if getattr(dataset, key) is not None
    ]
    own += ["max_repeats"] if dataset.max_repeats != 1 else []
    if dataset.streams is not None and own:
        yield Defect(own[0], "is set together with streams: move it to the stream to which it applies")
    if dataset.streams is None and not dataset.sources():
        yield Defect("", f"has no data: set one of {', '.join(SOURCES)} or streams")


def _sources_of_streams(dataset: "DatasetConfig") -> Iterator[Defect]:
    if dataset.streams == {}:
        yield Defect("streams", "is empty: add at least one stream, or set the source directly")

    def has_source(item: tuple[str, StreamConfig]) -> Iterator[Defect]:
        if not item[1].sources():
            yield Defect(f"streams.{item[0]}", f"has no data: set one of {', '.join(SOURCES)}")

    yield from each((dataset.streams or {}).items(), has_source)


def _proportions(dataset: "DatasetConfig") -> Iterator[Defect]:
    streams = (dataset.streams or {}).values()
    if not any("proportion" in stream.amounts() for stream in streams):
        return
    if any(stream.amounts() != ["proportion"] for stream in streams):
        yield Defect("streams", "has streams with and without proportion: set proportion for every stream (0: no rows)")
    if not any(stream.proportion for stream in streams):
        yield Defect("streams", "has only proportions of 0: set a positive proportion for at least one stream")


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(StreamConfig):
    """Rows from one source, or from several `streams`."""

    RULES = (*StreamConfig.RULES, _stream_names, _cache_limit, _own_source, _sources_of_streams, _proportions)

    streams: dict[str, StreamConfig] | None = None
    """Several sources instead of a single source: a mapping whose keys are stream names of your choice and whose values
    are streams."""
    max_seq_len: Annotated[int, Range(ge=2)]
    """Maximum number of tokens in a row."""
    packing: Literal["best_fit", "none"] = "best_fit"
    """How documents are packed into rows. `best_fit`: several complete documents per row. `none`: one document per
    row."""
    target_prompts: Annotated[str, Form(pattern=r"none|all|length>=[1-9]\d*", name="none, all or length>=N")] = "none"
    """The prompts that are trained on: `none`, `all`, or `length>=N`. The last value selects prompts of at least N
    tokens."""
    target_responses: Literal["last", "all"] = "last"
    """The responses of a conversation that are trained on. In conversations whose messages have a key `weight` or
    `train`, that key is used instead."""
    excess_length: Literal["truncate_response", "drop", "error"] = "truncate_response"
    """What to do with an example that is longer than `max_seq_len`. Plain texts are always split, and continue in the
    next row."""
    on_bad_example: Literal["error", "drop"] = "error"
    """What to do with invalid rows. `error` reports all invalid rows together, and the run ends. `drop` skips invalid
    rows and reports their number."""
    shuffle: bool = True
    """If `true`, rows are drawn in a random order, which depends only on the seed. If `false`, they are drawn in the
    order of the source."""
    shuffle_seed: int | None = None
    """Seed of the random order. `null` uses the seed of the run."""
    cache_dir: PathText = ".cache/dropless"
    """Folder for prepared rows. Each dataset has a subfolder that is named after a fingerprint (hash) of everything
    that affects its rows."""
    prepare_workers: Count | None = None
    """Number of processes that prepare rows. `null` uses one process per core. The number does not affect the rows."""
    cache_limit: Size | None = None
    """Maximum size of downloaded shards of all remote streams on a node's disk: bytes, or a size such as `100gb`. When
    this size is reached, shards that are no longer needed are evicted. Evicted shards are downloaded again in the
    next epoch. `null` keeps all shards."""
    max_prepare_bytes: Count = 10 << 30
    """Maximum size, in bytes, of a remote MDS folder with text that must be tokenized and packed."""

    def each_stream(self) -> dict[str, "DatasetConfig"]:
        """Name of each stream -> the dataset with only this stream as its source. For a dataset without streams, the
        name is `""`."""
        if self.streams is None:
            return {"": self}
        of_source = [f.name for f in fields(StreamConfig)]
        return {
            name: replace(self, streams=None, cache_limit=None, **{key: getattr(stream, key) for key in of_source})
            for name, stream in self.streams.items()
        }
