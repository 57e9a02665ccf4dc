"""The recipe (see recipe.py) that converts chunks to untokenized samples: the valid examples, in LLM Foundry's
columns."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.base.errors import ConfigError, plain_os_errors
from data.config.dataset import DatasetConfig
from data.examples.examples import Reading, read_examples
from data.examples.forms import Conversation, Example, PromptResponse, Text, TokenTurns
from data.examples.preprocessing import resolve_preprocessing_fn
from data.mds.writer import check_compression
from data.preparation.manifest import fingerprint_inputs
from data.preparation.prepare import write_once
from data.preparation.recipe import Part, Tally, Task
from data.sources.source import Source

COLUMNS = {
    PromptResponse.form: {"prompt": "str", "response": "str"},
    Conversation.form: {"messages": "json"},
    Text.form: {"text": "str"},
}
"""LLM Foundry's columns for untokenized data."""


def write_untokenized(
    folder: Path, config: DatasetConfig, source: Source, *, compression: str | None = None, remote: str | None = None
) -> None:
    """Write the valid examples in the order of the source, in LLM Foundry's columns."""
    check_compression(compression)
    made_from = {**fingerprint_inputs(config, source, None), "columns": "untokenized", "compression": compression}
    recipe = Untokenized(source=source, preprocess=resolve_preprocessing_fn(config.preprocessing_fn))
    with plain_os_errors(str(folder), "choose another folder"):
        write_once(folder, recipe, config, made_from, {}, compression=compression, remote=remote)


@dataclass(frozen=True)
class Samples:
    """MDS samples. The weight of the samples is their number of characters."""

    samples: list[dict[str, Any]]
    weight: int

    def received(self) -> "Samples":
        return self


@dataclass(frozen=True, kw_only=True)
class Untokenized:
    """Converts chunks to samples of text."""

    source: Source
    preprocess: Callable[[Any], Any] | None

    def columns(self, form: str) -> dict[str, str]:
        return COLUMNS[form]

    def read(self, task: Task) -> Part:
        """Runs in a worker. Raises the same errors as the source's `rows`, and ConfigError if the rows are already
        tokenized."""
        part = Part(size=task.chunk.size, reading=Reading(form=task.form, first_place=task.first_place), tally=Tally())
        samples = []
        for example in read_examples(self.source.rows(task.chunk), self.preprocess, part.reading):
            samples.append(_as_columns(example))
        part.tally.examples_kept = len(samples)
        if samples and not task.check_only:
            part.content = Samples(samples, sum(len(value) for sample in samples for value in sample.values()))
        return part

    def samples(self, window: list[Samples], tally: Tally) -> Iterator[dict[str, Any]]:
        for content in window:
            tally.rows += len(content.samples)
            yield from content.samples


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
