"""The only reader of configs: a YAML file and `key=value` become a TrainConfig, or a ConfigError with all problems."""

import dataclasses
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from data.base.errors import ConfigError, ConfigErrors
from data.config.build import Builder, KeyHints
from data.config.sections import Defect, check
from data.config.suggest import known_paths
from train.config import llm_foundry
from train.config.reading.interpolation import VARIABLES, Unresolved, resolve, unused_variables
from train.config.reading.model_values import (
    PENDING,
    Pretrained,
    contradicting_weights,
    pretrained_name,
    unnamed_weights,
    with_values,
    without_unwritten,
)
from train.config.reading.yaml_file import Written, read
from train.config.schema import TrainConfig
from train.hf.repository import read_values
from train.models.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class LoadedConfig:
    """A config of which everything has been checked that needs no network."""

    config: TrainConfig
    """Without what the pretrained model's config.json will say of it: reading that raises Unavailable."""
    written: Written

    def placed(self, error: ConfigError) -> ConfigError:
        """The error, with file and line before each of its problems whose key has one, in their order."""
        return self.written.placed(error)


def load_config(path: str, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Reads the YAML at `path`, changes it by `key=value` overrides, and checks all of it. Asks no hub.

    Raises ConfigError with everything that is wrong, in the order of the file.
    """
    written = read(path, overrides)
    pretrained = PENDING if pretrained_name(written.tree) is not None else None
    return LoadedConfig(config=_checked(written, pretrained), written=written)


def resolve_pretrained(loaded: LoadedConfig) -> TrainConfig:
    """The config with the values that the pretrained model's config.json decides, from a folder or the hub.

    Raises ConfigError for weights that cannot be used, or that mean something else than what is written.
    """
    name = pretrained_name(loaded.written.tree)
    if name is None:
        return loaded.config
    try:
        values, place = read_values(name)
    except ConfigError as error:
        raise loaded.placed(error) from None
    return _checked(loaded.written, Pretrained(values=values, place=place))


def load_saved_config(path: Path) -> TrainConfig:
    """Reads back what `to_yaml` wrote: all of it is there, and the weights that it began with need not be any more."""
    return _checked(read(str(path)), None)


def to_yaml(config: TrainConfig) -> str:
    """The resolved config; `load_saved_config` reads it back as it was."""
    return OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config)))


def check_vocab(config: TrainConfig, tokenizer_vocab_size: int) -> None:
    """Raises ConfigError when the tokenizer has ids that the model has no embedding for."""
    if config.model.vocab_size < tokenizer_vocab_size:
        raise ConfigError(
            f"is {config.model.vocab_size}, but the tokenizer has {tokenizer_vocab_size} tokens: write at least "
            f"{math.ceil(tokenizer_vocab_size / 64) * 64}",
            key="model.vocab_size",
        )


class _Hints(KeyHints):
    """LLM Foundry's keys and values."""

    def ignores(self, key: str, value: object) -> bool:
        rule = llm_foundry.rule_for(key)
        return rule is not None and llm_foundry.accepted(rule, value)

    def unknown(self, key: str, value: object) -> str | None:
        return llm_foundry.instead_of_key(key, value)

    def invalid(self, key: str, value: object) -> str | None:
        return llm_foundry.instead_of(key, value)


def _checked(written: Written, pretrained: Pretrained | None) -> TrainConfig:
    tree = with_values(written.tree, pretrained)
    plain, unresolved = resolve(tree)
    builder = Builder(TrainConfig, _Hints())
    config = builder.build({key: value for key, value in plain.items() if key != VARIABLES})
    if pretrained is PENDING:
        config = without_unwritten(config, tree)
    dangling = list(_dangling(unresolved, builder, pending=pretrained is PENDING))
    defects = builder.defects + check(config) + (dangling or unused_variables(tree))
    if pretrained is None:
        defects += unnamed_weights(written.tree)
    elif pretrained is not PENDING:
        defects += contradicting_weights(written.tree, pretrained)
    errors = [ConfigError(defect.text, key=defect.key or None) for defect in defects]
    if missing := [key for key in builder.missing if key not in builder.misspelt]:
        errors.append(ConfigError(f"missing: {', '.join(missing)}"))
    if errors:
        raise written.placed(ConfigErrors(errors))
    return config


def _dangling(unresolved: Collection[Unresolved], builder: Builder, *, pending: bool) -> Iterator[Defect]:
    """References that lead nowhere, without those whose reason is reported anyway: a missing or misspelt key."""
    reported = {reference.defect.key for reference in unresolved} | {*builder.missing, *builder.misspelt}
    if pending:
        reported |= {f"model.{key}" for key in known_paths(ModelConfig)}
    for reference in unresolved:
        wanted = reference.wanted
        if wanted is None or not any(wanted == key or wanted.startswith(f"{key}.") for key in reported):
            yield reference.defect
