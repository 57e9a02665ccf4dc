"""The keys of a config: a JSON schema for editors, an explanation of a single key, and the page docs/keys.md."""

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
from data.config.markdown import bounds_of, complete_properties, default_cell, key_table, prose, section_of, table_row
from data.config.sections import Section, hints_of, join
from data.config.suggest import describe, intended_key, is_section, options_of
from data.config.values import REFERENCE
from train.config import llm_foundry
from train.config.reading.interpolation import VARIABLES
from train.config.schema import TrainConfig

_KEYS_PAGE = """\
# Configuration keys

This page lists every key that a YAML file may contain, with its type, default and meaning. The page is generated from
the configuration dataclasses: `python train.py --keys > docs/keys.md`. `python train.py --explain KEY` shows the same
text for one key. `python train.py --schema` prints all keys as a JSON schema, which editors can use.

- `NAME` in a heading is a name that you choose, such as the name of a stream. `[]` means that the key is a list.
- A key without a default is **required**. A section that has a default may be omitted.
- On the command line, write the full path of a key: `optimizer.lr=1e-4`.
- Durations have a unit: `10ba` (batches), `500tok` (tokens), `2ep` (epochs), `0.1dur` (a fraction of `max_duration`).
- LLM Foundry's keys that have no effect in Dropless are listed in [Coming from LLM Foundry](llm-foundry.md).
"""

_VARIABLES = "Values that other keys can refer to as `${variables.NAME}`."


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
    # A single schema with two types is used instead of `anyOf`, because editors show better hints for such a schema.
    return schema | {"type": [schema["type"], *more, "string"], "pattern": REFERENCE}


@functools.cache
def json_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of the whole config, with the documentation and the default of each
    key."""
    schema = TypeAdapter(TrainConfig).json_schema(schema_generator=_Generator)
    classes = {cls.__name__: cls for _, cls in _sections(TrainConfig)}
    definitions = schema["$defs"] | {TrainConfig.__name__: schema}
    for name, cls in classes.items():
        _complete(definitions[name], cls, definitions)
    for path, cls in _sections(TrainConfig):
        _add_ignored(definitions[cls.__name__]["properties"], path)
    schema["properties"][VARIABLES] = {"type": ["object", "null"], "default": None, "description": _VARIABLES}
    schema["title"] = "A run of Dropless"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def _complete(definition: dict[str, Any], cls: type[Section], definitions: dict[str, Any]) -> None:
    definition.pop("title", None)
    if cls is not TrainConfig:
        # In YAML, an empty section is null. Such a section uses its defaults.
        definition.update(_or_reference(definition, *([] if "required" in definition else ["null"])))
    complete_properties(definition["properties"], cls)
    for name, hint in hints_of(cls).items():
        key, section = definition["properties"][name], section_of(hint)
        if "description" not in key and section is not None:
            key["description"] = definitions[section.__name__]["description"]


def _add_ignored(keys: dict[str, Any], path: str) -> None:
    """Add the keys of LLM Foundry that are ignored because the accepted values describe what this framework always
    does."""
    for pattern, rule in llm_foundry.RULES.items():
        above, _, name = pattern.rpartition(".")
        here = fnmatchcase(path, above) if path else not above
        if rule.accepts and "*" not in name and here:
            ignored = keys.setdefault(name, {"enum": [], "deprecated": True, "description": rule.hint})
            # Several sections may have this class, but accept different values for the key.
            ignored["enum"] += [value for value in rule.accepts if value not in ignored["enum"]]


def _sections(hint: Any, path: str = "") -> Iterator[tuple[str, type[Section]]]:
    """Yield the path and the class of every section. NAME is any key of a mapping, [] any item of a list."""
    for option in options_of(hint):
        if is_section(option):
            yield path, option
            for name, below in hints_of(option).items():
                yield from _sections(below, join(path, name))
        elif get_origin(option) in (list, dict):
            below = f"{path}[]" if get_origin(option) is list else join(path, "NAME")
            yield from _sections(get_args(option)[-1], below)


def explain(path: str) -> str:
    """Return the type, default and documentation of the key at `path`. If the key is a section, also list its keys.

    Raises ConfigError for an unknown key.
    """
    cls, name, hint, key, is_item = TrainConfig, "", TrainConfig, "", False
    parts = re.findall(r"[^.\[\]]+", path)
    if not parts:
        raise ConfigError(f"{path!r} is not a key: specify a key such as train_loader.dataset.excess_length")
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
    key = _definition(cls)["properties"][name]
    bounds = [] if is_item else bounds_of(cls, name)
    null = " or null" if type(None) in get_args(hint) else ""
    yield path
    yield f"  type     {', '.join([describe(hint) + null, *bounds])}"
    if not is_item:
        yield f"  default  {json.dumps(key['default']) if 'default' in key else 'none: the key is required'}"
    yield textwrap.indent(textwrap.fill(" ".join(key["description"].split()), 98), "  ")
    section = section_of(hint)
    if section is not None:
        yield f"  keys     {', '.join(hints_of(section)) or 'none'}"


def _definition(cls: type[Section]) -> dict[str, Any]:
    schema = json_schema()
    return schema if cls is TrainConfig else schema["$defs"][cls.__name__]


def key_reference() -> str:
    """Return the page docs/keys.md. If several sections have the same class, only the first of them has a table."""
    parts = [_KEYS_PAGE]
    for path, cls in _sections(TrainConfig):
        if path == _first_paths()[cls]:
            parts.append("\n".join(_section_of_page(path, cls)))
        elif "." not in path:
            parts.append(f"{_heading(path)}\n\nThe same keys as {_link(cls)}.\n")
    return "\n".join(parts)


@functools.cache
def _first_paths() -> dict[type[Section], str]:
    paths: dict[type[Section], str] = {}
    for path, cls in _sections(TrainConfig):
        paths.setdefault(cls, path)
    return paths


def _section_of_page(path: str, cls: type[Section]) -> Iterator[str]:
    definition = _definition(cls)
    yield f"{_heading(path)}\n"
    if cls is not TrainConfig:
        yield f"{prose(definition['description'])}\n"
    if not hints_of(cls):
        yield f"`{path}` has no keys: write `{path}: {{}}`.\n"
        return
    yield from key_table(cls, definition["properties"], _link)
    if cls is TrainConfig:
        key = definition["properties"][VARIABLES]
        yield table_row(f"`{VARIABLES}`", "a mapping", default_cell(key), prose(key["description"]))
    yield ""


def _heading(path: str) -> str:
    return f"{'#' * min(path.count('.') + 2, 4)} {path or 'Top level'}"


def _link(cls: type[Section]) -> str:
    """A link to the heading of the section's table. As on GitHub, anchors contain no dots or brackets."""
    path = _first_paths()[cls]
    return f"[{path.replace('[]', '')}](#{re.sub(r'[^a-z0-9_]', '', path.lower())})"
