"""Read a config: build a TrainConfig from a YAML file and `key=value` overrides, or raise a ConfigError with all
problems."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.base.errors import ConfigError, ConfigErrors
from data.config.build import UNRESOLVED, Builder, KeyHints
from data.config.sections import Defect, check, is_within
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
    without_references,
    without_unwritten,
)
from train.config.reading.other_names import other_name
from train.config.reading.yaml_file import Written, read
from train.config.redaction import saved_yaml
from train.config.schema import TrainConfig
from train.hf.repository import read_values
from train.models.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class LoadedConfig:
    """A config that has been checked. The weights, data and tokenizer that it refers to have not been read yet."""

    config: TrainConfig
    """The config, without the values that come from the pretrained model's config.json. Reading one of these values
    raises Unavailable."""
    written: Written

    def placed(self, error: ConfigError) -> ConfigError:
        """Return the error with its problems in the order of the file, and with file and line added to each problem
        that has a key."""
        return self.written.placed(error)


def load_config(path: str, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Read the YAML at `path`, apply `key=value` overrides, and check the result. Does not access the hub.

    Raises ConfigError with all problems, in the order of the file.
    """
    written = read(path, overrides)
    pretrained = PENDING if pretrained_name(written.tree) is not None else None
    try:
        return LoadedConfig(config=_checked(written, pretrained), written=written)
    except ConfigError as error:
        raise written.placed(error) from None


def resolve_pretrained(loaded: LoadedConfig) -> TrainConfig:
    """Return the config with the values from the pretrained model's config.json, which is in a folder or on the hub.

    Raises ConfigError for weights that cannot be used, or that contradict the config. The error has no file and line,
    so that it can be reported together with other problems (see LoadedConfig.placed).
    """
    name = pretrained_name(loaded.written.tree)
    if name is None:
        return loaded.config
    values, place = read_values(name)
    return _checked(loaded.written, Pretrained(values=values, place=place))


def read_config(path: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """Call load_config and resolve_pretrained, and return the config."""
    loaded = load_config(path, overrides)
    try:
        return resolve_pretrained(loaded)
    except ConfigError as error:
        raise loaded.placed(error) from None


def load_saved_config(path: Path) -> TrainConfig:
    """Read a config that `to_yaml` wrote. The saved config is complete, so the config.json of pretrained weights is not
    needed."""
    written = read(str(path))
    try:
        return _checked(written, None)
    except ConfigError as error:
        raise written.placed(error) from None


def to_yaml(config: TrainConfig) -> str:
    """Return the resolved config as YAML, without secrets. `load_saved_config` restores all other values."""
    return saved_yaml(config)


def check_vocab(config: TrainConfig, tokenizer_vocab_size: int) -> None:
    """Raise ConfigError if the tokenizer has ids for which the model has no embedding."""
    if config.model.vocab_size < tokenizer_vocab_size:
        raise ConfigError(
            f"is {config.model.vocab_size}, but the tokenizer has {tokenizer_vocab_size} tokens: set it to at least "
            f"{math.ceil(tokenizer_vocab_size / 64) * 64}",
            key="model.vocab_size",
        )


_KEYS = frozenset(known_paths(TrainConfig))
_VALUES_FROM = {"model.preset", "model.pretrained_model_name_or_path"}


class _Hints(KeyHints):
    """Hints for LLM Foundry's keys and values, and for the names that other frameworks use for keys."""

    def names(self, section: str) -> list[str]:
        return [] if section else [VARIABLES]

    def ignores(self, key: str, value: object) -> bool:
        rule = llm_foundry.rule_for(key)
        return rule is not None and (value is UNRESOLVED or llm_foundry.accepted(rule, value))

    def unknown(self, key: str, value: object) -> str | None:
        return llm_foundry.instead_of_key(key, value) or other_name(key)

    def invalid(self, key: str, value: object) -> str | None:
        return llm_foundry.instead_of(key, value)


def _checked(written: Written, pretrained: Pretrained | None) -> TrainConfig:
    base = without_references(written.tree)
    tree = with_values(base, pretrained)
    plain, unresolved = resolve(tree, _KEYS)
    builder = Builder(TrainConfig, _Hints())
    config = builder.build({key: value for key, value in plain.items() if key != VARIABLES})
    pending = pretrained is PENDING
    # If model.preset or model.pretrained_model_name_or_path is misspelt or invalid, the values that it would set are
    # unknown too.
    if pending or not _VALUES_FROM.isdisjoint(builder.invalid | builder.misspelt):
        config = without_unwritten(config, tree)
    defects = builder.defects + check(config) + _dangling(unresolved, builder, pending=pending)
    defects += unused_variables(written.tree)
    if pretrained is None:
        defects += unnamed_weights(base)
    elif not pending:
        defects += contradicting_weights(base, pretrained)
    errors = [ConfigError(defect.text, key=defect.key or None) for defect in defects]
    if missing := [key for key in builder.missing if not is_within(key, builder.misspelt)]:
        errors.append(ConfigError(f"missing: {', '.join(missing)}"))
    if errors:
        raise ConfigErrors(errors)
    return config


def _dangling(unresolved: Collection[Unresolved], builder: Builder, *, pending: bool) -> list[Defect]:
    """Return defects for unresolved references, except for references that fail because of a problem that is reported
    separately: a missing or misspelt key, or another unresolved reference."""
    reported = {*builder.missing, *builder.misspelt}
    if pending:
        reported |= {f"model.{key}" for key in known_paths(ModelConfig)}
    left = [reference for reference in unresolved if not is_within(reference.defect.key, builder.unknown)]
    # First, find the references that do not refer to another unresolved reference.
    roots = [one for one in left if not one.refers_to(other.defect.key for other in left if other is not one)]
    defects = [one.defect for one in roots if not one.refers_to(reported)]
    reported |= {one.defect.key for one in roots}
    left = [one for one in left if one not in roots]
    while follows := [one for one in left if one.refers_to(reported)]:
        reported |= {one.defect.key for one in follows}
        left = [one for one in left if one not in follows]
    return defects + [one.defect for one in left]  # the remaining references form a cycle
