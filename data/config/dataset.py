"""What a YAML says about a dataset and its streams.

Checks raise ValueError with the key relative to the class; the reader of the YAML puts the path before it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from data.base.addresses import is_address, without_login
from data.base.paths import check_path
from data.base.sizes import parse_bytes
from data.config.splits import parse_split


@dataclass(frozen=True, kw_only=True)
class HFKwargs:
    """What `datasets.load_dataset` is told besides the name."""

    data_dir: str | None = None
    data_files: str | list[str] | dict[str, str | list[str]] | None = None
    """Names or patterns: of the train split, or of each split by its name."""
    name: str | None = None
    """The subset (configuration) of a hub dataset."""
    revision: str | None = None
    """Branch, tag or commit of a hub dataset."""

    def __post_init__(self) -> None:
        _check_local("data_dir", self.data_dir)
        splits = self.data_files if isinstance(self.data_files, dict) else {"": self.data_files}
        for split, files in splits.items():
            _check_local(f"data_files.{split}" if split else "data_files", files)


def _check_local(key: str, value: str | list[str] | None) -> None:
    """Of data files, which are not read over a network (but for those of a hub dataset, which hf_name names)."""
    check_path(key, value)
    for path in [value] if isinstance(value, str) else value or []:
        if is_address(path):
            raise ValueError(
                f"{key} has {without_login(path)!r}, but data files are read from local or mounted folders only: "
                "download the file or mount its folder, and write the path there (of a dataset of the hub, write its "
                "name in hf_name; MDS shards are read from an address with `remote`)"
            )


COLUMN_MAPPINGS = (("prompt", "response"), ("messages",), ("text",))
"""The keys of a `preprocessing_fn` that only says which columns to take."""
SOURCES = ("hf_name", "local", "text")
"""The keys of which a source has one: `local` may be, or be joined by, `remote`."""


def check_mapping(columns: Mapping[str, str]) -> None:
    """Raises ValueError when a `preprocessing_fn` that is a mapping takes columns for no form of example."""
    if tuple(sorted(columns)) not in COLUMN_MAPPINGS:
        forms = " or ".join(f"{{{', '.join(f'{key}: COLUMN' for key in keys)}}}" for keys in COLUMN_MAPPINGS)
        raise ValueError(f"preprocessing_fn is {dict(columns)}, but a mapping must be {forms}")


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """One source of rows: a dataset of the hub or local data files (hf_name), MDS shards (local, remote) or text."""

    hf_name: str | None = None
    """A hub dataset's name; or `json`, `csv` or `parquet` for local files named by hf_kwargs; or the path of such a
    file, or of a folder of them."""
    hf_kwargs: HFKwargs = field(default_factory=HFKwargs)
    safe_load: bool = False
    """Of a hub dataset only csv, json, jsonl and parquet files are downloaded. (Code is never run.)"""
    local: str | None = None
    """A folder of MDS shards; with `remote`, where they are kept once downloaded."""
    remote: str | None = None
    """Where MDS shards come from: a folder, s3://, gs:// or hf://."""
    text: str | list[str] | None = None
    """Plain text files for pretraining, each a document: names, patterns, or folders (their .txt files)."""
    split: str | None = None
    """null: train for hub and data files, the folder itself for MDS. Of hub and data files also slices and sums, as in
    the `datasets` library: train[:90%], train[1000:2000], train+validation."""
    preprocessing_fn: str | dict[str, str] | None = None
    """A registered name, `module:function`, or the columns to take: {prompt: column, response: column}, {messages:
    column} or {text: column}; null: rows are examples already."""

    proportion: float | None = None
    """Share of the run's tokens, relative to those of the other streams."""
    repeat: float | None = None
    """Instead: how often each row is in an epoch of all streams (1 without any of the three)."""
    choose: int | None = None
    """Instead: how many rows are in an epoch of all streams."""
    max_repeats: float = 1.0
    """How often the run may see a row of this stream. Needless where `ep` or `repeat` say it."""

    def __post_init__(self) -> None:
        amounts = self.amounts()
        if len(amounts) > 1:
            raise ValueError(f"{amounts[1]} is given beside {amounts[0]}, but only one of them can say how much")
        for key in (*amounts, "max_repeats"):
            value = getattr(self, key)
            if value < 0 or (key != "proportion" and value == 0):
                raise ValueError(
                    f"{key} is {value}, but it must be {'0 or more' if key == 'proportion' else 'above 0'}"
                )
        if isinstance(self.preprocessing_fn, dict):
            check_mapping(self.preprocessing_fn)
        # A split of an MDS folder is a folder in it.
        for key in ("local", "remote", "split"):
            check_path(key, getattr(self, key))
        for key in ("hf_name", "text"):
            _check_local(key, getattr(self, key))
        given = self.sources()
        if len(given) > 1:
            raise ValueError(f"{given[1]} is given beside {given[0]}, but a source is one of {', '.join(SOURCES)}")
        if self.hf_name is None and (self.hf_kwargs != HFKwargs() or self.safe_load):
            raise ValueError("hf_kwargs and safe_load belong to hf_name, which is not given")
        if self.split is not None:
            self._check_split(self.split)

    def _check_split(self, split: str) -> None:
        if self.hf_name is not None:
            parse_split(split)
        elif "[" in split and (self.local is not None or self.remote is not None):
            raise ValueError(
                f"split is {split!r}, but of MDS shards it names a folder, of which all samples are read: leave "
                f"{split[split.index('[') :]!r} out (choose takes fewer rows), or slice what the shards are made from"
            )

    def amounts(self) -> list[str]:
        """The keys of what says how much of it is taken."""
        return [key for key in ("proportion", "repeat", "choose") if getattr(self, key) is not None]

    def sources(self) -> list[str]:
        """The keys of what is given."""
        mds = "local" if self.local is not None else "remote"
        kinds = {"hf_name": self.hf_name, mds: self.local or self.remote, "text": self.text}
        return [key for key, value in kinds.items() if value is not None]


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(StreamConfig):
    """Rows from one source, or from several `streams`."""

    streams: dict[str, StreamConfig] | None = None
    max_seq_len: int
    """Tokens in a row."""
    packing: Literal["best_fit", "none"] = "best_fit"
    """best_fit puts several whole documents into a row; none gives each its own."""
    target_prompts: str = "none"
    """Which prompts are trained on: none, all, or length>=N (those of at least N tokens)."""
    target_responses: Literal["last", "all"] = "last"
    """Which of a conversation's responses are trained on, where their `weight` or `train` does not say it."""
    excess_length: Literal["truncate_response", "drop", "error"] = "truncate_response"
    """What becomes of an example longer than max_seq_len. A text is cut and goes on in the next row."""
    on_bad_example: Literal["error", "drop"] = "error"
    """error: all bad rows are reported together, and nothing is trained; drop: they are counted and left out."""
    shuffle: bool = True
    shuffle_seed: int | None = None
    """null takes the seed of the run."""
    cache_dir: str = ".cache/dropless"
    """Where prepared rows are kept, in a folder named by the fingerprint of all that matters to them."""
    prepare_workers: int | None = None
    """Processes that prepare rows; null takes one a core. The rows are the same for any number."""
    cache_limit: int | str | None = None
    """What downloaded shards of all remote streams may take on a node's disk: bytes, or such as 100gb. Finished shards
    are deleted, and downloaded again in the next pass; null keeps all."""
    max_prepare_bytes: int = 10 << 30
    """A remote MDS folder whose text is to be prepared must not be larger."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_path("cache_dir", self.cache_dir)
        if self.max_seq_len < 2:
            raise ValueError(f"max_seq_len is {self.max_seq_len}, but a row needs at least 2 tokens to predict one")
        if re.fullmatch(r"none|all|length>=[1-9]\d*", self.target_prompts) is None:
            raise ValueError(f"target_prompts is {self.target_prompts!r}, but it must be none, all or length>=N")
        if self.prepare_workers is not None and self.prepare_workers < 1:
            raise ValueError(f"prepare_workers is {self.prepare_workers}, but there must be at least 1")
        if self.cache_limit is not None:
            try:
                parse_bytes(self.cache_limit)
            except ValueError as error:
                raise ValueError(f"cache_limit {error}") from None
            if not any(stream.remote for stream in (self.streams or {"": self}).values()):
                raise ValueError(f"cache_limit is {self.cache_limit!r}, but there is no remote to cache: leave it out")
        of_stream = ("split", "preprocessing_fn", "proportion", "repeat", "choose")
        own = self.sources() + [key for key in of_stream if getattr(self, key) is not None]
        own += ["max_repeats"] if self.max_repeats != 1 else []
        if self.streams is not None and own:
            raise ValueError(f"{own[0]} is given beside streams: write it in the stream it belongs to")
        if self.streams is None and not self.sources():
            raise ValueError(f"no data: give one of {', '.join(SOURCES)} or streams")
        if self.streams is not None:
            for name, stream in self.streams.items():
                if not stream.sources():
                    raise ValueError(f"streams.{name} has no data: give it one of {', '.join(SOURCES)}")
            mixed = {key for stream in self.streams.values() for key in stream.amounts()}
            if "proportion" in mixed and any(stream.amounts() != ["proportion"] for stream in self.streams.values()):
                raise ValueError("streams: some have a proportion and some have none: give each one, 0 for none of it")
            if "proportion" in mixed and not any(stream.proportion for stream in self.streams.values()):
                raise ValueError("streams: every proportion is 0: give at least one stream a share")
        if self.streams == {}:
            raise ValueError("streams is empty: give at least one, or the data itself")

    def each_stream(self) -> dict[str, "DatasetConfig"]:
        """name -> the dataset with that stream as its one source; `""` for a dataset without streams."""
        if self.streams is None:
            return {"": self}
        of_source = [f.name for f in fields(StreamConfig)]
        return {
            name: replace(self, streams=None, cache_limit=None, **{key: getattr(stream, key) for key in of_source})
            for name, stream in self.streams.items()
        }
