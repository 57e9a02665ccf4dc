"""What a YAML says about a loader and the stages of its curriculum.

Checks raise ValueError as those of tokenizer.py do.
"""

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal

from data.base.durations import parse_duration
from data.config.dataset import DatasetConfig


@dataclass(frozen=True, kw_only=True)
class PassesOf:
    """As long as it takes to give the rows of one stream `ep` times."""

    ep: float
    of: str

    def __post_init__(self) -> None:
        if self.ep <= 0:
            raise ValueError(f"ep is {self.ep}, but it must be above 0")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A part of the run with its own mix."""

    name: str
    duration: str | PassesOf | None = None
    """Such as 800ba, 1000000tok, 0.1dur, 1ep (one stream) or {ep: 2, of: web}; null for a last stage: the rest."""
    proportions: dict[str, float | dict[str, float]]
    """stream -> share of the tokens; or {from: shares, to: shares}: the mix goes from one to the other in a line."""
    lr_scale: float | dict[str, float] = 1.0
    """What the learning rate of the scheduler is multiplied by; or {from: scale, to: scale}."""

    def __post_init__(self) -> None:
        if isinstance(self.duration, str):
            try:
                value, _ = parse_duration(self.duration)
            except ValueError as error:
                raise ValueError(f"duration {error}") from None
            if value == 0:
                raise ValueError(f"duration is {self.duration!r}, but a stage of nothing is no stage")
        for start_or_end in self.mixes():
            _check_mix(start_or_end)
        if isinstance(self.lr_scale, dict) and set(self.lr_scale) != {"from", "to"}:
            raise ValueError(f"lr_scale is {self.lr_scale}, but it must be a number or {{from: number, to: number}}")
        if min(self.lr_scales()) < 0:
            raise ValueError(f"lr_scale is {self.lr_scale}, but it cannot be negative")
        ramp = self.mixes()[0] != self.mixes()[1] or self.lr_scales()[0] != self.lr_scales()[1]
        if ramp and self.duration is None:
            raise ValueError("duration is missing: a ramp needs an end")

    def mixes(self) -> tuple[dict[str, float], dict[str, float]]:
        """The shares at its start and at its end."""
        ramp = [value for value in self.proportions.values() if isinstance(value, dict)]
        if not ramp:
            constant: dict[str, float] = {k: v for k, v in self.proportions.items() if not isinstance(v, dict)}
            return constant, constant
        if set(self.proportions) != {"from", "to"} or len(ramp) != 2:
            raise ValueError(
                f"proportions has {', '.join(self.proportions)}, but a ramp is {{from: shares, to: shares}}"
            )
        return ramp[0], ramp[1]

    def lr_scales(self) -> tuple[float, float]:
        scale = self.lr_scale
        return (scale["from"], scale["to"]) if isinstance(scale, dict) else (scale, scale)


def _check_mix(mix: dict[str, float]) -> None:
    for name, share in mix.items():
        if share < 0:
            raise ValueError(f"proportions.{name} is {share}, but a share cannot be negative")
    if not any(mix.values()):
        raise ValueError("proportions are all 0: give at least one stream a share")


@dataclass(frozen=True, kw_only=True)
class DataLoaderConfig:
    name: Literal["finetuning", "text"]
    """What LLM Foundry calls the two kinds; one plane serves both."""
    dataset: DatasetConfig
    stages: list[StageConfig] = field(default_factory=list)
    """The curriculum: stages in their order. Without any there is one mix for the whole run."""
    num_workers: int = 2
    """Processes that read rows ahead; 0 reads in the training process."""
    prefetch_factor: int = 2
    """Batches that each worker holds ready."""
    pin_memory: bool = True
    persistent_workers: bool = True

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        for number, stage in enumerate(self.stages):
            if stage.name in names[:number]:
                raise ValueError(f"stages[{number}].name is {stage.name!r}, as of an earlier stage: give it another")
            if stage.duration is None and number + 1 < len(names):
                raise ValueError(f"stages[{number}].duration is missing, but only the last stage may be open")
            for name in {**stage.mixes()[0], **stage.mixes()[1]}:
                self._check_stream(name, f"stages[{number}].proportions")
            if isinstance(stage.duration, PassesOf):
                self._check_stream(stage.duration.of, f"stages[{number}].duration.of")
        if self.stages and self.dataset.streams is not None:
            for name, stream in self.dataset.streams.items():
                for key in ("proportion", "repeat", "choose"):
                    if getattr(stream, key) is not None:
                        raise ValueError(f"dataset.streams.{name}.{key} is given beside stages, which say the mix")
        if self.num_workers < 0:
            raise ValueError(f"num_workers is {self.num_workers}, but there cannot be fewer than 0")
        if self.prefetch_factor < 1:
            raise ValueError(f"prefetch_factor is {self.prefetch_factor}, but a worker must hold at least 1 batch")

    def _check_stream(self, name: str, key: str) -> None:
        streams = self.dataset.streams
        if streams is None:
            raise ValueError(
                f"{key} names {name!r}, but the dataset has no streams: put its source under dataset.streams"
            )
        if name not in streams:
            close = get_close_matches(name, streams, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"{key} names {name!r}, but the streams are {', '.join(streams)}{hint}")
