"""What a YAML says about a dataset and its streams."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Literal

from data.base.errors import ConfigError
from data.base.paths import label_defect, path_defect
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
    """Data files are not read over a network, but for those of a hub dataset, which hf_name names."""
    for path in [value] if isinstance(value, str) else value or []:
        if is_address(path):
            yield Defect(
                key,
                f"has {path!r}, but data files are read from local or mounted folders only: download "
                "the file or mount its folder, and write the path there (of a dataset of the hub, write its name in "
                "hf_name; MDS shards are read from an address with `remote`)",
            )


@dataclass(frozen=True, kw_only=True)
class HFKwargs(Section):
    """What `datasets.load_dataset` gets besides the name."""

    RULES = (_local_folder, _local_files)

    data_dir: PathText | None = None
    """A folder in a hub dataset, or of local files."""
    data_files: str | list[str] | dict[str, str | list[str]] | None = None
    """Names or patterns: of the train split, or of each split by its name."""
    name: PathText | None = None
    """The subset (configuration) of a hub dataset."""
    revision: PathText | None = None
    """Branch, tag or commit of a hub dataset."""


COLUMN_MAPPINGS = (("prompt", "response"), ("messages",), ("text",))
"""The keys of a `preprocessing_fn` that only says which columns to take."""
SOURCES = ("hf_name", "local", "text")
"""The keys of which a source has one: `local` may be, or be joined by, `remote`."""
AMOUNTS = ("proportion", "repeat", "choose")
"""The keys of which a stream has at most one: how much of it is drawn."""


def mapping_defect(columns: Mapping[str, str]) -> str | None:
    """Why a `preprocessing_fn` that is a mapping takes columns for no form of example, to stand after the key."""
    if tuple(sorted(columns)) in COLUMN_MAPPINGS:
        return None
    forms = " or ".join(f"{{{', '.join(f'{key}: COLUMN' for key in keys)}}}" for keys in COLUMN_MAPPINGS)
    return f"is {dict(columns)}, but a mapping must be {forms}"


def standard_library_defect(function: str) -> str | None:
    """Why a `preprocessing_fn` `module:function` is refused by its name, to stand after the key: nothing in Python's
    standard library makes examples of rows, while some of it runs them as commands."""
    module = function.partition(":")[0]
    if ":" not in function or not is_standard_library(module):
        return None
    return (
        f"is {function!r}, but {module} is a module of Python's standard library, which has no function that makes "
        "examples: name a module of your own (if this is one, it needs another name)"
    )


def is_standard_library(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


def _amount(stream: "StreamConfig") -> Iterator[Defect]:
    if len(amounts := stream.amounts()) > 1:
        yield Defect(amounts[1], f"is given beside {amounts[0]}, but only one of them can say how much")


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
        yield Defect(given[1], f"is given beside {given[0]}, but a source is one of {', '.join(SOURCES)}")


def _of_hf_name(stream: "StreamConfig") -> Iterator[Defect]:
    if stream.hf_name is not None:
        return
    for key, given in {"hf_kwargs": stream.hf_kwargs != HFKwargs(), "safe_load": stream.safe_load}.items():
        if given:
            yield Defect(key, "belongs to hf_name, which is not given")


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
            f"is {split!r}, but of MDS shards it names a folder, of which all samples are read: leave "
            f"{split[split.index('[') :]!r} out (choose takes fewer rows), or slice what the shards are made from",
        )


@dataclass(frozen=True, kw_only=True)
class StreamConfig(Section):
    """One source of rows: a dataset of the hub or local data files (hf_name), MDS shards (local, remote) or text."""

    RULES = (_amount, _preprocessing, _local_name, _local_text, _one_source, _of_hf_name, _split)

    hf_name: PathText | None = None
    """A hub dataset's name; or `json`, `csv` or `parquet` for local files named by hf_kwargs; or the path of such a
    file, or of a folder of them."""
    hf_kwargs: HFKwargs = field(default_factory=HFKwargs)
    safe_load: bool = False
    """Of a hub dataset only csv, json, jsonl and parquet files are downloaded. (Code is never run.)"""
    local: PathText | None = None
    """A folder of MDS shards; with `remote`, where they are kept once downloaded."""
    remote: PathText | None = None
    """Where MDS shards come from: a folder, s3://, gs:// or hf://."""
    text: Paths | None = None
    """Plain text files for pretraining, each a document: names, patterns, or folders (their .txt files)."""
    split: PathText | None = None
    """null: train for hub and data files, the folder itself for MDS. Of hub and data files also slices and sums, as in
    the `datasets` library: train[:90%], train[1000:2000], train+validation."""
    preprocessing_fn: str | dict[str, str] | None = None
    """A registered name, `module:function`, or the columns to take: {prompt: column, response: column}, {messages:
    column} or {text: column}; null: rows are examples already."""

    proportion: NotNegative | None = None
    """Share of the run's tokens, relative to those of the other streams."""
    repeat: Positive | None = None
    """Instead: how often each row is in an epoch of all streams (1 without any of the three)."""
    choose: Count | None = None
    """Instead: how many rows are in an epoch of all streams."""
    max_repeats: Positive = 1.0
    """How often the run may see a row of this stream. Needless where `ep` or `repeat` say it."""

    def amounts(self) -> list[str]:
        """The keys of what says how much of it is taken."""
        return [key for key in AMOUNTS if getattr(self, key) is not None]

    def sources(self) -> list[str]:
        """The keys of what is given."""
        mds = "local" if self.local is not None else "remote"
        kinds = {"hf_name": self.hf_name, mds: self.local or self.remote, "text": self.text}
        return [key for key, value in kinds.items() if value is not None]


def _stream_names(dataset: "DatasetConfig") -> Iterator[Defect]:
    """They are shown in lines of the log and in names of metrics."""
    for name in dataset.streams or {}:
        if (defect := label_defect(name)) is not None:
            yield Defect("streams", f"has a name that {defect}")


def _cache_limit(dataset: "DatasetConfig") -> Iterator[Defect]:
    streams = (dataset.streams or {"": dataset}).values()
    if dataset.cache_limit is not None and not any(stream.remote for stream in streams):
        yield Defect("cache_limit", f"is {dataset.cache_limit!r}, but there is no remote to cache: leave it out")


def _own_source(dataset: "DatasetConfig") -> Iterator[Defect]:
    own = dataset.sources() + [
        key for key in ("split", "preprocessing_fn", *AMOUNTS) if getattr(dataset, key) is not None
    ]
    own += ["max_repeats"] if dataset.max_repeats != 1 else []
    if dataset.streams is not None and own:
        yield Defect(own[0], "is given beside streams: write it in the stream it belongs to")
    if dataset.streams is None and not dataset.sources():
        yield Defect("", f"has no data: give one of {', '.join(SOURCES)} or streams")


def _sources_of_streams(dataset: "DatasetConfig") -> Iterator[Defect]:
    if dataset.streams == {}:
        yield Defect("streams", "is empty: give at least one, or the data itself")

    def has_source(item: tuple[str, StreamConfig]) -> Iterator[Defect]:
        if not item[1].sources():
            yield Defect(f"streams.{item[0]}", f"has no data: give it one of {', '.join(SOURCES)}")

    yield from each((dataset.streams or {}).items(), has_source)


def _proportions(dataset: "DatasetConfig") -> Iterator[Defect]:
    streams = (dataset.streams or {}).values()
    if not any("proportion" in stream.amounts() for stream in streams):
        return
    if any(stream.amounts() != ["proportion"] for stream in streams):
        yield Defect("streams", "is a mix of streams with a proportion and without: give each one, 0 for none of it")
    if not any(stream.proportion for stream in streams):
        yield Defect("streams", "has only proportions of 0: give at least one stream a share")


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(StreamConfig):
    """Rows from one source, or from several `streams`."""

    RULES = (*StreamConfig.RULES, _stream_names, _cache_limit, _own_source, _sources_of_streams, _proportions)

    streams: dict[str, StreamConfig] | None = None
    """Several sources by name, in place of one."""
    max_seq_len: Annotated[int, Range(ge=2)]
    """Tokens in a row."""
    packing: Literal["best_fit", "none"] = "best_fit"
    """best_fit puts several whole documents into a row; none gives each its own."""
    target_prompts: Annotated[str, Form(pattern=r"none|all|length>=[1-9]\d*", name="none, all or length>=N")] = "none"
    """Which prompts are trained on: none, all, or length>=N (those of at least N tokens)."""
    target_responses: Literal["last", "all"] = "last"
    """Which of a conversation's responses are trained on, where their `weight` or `train` does not say it."""
    excess_length: Literal["truncate_response", "drop", "error"] = "truncate_response"
    """What becomes of an example longer than max_seq_len. A text is cut and goes on in the next row."""
    on_bad_example: Literal["error", "drop"] = "error"
    """error: all bad rows are reported together, and nothing is trained; drop: they are counted and left out."""
    shuffle: bool = True
    """Rows are drawn in a random order, which is fixed by the seed; false: in the order of the source."""
    shuffle_seed: int | None = None
    """null takes the seed of the run."""
    cache_dir: PathText = ".cache/dropless"
    """Where prepared rows are kept, in a folder named by the fingerprint of all that matters to them."""
    prepare_workers: Count | None = None
    """Processes that prepare rows; null takes one a core. The rows are the same for any number."""
    cache_limit: Size | None = None
    """What downloaded shards of all remote streams may take on a node's disk: bytes, or such as 100gb. Finished shards
    are deleted, and downloaded again in the next pass; null keeps all."""
    max_prepare_bytes: Count = 10 << 30
    """A remote MDS folder whose text is to be prepared must not be larger."""

    def each_stream(self) -> dict[str, "DatasetConfig"]:
        """name -> the dataset with that stream as its one source; `""` for a dataset without streams."""
        if self.streams is None:
            return {"": self}
        of_source = [f.name for f in fields(StreamConfig)]
        return {
            name: replace(self, streams=None, cache_limit=None, **{key: getattr(stream, key) for key in of_source})
            for name, stream in self.streams.items()
        }
