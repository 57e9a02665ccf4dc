"""The keys of a config as a JSON schema for editors, and the explanation of a single key."""

import dataclasses
import functools
import json
import re
import textwrap
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args, get_origin

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from data.base.errors import ConfigError
from data.config.sections import Section, field_checks, hints_of, join
from data.config.suggest import describe, intended_key, is_section, options_of
from data.config.values import REFERENCE
from train.config import llm_foundry
from train.config.reading.interpolation import VARIABLES
from train.config.schema import TrainConfig

_VARIABLES = "Values that other keys can refer to as ${variables.NAME}."


class _Generator(GenerateJsonSchema):
    """pydantic's generator, extended to allow a reference such as `${max_seq_len}` in place of any value."""

    def int_schema(self, schema: Any) -> dict[str, Any]:
        return _or_reference(super().int_schema(schema))

    def float_schema(self, schema: Any) -> dict[str, Any]:
        return _or_reference(super().float_schema(schema))

    def bool_schema(self, schema: Any) -> dict[str, Any]:
        return _or_reference(super().bool_schema(schema))

    def list_schema(self, schema: Any) -> dict[str, Any]:
        return _or_reference(super().list_schema(schema))

    def dict_schema(self, schema: Any) -> dict[str, Any]:
        return _or_reference(super().dict_schema(schema))

    def literal_schema(self, schema: Any) -> dict[str, Any]:
        return {"anyOf": [super().literal_schema(schema), {"type": "string", "pattern": REFERENCE}]}


def _or_reference(schema: dict[str, Any], *more: str) -> dict[str, Any]:
    # One schema with two types, because editors give better hints for it than for alternatives.
    return schema | {"type": [schema["type"], *more, "string"], "pattern": REFERENCE}


@functools.cache
def json_schema() -> dict[str, Any]:
    """The schema of a whole config (draft 2020-12), with the documentation and the default of each key."""
    schema = TypeAdapter(TrainConfig).json_schema(schema_generator=_Generator)
    sections = {cls.__name__: cls for _, cls in _sections(TrainConfig)}
    definitions = schema["$defs"] | {TrainConfig.__name__: schema}
    for name, cls in sections.items():
        _complete(definitions[name], cls, definitions)
    for path, cls in _sections(TrainConfig):
        _add_ignored(definitions[cls.__name__]["properties"], path)
    schema["properties"][VARIABLES] = {"type": ["object", "null"], "default": None, "description": _VARIABLES}
    schema["title"] = "A run of Dropless"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def _complete(definition: dict[str, Any], cls: type[Section], definitions: dict[str, Any]) -> None:
    definition.pop("title", None)
    if cls is not TrainConfig:
        # An empty section uses its defaults.
        definition.update(_or_reference(definition, *([] if "required" in definition else ["null"])))
    for field in dataclasses.fields(cls):  # pyright: ignore[reportArgumentType]
        key = definition["properties"][field.name]
        key.pop("title", None)
        if field.default_factory is not dataclasses.MISSING:
            made = field.default_factory()
            key["default"] = {} if isinstance(made, Section) else made
        section = next(filter(is_section, options_of(hints_of(cls)[field.name])), None)
        if "description" not in key and section is not None:
            key["description"] = definitions[section.__name__]["description"]
    for base in cls.__mro__[1:]:
        if dataclasses.is_dataclass(base):  # pydantic only finds the docstrings of the class itself
            for name, inherited in TypeAdapter(base).json_schema()["properties"].items():
                definition["properties"][name].setdefault("description", inherited.get("description"))


def _add_ignored(keys: dict[str, Any], path: str) -> None:
    """Add LLM Foundry's keys that are ignored if their value is what this framework always does."""
    for pattern, rule in llm_foundry.RULES.items():
        above, _, name = pattern.rpartition(".")
        here = fnmatchcase(path, above) if path else not above
        if rule.accepts and "*" not in name and here:
            ignored = keys.setdefault(name, {"enum": [], "deprecated": True, "description": rule.hint})
            # Sections of the same class may accept different values.
            ignored["enum"] += [value for value in rule.accepts if value not in ignored["enum"]]


def _sections(hint: Any, path: str = "") -> Iterator[tuple[str, type[Section]]]:
    """Every section, with its path."""
    for option in options_of(hint):
        if is_section(option):
            yield path, option
            for name, below in hints_of(option).items():
                yield from _sections(below, join(path, name))
        elif get_origin(option) in (list, dict):
            yield from _sections(get_args(option)[-1], join(path, "NAME"))


def explain(path: str) -> str:
    """The type, default and documentation of the key at `path`, or the keys if it is a section.

    Raises ConfigError for an unknown key.
    """
    cls, name, hint, key, is_item = TrainConfig, "", TrainConfig, "", False
    parts = re.findall(r"[^.\[\]]+", path)
    if not parts:
        raise ConfigError(f"{path!r} is not a key, such as train_loader.dataset.excess_length")
    if parts == [VARIABLES]:
        return f"{VARIABLES}\n  {_VARIABLES}"
    for part in parts:
        option = next((option for option in options_of(hint) if is_section(option) or get_origin(option)), None)
        if option is None or get_origin(option) is Literal:
            raise ConfigError("has no keys below it", key=key)
        if get_origin(option) in (list, dict):
            hint, key, is_item = get_args(option)[-1], join(key, part), True
        elif part in hints_of(option):
            cls, name, hint, key, is_item = option, part, hints_of(option)[part], join(key, part), False
        else:
            rule = llm_foundry.rule_for(join(key, part))
            hint = f": {rule.hint}" if rule else intended_key(TrainConfig, part, key, list(hints_of(option)))[1]
            raise ConfigError(f"is not a key{hint}", key=join(key, part))
    return "\n".join(_explained(path, cls, name, hint, is_item=is_item))


def _explained(path: str, cls: type[Section], name: str, hint: Any, *, is_item: bool) -> Iterator[str]:
    schema = json_schema()
    definition = schema if cls is TrainConfig else schema["$defs"][cls.__name__]
    key = definition["properties"][name]
    bounds = [] if is_item else [text for check in field_checks(cls).get(name, ()) if (text := check.described())]
    null = " or null" if type(None) in get_args(hint) else ""
    yield path
    yield f"  type     {', '.join([describe(hint) + null, *bounds])}"
    if not is_item:
        yield f"  default  {json.dumps(key['default']) if 'default' in key else 'none: the key is required'}"
    yield textwrap.indent(textwrap.fill(" ".join(key["description"].split()), 98), "  ")
    section = next(filter(is_section, options_of(hint)), None)
    if section is not None:
        yield f"  keys     {', '.join(hints_of(section)) or 'none'}"
