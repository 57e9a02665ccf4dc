"""The recipe (see recipe.py) that converts chunks to untokenized samples: the valid examples, in LLM Foundry's
columns."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.base.errors import ConfigError, plain_os_errors
from data.base.problems import Place
from data.config.dataset import DatasetConfig
from data.examples.examples import Reading, read_examples
from data.examples.forms import Conversation, Example, PromptResponse, Text, TokenTurns
from data.examples.preprocessing import resolve_preprocessing_fn
from data.mds.writer import check_compression
from data.preparation.engines.choice import LOCAL, Engine
from data.preparation.packing.recipe import Converted, Tally, Task, places_of
from data.preparation.parts.manifest import fingerprint_inputs
from data.preparation.prepare import write_once
from data.sources.source import Source

COLUMNS = {
    PromptResponse.form: {"prompt": "str", "response": "str"},
    Conversation.form: {"messages": "json"},
    Text.form: {"text": "str"},
}
"""LLM Foundry's columns for untokenized data."""


def write_untokenized(
    folder: Path,
    config: DatasetConfig,
    *,
    source: Source,
    compression: str | None = None,
    remote: str | None = None,
    engine: Engine = LOCAL,
) -> None:
    """Write the valid examples in the order of the source, in LLM Foundry's columns."""
    check_compression(compression)
    made_from = {**fingerprint_inputs(config, source, None), "columns": "untokenized", "compression": compression}
    recipe = Untokenized(source=source, preprocess=resolve_preprocessing_fn(config.preprocessing_fn))
    with plain_os_errors(str(folder), "choose another folder"):
        write_once(folder, recipe, config, made_from, {}, compression=compression, remote=remote, engine=engine)


@dataclass(frozen=True)
class Samples:
    """MDS samples. The weight of the samples is their number of characters."""

    samples: list[dict[str, Any]]
    weight: int
    places_D2: np.ndarray
    """As in Documents."""

    def received(self) -> "Samples":
        return self


@dataclass(frozen=True, kw_only=True)
class Untokenized:
    """Converts chunks to samples of text."""

    source: Source
    preprocess: Callable[[Any], Any] | None

    def columns(self, form: str) -> dict[str, str]:
        return COLUMNS[form]

    def read(self, task: Task) -> Converted:
        """Runs in a worker. Raises the same errors as the source's `rows`, and ConfigError if the rows are already
        tokenized."""
        reading, tally = Reading(form=task.form, first_place=task.first_place), Tally()
        samples: list[dict[str, Any]] = []
        places: list[Place] = []
        for place, example in read_examples(self.source.rows(task.chunk), self.preprocess, reading):
            samples.append(_as_columns(example))
            places.append(place)
        tally.examples_kept = len(samples)
        content = None
        if samples and not task.check_only:
            weight = sum(len(value) for sample in samples for value in sample.values())
            content = Samples(samples, weight, places_of(places))
        return Converted(size=task.chunk.size, reading=reading, tally=tally, content=content)

    def samples(self, window: list[Samples], tally: Tally) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
        number = itertools.count()
        for content in window:
            tally.rows += len(content.samples)
            for sample in content.samples:
                yield sample, np.array([next(number)])


def _as_columns(example: Example) -> dict[str, Any]:
    if isinstance(example, TokenTurns):
        raise ConfigError(
            "the rows contain turns, which are already tokenized: set --tokenizer to the tokenizer of the turns"
        )
    if isinstance(example, Conversation):
        if example.tools is not None:
            raise ConfigError("a row contains tools, which LLM Foundry's columns do not support: set --tokenizer")
        return {"messages": example.messages}
    return (
        {"text": example.text}
        if isinstance(example, Text)
        else {
            "prompt": example.prompt,
            "response": example.response,
        }
    )
