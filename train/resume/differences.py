"""Compare two configs by key. Different spellings of the same value, such as 1gb and 1024mb, do not count as a
difference."""

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, get_args, get_origin

from data.base.durations import parse_duration
from data.base.errors import yaml_of
from data.base.sizes import parse_bytes
from data.config.sections import Check, Section, field_checks, hints_of, join
from data.config.suggest import is_section, options_of
from data.config.values import DurationText, PathText, PositiveDuration, Size
from data.secrets.names import is_secret_name
from data.secrets.redaction import is_address, redacted, without_secrets
from train.models.config import LORA_TARGETS

_LONGEST_SHOWN = 160


class _Absent:
    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()
"""A placeholder for the value of a stream or list item that exists in only one of the two configs."""


@dataclass(frozen=True)
class Difference:
    """A key whose value differs between two configs."""

    key: str
    """The dotted key: `train_loader.dataset.streams.web.split`, `train_loader.stages[1].duration`."""
    pattern: str
    """The key in the notation of known_paths, with NAME in place of names and [0] in place of indices."""
    was: Any
    now: Any

    def __str__(self) -> str:
        return f"was {shown(self.was)}, now {shown(self.now)}"


def differences(was: Section, now: Section) -> list[Difference]:
    """Return the differences in the order of the schema. A section that exists in only one of the configs counts as a
    single difference."""
    return list(_of_sections(was, now, "", ""))


def shown(value: Any) -> str:
    """Format a value as YAML on one line, without credentials and without default values."""
    if value is ABSENT:
        return "absent"
    text = redacted(yaml_of(_written(value)))
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


def _of_sections(was: Section, now: Section, key: str, pattern: str) -> Iterator[Difference]:
    checks = field_checks(type(now))
    for name, hint in hints_of(type(now)).items():
        if is_secret_name(name):
            continue  # secrets are not part of a saved config, and it does not matter how they are provided
        pair = getattr(was, name), getattr(now, name)
        yield from _of_values(pair, join(key, name), join(pattern, name), hint, checks.get(name, ()))


def _of_values(
    pair: tuple[Any, Any], key: str, pattern: str, hint: Any, checks: tuple[Check, ...]
) -> Iterator[Difference]:
    was, now = pair
    if isinstance(was, Section) and isinstance(now, Section):
        yield from _of_sections(was, now, key, pattern)
    elif isinstance(was, dict) and isinstance(now, dict):
        for name in dict.fromkeys([*was, *now]):
            items = was.get(name, ABSENT), now.get(name, ABSENT)
            yield from _of_values(items, join(key, name), join(pattern, "NAME"), Any, checks)
    elif isinstance(was, list) and isinstance(now, list) and _is_of_sections(hint):
        for number, items in enumerate(itertools.zip_longest(was, now, fillvalue=ABSENT)):
            yield from _of_values(items, f"{key}[{number}]", f"{pattern}[0]", Any, checks)
    elif _meaning(was, pattern, checks) != _meaning(now, pattern, checks):
        yield Difference(key, pattern, was, now)


def _is_of_sections(hint: Any) -> bool:
    return any(get_origin(option) is list and is_section(get_args(option)[0]) for option in options_of(hint))


def _meaning(value: Any, pattern: str, checks: tuple[Check, ...]) -> Any:
    """Convert a value to a canonical form, which is the same for all spellings of the value."""
    if isinstance(value, list):
        meant = [_meaning(item, "", checks) for item in value]
        value = meant[0] if len(meant) == 1 and isinstance(value[0], str) else meant
    elif isinstance(value, str):
        value = without_secrets(value).text
        meanings = [_OF_CHECKS[check] for check in checks if check in _OF_CHECKS]
        for meaning in meanings:
            value = meaning(value)
    of_key = _OF_KEYS.get(pattern)
    return value if of_key is None else of_key(value)


def _path(text: str) -> str:
    return text.rstrip("/") if is_address(text) else os.path.realpath(text)


def _paths(value: Any) -> Any:
    if isinstance(value, list):
        return [_paths(item) for item in value]
    return _path(value) if isinstance(value, str) else value


def _targets(names: Any) -> Any:
    names = [names] if isinstance(names, str) else names
    return {target for name in names for target in LORA_TARGETS[name]} if isinstance(names, list) else names


_OF_CHECKS: dict[Check, Callable[[str], Any]] = {
    get_args(PathText)[1]: _path,
    get_args(Size)[1]: parse_bytes,
    get_args(DurationText)[1]: parse_duration,
    get_args(PositiveDuration)[1]: parse_duration,
}
_OF_KEYS: dict[str, Callable[[Any], Any]] = {
    "fsdp_config.activation_checkpointing": lambda value: {True: "block", False: "none"}.get(value, value),
    "lora.target_modules": _targets,
    "model.pretrained_model_name_or_path": _paths,
    "tokenizer.chat_template_drops": lambda drops: sorted(drops) if isinstance(drops, list) else [drops],
    "train_loader.dataset.cache_limit": lambda size: None if size is None else parse_bytes(size),
    **{
        f"{loader}.dataset{place}.hf_kwargs.data_files{split}": _paths
        for loader in ("train_loader", "eval_loader")
        for place in ("", ".streams.NAME")
        for split in ("", ".NAME")
    },
}


def _written(value: Any) -> Any:
    """Convert a value to plain values. Keys of sections are omitted if they have their default values."""
    if isinstance(value, Section):
        items = {name: getattr(value, name) for name in (field.name for field in fields(value))}  # pyright: ignore[reportArgumentType]
        kept = {name: item for name, item in items.items() if not _is_default(value, name, item)}
        return {name: _written(item) for name, item in kept.items()}
    if isinstance(value, dict):
        return {name: _written(item) for name, item in value.items()}
    return [_written(item) for item in value] if isinstance(value, list) else value


def _is_default(section: Section, name: str, value: Any) -> bool:
    (field,) = (field for field in fields(section) if field.name == name)  # pyright: ignore[reportArgumentType]
    made = field.default_factory() if callable(field.default_factory) else field.default
    return made == value
