"""Configuration of a loader and of the stages of its curriculum."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal

from data.base.durations import in_unit_of, parse_duration
from data.config.dataset import AMOUNTS, DatasetConfig
from data.config.sections import Defect, Section, each
from data.config.values import Count, CountOrZero, Positive, PositiveDuration


@dataclass(frozen=True, kw_only=True)
class EpochsOf(Section):
    """A duration, measured in epochs of one stream."""

    ep: Positive
    """Number of epochs."""
    of: str
    """The stream's name."""


def _ramp_of_proportions(stage: "StageConfig") -> Iterator[Defect]:
    mixes = [value for value in stage.proportions.values() if isinstance(value, dict)]
    if mixes and (set(stage.proportions) != {"from", "to"} or len(mixes) != 2):
        found = ", ".join(stage.proportions)
        yield Defect("proportions", f"has the keys {found}, but a ramp must be {{from: shares, to: shares}}")


def _shares(stage: "StageConfig") -> Iterator[Defect]:
    ramp = any(isinstance(value, dict) for value in stage.proportions.values())
    mixes = stage.proportions if ramp else {"": stage.proportions}
    for key, mix in mixes.items():
        if not isinstance(mix, dict):
            continue
        for name, share in mix.items():
            if isinstance(share, int | float) and share < 0:
                place = ".".join(filter(None, ("proportions", key, name)))
                yield Defect(place, f"is {share}, but it must be at least 0")
        if not any(mix.values()):
            yield Defect(f"proportions.{key}".rstrip("."), "are all 0: set a positive share for at least one stream")


def _learning_rate(stage: "StageConfig") -> Iterator[Defect]:
    scale = stage.lr_scale
    if isinstance(scale, dict) and set(scale) != {"from", "to"}:
        yield Defect("lr_scale", f"is {scale}, but it must be a number or {{from: number, to: number}}")
    elif min(stage.lr_scales()) < 0:
        yield Defect("lr_scale", f"is {scale}, but it must be at least 0")


def _end_of_ramp(stage: "StageConfig") -> Iterator[Defect]:
    ramp = stage.mixes()[0] != stage.mixes()[1] or stage.lr_scales()[0] != stage.lr_scales()[1]
    if ramp and stage.duration is None:
        yield Defect("duration", "is missing, but a ramp requires a duration")


@dataclass(frozen=True, kw_only=True)
class StageConfig(Section):
    """A part of the run with its own proportions of the streams."""

    RULES = (_ramp_of_proportions, _shares, _learning_rate, _end_of_ramp)

    name: str
    """Name of the stage in messages and logs."""
    duration: PositiveDuration | EpochsOf | None = None
    """The length of the stage, such as `800ba`, `1000000tok`, `0.1dur`, `1ep` (with a single stream), or
    `{ep: 2, of: web}` for two epochs of the stream `web`. In the last stage, `null` means the rest of the run."""
    proportions: dict[str, float | dict[str, float]]
    """The share of the tokens that each stream contributes, as a mapping from names of streams to shares. For a linear
    ramp, use `{from: shares, to: shares}`."""
    lr_scale: float | dict[str, float] = 1.0
    """The scheduler's learning rate is multiplied by this factor. For a linear ramp, use
    `{from: factor, to: factor}`."""

    def mixes(self) -> tuple[dict[str, float], dict[str, float]]:
        """The shares at the start and at the end of the stage."""
        ramp = {key: value for key, value in self.proportions.items() if isinstance(value, dict)}
        if ramp:
            return ramp.get("from", {}), ramp.get("to", {})
        constant: dict[str, float] = {
            key: value for key, value in self.proportions.items() if not isinstance(value, dict)
        }
        return constant, constant

    def lr_scales(self) -> tuple[float, float]:
        scale = self.lr_scale
        return (scale.get("from", 1.0), scale.get("to", 1.0)) if isinstance(scale, dict) else (scale, scale)


def _stage_names(loader: "DataLoaderConfig") -> Iterator[Defect]:
    names: list[str] = []

    def is_new(item: tuple[int, StageConfig]) -> Iterator[Defect]:
        number, name = item[0], item[1].name
        if name in names:
            yield Defect(f"stages[{number}].name", f"is {name!r}, the name of an earlier stage: use another name")
        names.append(name)

    yield from each(enumerate(loader.stages), is_new)


def _open_stage(loader: "DataLoaderConfig") -> Iterator[Defect]:
    def has_end(item: tuple[int, StageConfig]) -> Iterator[Defect]:
        if item[1].duration is None:
            yield Defect(f"stages[{item[0]}].duration", "is missing, but only the last stage may have no duration")

    yield from each(enumerate(loader.stages[:-1]), has_end)


def _streams_of_stages(loader: "DataLoaderConfig") -> Iterator[Defect]:
    def of_proportions(item: tuple[int, StageConfig]) -> Iterator[Defect]:
        for name in {**item[1].mixes()[0], **item[1].mixes()[1]}:
            yield from _unknown_stream(loader.dataset, name, f"stages[{item[0]}].proportions")

    def of_duration(item: tuple[int, StageConfig]) -> Iterator[Defect]:
        if isinstance(item[1].duration, EpochsOf):
            yield from _unknown_stream(loader.dataset, item[1].duration.of, f"stages[{item[0]}].duration.of")

    yield from each(enumerate(loader.stages), of_proportions)
    yield from each(enumerate(loader.stages), of_duration)


def _unknown_stream(dataset: DatasetConfig, name: str, key: str) -> Iterator[Defect]:
    streams = dataset.streams
    if streams is None:
        hint = "but the dataset has no streams: move its source to dataset.streams"
        yield Defect(key, f"refers to {name!r}, {hint}")
    elif name not in streams:
        close = get_close_matches(name, streams, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        yield Defect(key, f"refers to {name!r}, but the streams are {', '.join(streams)}{hint}")


def _amounts_beside_stages(loader: "DataLoaderConfig") -> Iterator[Defect]:
    for name, stream in (loader.dataset.streams or {}).items() if loader.stages else ():
        for key in AMOUNTS:
            if getattr(stream, key) is not None:
                yield Defect(
                    f"dataset.streams.{name}.{key}", "is set together with stages, which define the proportions"
                )


def stages_too_long(loader: "DataLoaderConfig", max_duration: str) -> Iterator[Defect]:
    """Yields a Defect if the run ends before its last stage ends. Stages whose unit differs from the unit of
    max_duration are ignored."""
    lengths = [in_unit_of(max_duration, each.duration) for each in loader.stages if isinstance(each.duration, str)]
    known, (total, unit) = sum(length or 0.0 for length in lengths), parse_duration(max_duration)
    is_open = bool(loader.stages) and loader.stages[-1].duration is None
    # The durations are rounded in the same way as durations in batches, so that 0.1dur + 0.2dur + 0.7dur is exactly the
    # whole run.
    if (excess := round(known - total, 6)) > 0 or (is_open and excess == 0):
        yield Defect(
            "stages",
            f"last {known:,.10g}{unit}, but max_duration is {max_duration}, so {loader.stages[-1].name} would not be "
            "reached or not be completed: shorten the stages, increase max_duration, or, for a short test, set "
            "train_loader.stages=[]",
        )


@dataclass(frozen=True, kw_only=True)
class DataLoaderConfig(Section):
    """A dataset, and the settings of the loader that reads it."""

    RULES = (_stage_names, _open_stage, _streams_of_stages, _amounts_beside_stages)

    name: Literal["finetuning", "text"]
    """The kind of loader, as in LLM Foundry. In Dropless, both kinds read the same sources."""
    dataset: DatasetConfig
    stages: list[StageConfig] = field(default_factory=list)
    """The stages of the curriculum, in order. If the list is empty, the proportions of the streams are the same in the
    whole run."""
    num_workers: CountOrZero = 2
    """Number of worker processes that prefetch rows. With 0, the training process reads the rows."""
    prefetch_factor: Count = 2
    """Number of batches that each worker prefetches."""
    pin_memory: bool = True
    """Copy batches into page-locked memory, which makes copies to a GPU faster."""
    persistent_workers: bool = True
    """Keep worker processes between epochs."""
