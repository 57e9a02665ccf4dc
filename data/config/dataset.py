"""Configuration of a dataset and its streams."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Annotated, Literal

from data.base.paths import label_defect
from data.config.sections import Defect, each
from data.config.source import SOURCES, SourceConfig
from data.config.values import Count, Form, NotNegative, PathText, Positive, Range, Size

AMOUNTS = ("proportion", "repeat", "choose")
"""The keys that set how many rows are drawn from a stream. At most one of these keys is set."""


def _amount(stream: "StreamConfig") -> Iterator[Defect]:
    if len(amounts := stream.amounts()) > 1:
        yield Defect(amounts[1], f"is set together with {amounts[0]}, but only one of them may be set")


@dataclass(frozen=True, kw_only=True)
class StreamConfig(SourceConfig):
    """A single source of rows: a hub dataset or data files (`hf_name`), MDS shards (`local`, `remote`), or plain
    text files (`text`)."""

    RULES = (_amount, *SourceConfig.RULES)

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
