"""Sections of a config: frozen dataclasses whose values are checked.

Single values are checked by the types of their fields (values.py). Relations between fields are checked by the
section's RULES.
"""

import contextlib
import dataclasses
import functools
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import (
    Annotated,
    Any,
    ClassVar,
    NamedTuple,
    Protocol,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    runtime_checkable,
)

from data.base.errors import ConfigError, raise_together

T = TypeVar("T")

_unchecked = ContextVar("unchecked", default=False)


class Defect(NamedTuple):
    """One problem in a section."""

    key: str
    """The key, relative to the section."""
    text: str
    """The text that follows the key: `is -1, but it must be above 0`."""


@runtime_checkable
class Check(Protocol):
    """An additional check of a single value, for use in `Annotated` with its Python type."""

    def defect(self, value: object) -> str | None:
        """The text that follows the key in an error; None if the value is valid or has another Python type."""
        ...

    def described(self) -> str:
        """A description of the valid values; empty if the Python type describes them completely."""
        ...


Rule = Callable[[Any], Iterable[Defect]]
"""A function that takes a section and yields its defects. It may also read fields of nested sections."""


class Unavailable(Exception):
    """Raised when a rule reads a field whose value is missing, invalid or not known yet."""


class Section:
    """Base class of a config's dataclasses. Creating a section with invalid values raises ConfigError with all
    problems.

    The docstring below each field is the field's documentation. Defaults are defined only here.
    """

    RULES: ClassVar[tuple[Rule, ...]] = ()
    __pydantic_config__: ClassVar[dict[str, bool | str]] = {
        "extra": "forbid",
        "strict": True,
        "allow_inf_nan": False,
        "use_attribute_docstrings": True,
    }

    def __post_init__(self) -> None:
        if not _unchecked.get():
            raise_defects(check(self))


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Create sections without running their rules. The caller must call `check` on the outermost section."""
    token = _unchecked.set(True)
    try:
        yield
    finally:
        _unchecked.reset(token)


def raise_defects(defects: Iterable[Defect]) -> None:
    """Raises ConfigError if there are any defects."""
    raise_together([ConfigError(defect.text, key=defect.key or None) for defect in defects])


def partial(cls: type[Any], values: Mapping[str, Any]) -> Any:
    """Return a section that contains only these values. Reading any other field of the section raises Unavailable."""
    section = object.__new__(_partial_class(cls))
    vars(section).update(values)
    return section


def is_partial(section: object) -> bool:
    return isinstance(section, _Partial)


class _Partial:
    def __getattribute__(self, name: str) -> Any:
        # Without this check, defaults would be returned, because they are attributes of the class.
        if name in type(self).__dataclass_fields__ and name not in object.__getattribute__(self, "__dict__"):  # pyright: ignore[reportAttributeAccessIssue]
            raise Unavailable(name)
        return object.__getattribute__(self, name)


@functools.cache
def _partial_class(cls: type[Any]) -> type[Any]:
    return cls if issubclass(cls, _Partial) else type(cls.__name__, (_Partial, cls), {})


def each(items: Iterable[T], rule: Callable[[T], Iterable[Defect]]) -> Iterator[Defect]:
    """Apply a rule to each item. If an item has unavailable values, the other items are still checked."""
    for item in items:
        with contextlib.suppress(Unavailable):
            yield from rule(item)


def check(section: Section, key: str = "") -> list[Defect]:
    """All defects of a section and its nested sections. A rule is applied only if all values that it reads are
    valid."""
    found: list[Defect] = []
    _valid_part(section, key, found)
    return found


def _valid_part(value: Any, key: str, found: list[Defect]) -> Any:
    """Return the value, in which every section with invalid values is replaced with a partial section. Defects are
    added to `found`."""
    if isinstance(value, Section):
        return _valid_section(value, key, found)
    if isinstance(value, dict):
        return {name: _valid_part(item, join(key, name), found) for name, item in value.items()}
    if isinstance(value, list):
        return [_valid_part(item, f"{key}[{index}]", found) for index, item in enumerate(value)]
    return value


def _valid_section(section: Any, key: str, found: list[Defect]) -> Any:
    valid, whole = {}, not is_partial(section)
    checks = field_checks(type(section))
    for name, value in vars(section).items():
        below = join(key, name)
        text = next(filter(None, (check.defect(value) for check in checks.get(name, ()))), None)
        if text is not None:
            found.append(Defect(below, text))
            whole = False
            continue
        valid[name] = part = _valid_part(value, below, found)
        whole &= not has_partial(part)
    view = section if whole else partial(type(section), valid)
    for rule in section.RULES:
        with contextlib.suppress(Unavailable):
            for defect in rule(view):
                found.append(Defect(join(key, defect.key), defect.text))
    return view


def has_partial(value: Any) -> bool:
    """Whether the value is a partial section, or a list or mapping that contains a partial section."""
    if isinstance(value, dict | list):
        return any(map(has_partial, value.values() if isinstance(value, dict) else value))
    return is_partial(value)


@functools.cache
def hints_of(cls: type[Any]) -> dict[str, Any]:
    """Maps each field to its type, including `Annotated`."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


@functools.cache
def field_checks(cls: type[Any]) -> dict[str, tuple[Check, ...]]:
    """Maps each field that has checks to the checks in its type."""
    return {name: checks for name, hint in hints_of(cls).items() if (checks := tuple(_checks(hint)))}


def _checks(hint: Any) -> Iterator[Check]:
    if get_origin(hint) is Annotated:
        inner, *metadata = get_args(hint)
        yield from (item for item in metadata if isinstance(item, Check))
        yield from _checks(inner)
    elif get_origin(hint) in (Union, types.UnionType):
        # Each check ignores values that have a different Python type.
        yield from (check for option in get_args(hint) for check in _checks(option))


def join(key: str, name: object) -> str:
    """Join `a` and `b` as `a.b`."""
    return f"{key}.{name}" if key and name != "" else key or str(name)


def leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested mappings. Empty mappings and lists count as values."""
    if isinstance(node, Mapping) and node:
        for name, value in node.items():
            yield from leaves(value, join(key, name))
    else:
        yield key, node


def is_within(key: str, sections: Iterable[str]) -> bool:
    """Whether the key refers to one of these sections, or to a value inside one of these sections."""
    return any(key == section or key.startswith((f"{section}.", f"{section}[")) for section in sections)
