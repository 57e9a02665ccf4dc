"""The config of a curation: sources, steps and output."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from data.base.errors import ConfigError, Problems, under
from data.base.paths import label_defect, shown
from data.config.build import build
from data.config.dataset import DatasetConfig
from data.config.sections import Defect, Section, each
from data.config.source import SOURCES, SourceConfig
from data.config.suggest import near
from data.config.tokenizer import TokenizerConfig
from data.config.values import Count, PathText
from data.curation.base.step import Step
from data.curation.decontamination.decontaminate import Decontaminate
from data.curation.duplicates.exact import ExactDuplicates
from data.curation.duplicates.near import NearDuplicates
from data.curation.quality.bad_words import C4BadWords
from data.curation.quality.c4_quality import C4Quality
from data.curation.quality.fineweb_quality import FineWebQuality
from data.curation.quality.gopher_quality import GopherQuality
from data.curation.quality.gopher_repetition import GopherRepetition
from data.curation.quality.language import Language
from data.curation.steps.function import Function
from data.curation.steps.mask_pii import MaskPii
from data.curation.steps.normalize import Normalize
from data.curation.steps.sample import Sample
from data.secrets.redaction import is_address

STEPS: dict[str, type[Step]] = {
    "normalize": Normalize,
    "exact_duplicates": ExactDuplicates,
    "near_duplicates": NearDuplicates,
    "gopher_quality": GopherQuality,
    "gopher_repetition": GopherRepetition,
    "c4_quality": C4Quality,
    "c4_bad_words": C4BadWords,
    "fineweb_quality": FineWebQuality,
    "language": Language,
    "decontaminate": Decontaminate,
    "mask_pii": MaskPii,
    "sample": Sample,
}
"""The steps by their names in the config."""
_NO_ROWS = 2
"""A valid value for `max_seq_len`, which has no effect, because no rows are made when documents are read."""


@dataclass(frozen=True, kw_only=True)
class RowsConfig(Section):
    """The rows of tokens that are prepared from the curated documents."""

    max_seq_len: Count
    """Maximum number of tokens in a row."""
    packing: Literal["best_fit", "none"] = DatasetConfig.packing
    """How documents are packed into rows, as in `train_loader.dataset`."""
    compression: str | None = None
    """Compression of the shards, such as `zstd` or `zstd:7`."""


def _names(config: "CurationConfig") -> Iterator[Defect]:
    if not config.sources:
        yield Defect("sources", "is empty: add at least one source")
    for name in config.sources:
        if (defect := label_defect(name)) is not None:
            yield Defect("sources", f"has a name that {defect}")


def _have_data(config: "CurationConfig") -> Iterator[Defect]:
    def has_data(item: tuple[str, SourceConfig]) -> Iterator[Defect]:
        if not item[1].sources():
            yield Defect(f"sources.{item[0]}", f"has no data: set one of {', '.join(SOURCES)}")

    yield from each(config.sources.items(), has_data)


def _local_output(config: "CurationConfig") -> Iterator[Defect]:
    if is_address(config.output):
        yield Defect(
            "output",
            f"is {shown(config.output)}, but it must be a folder on a file system that the driver and all executors "
            "share: choose a folder, and copy output/documents to the object store afterwards",
        )


@dataclass(frozen=True, kw_only=True)
class CurationConfig(Section):
    """A curation."""

    RULES = (_names, _have_data, _local_output)

    name: str = "curation"
    """The title of the page."""
    seed: int = 17
    """Seed of random samples."""
    sources: dict[str, SourceConfig]
    """The sources of raw text, as a mapping from names of your choice to sources. The keys of a source are those of a
    stream in the config of a run. A record must be a text, or `preprocessing_fn` must convert it to a text."""
    tokenizer: TokenizerConfig
    """The tokenizer with which tokens are counted, and with which rows are prepared."""
    steps: list[Any] = field(default_factory=list)
    """The steps, in this order. An item is the name of a step, or a mapping from the name to parameters, such as
    `near_duplicates: {threshold: 0.8}`. `module:function` is a step of your own."""
    output: PathText
    """The folder for the results. It must be on a file system that the driver and all executors share."""
    rows: RowsConfig | None = None
    """Also prepare rows of tokens from the curated documents, in the folder `output/rows`."""
    on_bad_example: Literal["error", "drop"] = "error"
    """What to do with invalid records. `error` reports all invalid records together, and the curation ends. `drop`
    removes and counts them."""
    cache_dir: PathText = DatasetConfig.cache_dir
    """Folder for the hashes of input files, and for downloaded files."""
    keep_steps: bool = True
    """Keep the documents of every step after the curation is complete. A later curation with changed steps then
    continues from the first changed step. `false` keeps only the counts and the samples."""

    def dataset(self, name: str) -> DatasetConfig:
        """The dataset with which a source is opened."""
        return DatasetConfig(
            **vars(self.sources[name]),
            max_seq_len=_NO_ROWS,
            on_bad_example=self.on_bad_example,
            cache_dir=self.cache_dir,
        )


@dataclass(frozen=True, kw_only=True)
class NamedStep:
    """A step and its place in the config."""

    name: str
    key: str
    """The key of the step's parameters, such as `steps[2].near_duplicates`."""
    step: Step

    @contextmanager
    def errors_placed(self) -> Iterator[None]:
        """Prepend the key of the step to the key of any ConfigError raised in the block."""
        try:
            yield
        except ConfigError as error:
            if isinstance(self.step, Function) and error.key == "function":
                # The function is the name of the step, and not a parameter.
                raise ConfigError(error.text, key=self.key) from None
            with under(self.key):
                raise


def read_config(values: Mapping[str, Any]) -> tuple[CurationConfig, list[NamedStep]]:
    """The config and its steps, from plain values. Raises ConfigError with all problems."""
    problems, config, steps = Problems(), None, []
    with problems.collect():
        config = build(CurationConfig, values)
    items = values.get("steps")
    for index, item in enumerate(items if isinstance(items, list) else []):
        with problems.collect():
            steps.append(_step(item, f"steps[{index}]"))
    sources = values.get("sources")
    names = [str(name) for name in sources] if isinstance(sources, dict) else []
    _check_names(steps, names, problems)
    problems.raise_if_any()
    assert config is not None
    return config, steps


def _check_names(steps: list[NamedStep], sources: list[str], problems: Problems) -> None:
    scores: list[str] = []
    for each_step in steps:
        with problems.collect(), each_step.errors_placed():
            each_step.step.check_names(sources, scores)
        scores += [threshold.score for threshold in each_step.step.thresholds()]


def _step(item: Any, key: str) -> NamedStep:
    if isinstance(item, dict) and len(item) != 1:
        names = ", ".join(map(str, item)) or "none"
        raise ConfigError(
            f"must have one key, the name of the step, but its keys are {names}: indent the parameters of a step below "
            "its name",
            key=key,
        )
    name, values = next(iter(item.items())) if isinstance(item, dict) else (item, {})
    if not isinstance(name, str):
        raise ConfigError(f"is {shown(item)}, but it must be the name of a step: {', '.join(STEPS)}", key=key)
    key = f"{key}.{name}" if isinstance(item, dict) else key
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ConfigError(f"is {shown(values)}, but it must be a mapping of parameters", key=key)
    if ":" in name:
        return NamedStep(name=name, key=key, step=build(Function, {"function": name, "arguments": values}, key))
    if name not in STEPS:
        raise ConfigError(
            f"is {shown(name)}, which is not a step{near(name, STEPS)} (steps: {', '.join(STEPS)}; write your own "
            "as module:function)",
            key=key.removesuffix(f".{name}"),
        )
    return NamedStep(name=name, key=key, step=build(STEPS[name], values, key))
