"""The keys of a config's sections as tables in Markdown, for pages of the documentation."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import TypeAdapter

from data.config.sections import Section, field_checks, hints_of
from data.config.suggest import describe, is_section, options_of

Link = Callable[[type[Section]], str]
"""Returns a link to the table of a section."""


def key_table(cls: type[Section], definitions: Mapping[str, Any], link: Link) -> Iterator[str]:
    """Yield the lines of a table with a row for each key. definitions: the `properties` in the section's JSON
    schema."""
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    for name, hint in hints_of(cls).items():
        key = definitions[name]
        yield table_row(f"`{name}`", _type_cell(cls, name, hint, link), default_cell(key), prose(key["description"]))


def complete_properties(properties: dict[str, Any], cls: type[Section]) -> None:
    """Add to the `properties` of pydantic's JSON schema what pydantic omits: defaults of default factories, and the
    documentation of inherited keys. Titles are removed."""
    for field in dataclasses.fields(cls):  # pyright: ignore[reportArgumentType]
        properties[field.name].pop("title", None)
        if field.default_factory is not dataclasses.MISSING:
            made = field.default_factory()
            properties[field.name]["default"] = {} if isinstance(made, Section) else made
    for base in cls.__mro__[1:]:
        if dataclasses.is_dataclass(base):
            for name, inherited in TypeAdapter(base).json_schema()["properties"].items():
                if "description" in inherited:
                    properties[name].setdefault("description", inherited["description"])


def table_row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def default_cell(key: Mapping[str, Any]) -> str:
    """The default in the JSON schema of a key."""
    return f"`{_cell(json.dumps(key['default']))}`" if "default" in key else "**required**"


def prose(text: str) -> str:
    """A documentation string as one line of Markdown. Code in backticks is not escaped."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return _cell("".join(part if part.startswith("`") else _escaped(part) for part in parts))


def section_of(hint: Any) -> type[Section] | None:
    """The first section in a union; None if there is none."""
    return next(filter(is_section, options_of(hint)), None)


def bounds_of(cls: type[Section], name: str) -> list[str]:
    """Descriptions of the valid values of a field, in addition to its type."""
    return [text for check in field_checks(cls).get(name, ()) if (text := check.described())]


def _type_cell(cls: type[Section], name: str, hint: Any, link: Link) -> str:
    options = [_type_option(option, link) for option in options_of(hint)]
    if type(None) in get_args(hint):
        options.append("`null`")
    return _cell("; ".join([" or ".join(options), *bounds_of(cls, name)]))


def _type_option(option: Any, link: Link) -> str:
    if get_origin(option) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(option))
    if is_section(option):
        return f"section {link(option)}"
    if get_origin(option) in (list, dict):
        section = section_of(get_args(option)[-1])
        if section is not None:
            return f"{'list' if get_origin(option) is list else 'mapping'} of sections {link(section)}"
    return describe(option)


def _escaped(text: str) -> str:
    text = re.sub(r"([*\[\]])", r"\\\1", text).replace("<", "&lt;")
    return re.sub(r"docs/([\w-]+\.md(#[\w-]+)?)", r"[\1](\1)", text)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
