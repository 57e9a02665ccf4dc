"""Convert plain values (mappings, lists, scalars) to sections. pydantic checks the types, and all problems are reported
together.

Values are passed to pydantic as JSON, which has the same types as YAML, because pydantic's strict mode accepts mappings
as dataclasses only in JSON.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from data.base.paths import is_unicode
from data.config.sections import Defect, Section, check, has_partial, hints_of, join, partial, raise_defects, unchecked
from data.config.suggest import describe, fix_of_value, intended_key, is_section, options_of, show


class _Unresolved:
    def __repr__(self) -> str:
        return "${...}"

    def __deepcopy__(self, memo: object) -> "_Unresolved":
        return self


UNRESOLVED = _Unresolved()
"""Placeholder for a value that is unknown because of a problem that is reported elsewhere."""

_OMITTED = object()

S = TypeVar("S", bound=Section)


class KeyHints:
    """Hints for unknown keys and invalid values of a section. The base class has no hints."""

    def names(self, section: str) -> list[str]:
        """Additional keys that are allowed in a section and are handled by the caller."""
        return []

    def ignores(self, key: str, value: object) -> bool:
        """Whether to ignore an unknown key because its value requests the default behavior."""
        return False

    def unknown(self, key: str, value: object) -> str | None:
        """The message about an unknown key, which can be appended to the name of the key; None for the default
        message."""
        return None

    def invalid(self, key: str, value: object) -> str | None:
        """The fix for a value of the wrong type; None for the default message."""
        return None


def build(cls: type[S], values: Mapping[str, Any], key: str = "") -> S:
    """Create a section from plain values. Raises ConfigError with all problems. `key` is prepended to the keys in
    messages."""
    builder = Builder(cls, KeyHints())
    section = builder.build(values, key)
    missing = [Defect(name, "is missing") for name in builder.missing]
    raise_defects([*builder.defects, *missing, *check(section, key)])
    return section


class Builder:
    """Creates a section without checking its rules, and collects unknown keys and values of the wrong type."""

    def __init__(self, cls: type[Section], hints: KeyHints) -> None:
        self.cls, self.hints = cls, hints
        self.defects: list[Defect] = []
        self.missing: list[str] = []
        """Required keys that are missing."""
        self.unknown: set[str] = set()
        self.misspelt: set[str] = set()
        """Valid keys that the user probably meant when writing the unknown keys."""
        self.invalid: set[str] = set()
        """Keys whose values have the wrong type or are UNRESOLVED."""

    def build(self, values: Mapping[str, Any], key: str = "") -> Any:
        """The complete section, or a partial section (see sections.py) if something is invalid."""
        tree = self._cleaned(self.cls, dict(values), key)
        try:
            with unchecked():
                whole = _adapter(self.cls).validate_json(json.dumps(tree, default=_stand_in))
            if not self.invalid:
                return whole
        except ValidationError as error:
            for found in error.errors(include_url=False, include_context=False, include_input=False):
                self._note(found["type"], found["loc"], tree, key)
        return self._valid_part(self.cls, tree, key)

    def _cleaned(self, hint: Any, value: Any, key: str) -> Any:
        """Remove ignored keys and keys whose value is not filled in yet (`???`), and convert an empty section to an
        empty mapping."""
        if value is UNRESOLVED:
            self.invalid.add(key)
        options = options_of(hint)
        section = next(filter(is_section, options), None)
        if section is not None and value is None and options == [hint]:
            value = {}
        if isinstance(value, dict):
            if section is None:
                below = _item_hint(options, dict)
                return {str(name): self._cleaned(below, item, join(key, name)) for name, item in value.items()}
            hints = hints_of(section)
            return {
                str(name): self._cleaned(hints.get(name, Any), item, join(key, name))
                for name, item in value.items()
                if self._is_kept(str(name), item, key, known=name in hints)
            }
        if isinstance(value, list):
            below = _item_hint(options, list)
            return [self._cleaned(below, item, f"{key}[{index}]") for index, item in enumerate(value)]
        if isinstance(value, str) and not is_unicode(value):
            self.invalid.add(key)
            self.defects.append(Defect(key, f"is {show(value)}, which is not UTF-8: write the value in UTF-8"))
            return ""
        if not isinstance(value, str | int | float | None) and value is not UNRESOLVED:
            self._note_wrong_type(hint, value, key)
            return None
        return value

    def _is_kept(self, name: str, value: object, section: str, *, known: bool) -> bool:
        """Whether the key is kept: a known key with a value, or an unknown key that is not ignored and will be
        reported."""
        if not is_unicode(name):
            self.defects.append(
                Defect(section, f"has the key {show(name)}, which is not UTF-8: write the key in UTF-8")
            )
            return False
        return value != "???" if known else not self.hints.ignores(join(section, name), value)

    def _note(self, kind: str, place: Sequence[int | str], tree: Any, key: str) -> None:
        """Record an error that pydantic reported for a location in the tree."""
        hint, value = self.cls, tree
        for step in place:
            options = options_of(hint)
            if len(options) > 1:
                matching = [option for option in options if _takes(option, value)]
                if len(matching) != 1:
                    break
                if not str(step).startswith(matching[0].__name__):
                    return  # the error is about another type of the union, which pydantic also tried
                hint = matching[0]
                continue
            option = options[0]
            if is_section(option):
                name = str(step)
                if kind == "unexpected_keyword_argument" and name not in hints_of(option):
                    self._note_unknown(name, value[name], key, list(hints_of(option)))
                    return
                hint, value, key = hints_of(option)[name], value.get(name), join(key, name)
            elif get_origin(option) is list:
                hint, value, key = get_args(option)[0], value[int(step)], f"{key}[{step}]"
            else:
                hint, value, key = get_args(option)[1], value[step], join(key, step)
        if kind == "missing":
            self.missing += _required_below(hint, key)
        elif key not in self.invalid:
            self._note_wrong_type(hint, value, key)

    def _note_unknown(self, name: str, value: object, section: str, names: list[str]) -> None:
        key = join(section, name)
        self.unknown.add(key)
        text = self.hints.unknown(key, value)
        if text is None:
            meant, hint = intended_key(self.cls, name, section, [*names, *self.hints.names(section)])
            text = f"is not a key{hint}"
            self.misspelt |= {meant} if meant is not None else set()
        self.defects.append(Defect(key, text))

    def _note_wrong_type(self, hint: Any, value: object, key: str) -> None:
        self.invalid.add(key)
        instead = self.hints.invalid(key, value)
        text = f"is {show(value)}, but it must be {describe(hint)}{fix_of_value(hint, value, key)}"
        self.defects.append(Defect(key, text if instead is None else f"is {show(value)}: {instead}"))

    def _valid_part(self, hint: Any, value: Any, key: str) -> Any:
        """The value with its mappings converted to sections; _OMITTED if the value is invalid."""
        if key in self.invalid:
            return _OMITTED
        options = options_of(hint)
        section = next(filter(is_section, options), None)
        if isinstance(value, dict) and section is not None:
            return self._valid_section(section, value, key)
        parts: Any = value
        if isinstance(value, dict):
            below = _item_hint(options, dict)
            parts = {name: self._valid_item(below, item, join(key, name)) for name, item in value.items()}
        elif isinstance(value, list):
            below = _item_hint(options, list)
            parts = [self._valid_item(below, item, f"{key}[{index}]") for index, item in enumerate(value)]
        elif type(value) is int and float in options and int not in options:
            return float(value)
        items = parts.values() if isinstance(parts, dict) else parts if isinstance(parts, list) else ()
        return _OMITTED if any(item is _OMITTED for item in items) else parts

    def _valid_item(self, hint: Any, value: Any, key: str) -> Any:
        """An item of a list or mapping. An invalid section becomes an empty partial section, so that the other items
        are still checked."""
        part = self._valid_part(hint, value, key)
        return partial(hint, {}) if part is _OMITTED and is_section(hint) else part

    def _valid_section(self, cls: type[Section], values: dict[str, Any], key: str) -> Any:
        found, fields = {}, dataclasses.fields(cls)  # pyright: ignore[reportArgumentType]
        for field in fields:
            if field.name in values:
                value = self._valid_part(hints_of(cls)[field.name], values[field.name], join(key, field.name))
            elif _required(field):
                value = _OMITTED
            else:
                with unchecked():
                    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            if value is not _OMITTED:
                found[field.name] = value
        if len(found) < len(fields) or any(map(has_partial, found.values())):
            return partial(cls, found)
        with unchecked():
            return cls(**found)


@functools.cache
def _adapter(cls: type[Section]) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def _stand_in(value: object) -> None:
    """Replace UNRESOLVED with null. The null is never used, because a section with an UNRESOLVED value is always
    partial."""


def _item_hint(options: list[Any], container: type) -> Any:
    """The item type of the first option whose type is `container`; Any if there is no such option."""
    return next((get_args(option)[-1] for option in options if get_origin(option) is container), Any)


def _takes(option: Any, value: object) -> bool:
    kind = get_origin(option) or option
    if isinstance(value, dict):
        return kind is dict or is_section(kind)
    return isinstance(value, list) and kind is list


def _required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _required_below(hint: Any, key: str) -> list[str]:
    """The keys that must be set if `key` is missing: `key` itself, or the required keys of its section."""
    if not is_section(hint):
        return [key]
    fields = [field for field in dataclasses.fields(hint) if _required(field)]
    below = [_required_below(hints_of(hint)[field.name], join(key, field.name)) for field in fields]
    return [name for names in below for name in names] or [key]
