"""Suggestions for errors about keys and values: the most similar key, the right section for a key, valid values."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from data.base.errors import setting
from data.base.paths import shown
from data.config.sections import Section, hints_of, join


def plain(hint: Any) -> Any:
    """The type without `Annotated`."""
    return plain(get_args(hint)[0]) if get_origin(hint) is Annotated else hint


def options_of(hint: Any) -> list[Any]:
    """The types of a union, flattened and without None; for any other type, the type itself."""
    hint = plain(hint)
    if get_origin(hint) not in (Union, UnionType):
        return [hint]
    return [option for arg in get_args(hint) if arg is not type(None) for option in options_of(arg)]


def is_section(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Section)


def show(value: object) -> str:
    """The value in YAML, shortened to a readable length."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return shown(value)


_WORDS = {int: "an integer", float: "a finite number", bool: "true or false", str: "a string"}
_MANY = {int: "integers", float: "numbers", str: "strings"}


def describe(hint: Any) -> str:
    """A description of the values that this type allows."""
    options = options_of(hint)
    if len(options) > 1:
        return " or ".join(map(describe, options))
    option = options[0]
    if get_origin(option) is Literal:
        return " or ".join(map(str, get_args(option)))
    if get_origin(option) is list:
        item = options_of(get_args(option)[0])[0]
        if get_origin(item) is Literal:
            return f"a list with items from {', '.join(map(str, get_args(item)))}"
        return f"a list of {_MANY.get(item, 'mappings')}"
    return _WORDS.get(option, "a mapping")


def fix_of_value(hint: Any, value: object, key: str) -> str:
    """A suggested value, or a description of how to write a valid value; empty if there is no suggestion."""
    options = options_of(hint)
    choices = [choice for option in options if get_origin(option) is Literal for choice in get_args(option)]
    if choices and not isinstance(value, dict | list):
        return near(value, choices)
    return _as_text(value, key) if str in options and isinstance(value, int | float) else ""


def _as_text(value: object, key: str) -> str:
    name = key.rpartition(".")[2]
    if name.startswith("t_") or name.endswith(("duration", "interval")):
        valid = not isinstance(value, bool) and isinstance(value, int | float) and 0 < value < float("inf")
        return f": a number and its unit, such as {value if valid else 10}ba"
    return f": write '{show(value)}' in quotes"


def near(value: object, options: Iterable[object]) -> str:
    """`; did you mean X?` for the most similar option, ignoring case; empty if no option is similar."""
    close = _nearest(str(value), map(str, options), cutoff=0.65)
    return f"; did you mean {close}?" if close is not None else ""


def _nearest(name: str, options: Iterable[str], *, cutoff: float) -> str | None:
    by_lower = {option.lower(): option for option in options}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[close[0]] if close else None


def intended_key(root: type[Section], name: str, key: str, names: Sequence[str]) -> tuple[str | None, str]:
    """The key that the user probably meant by the unknown `name` in the section `key`, and a text that suggests this
    key.

    The suggested key has the same name in another section, or a similar name in any section. If no key is similar, the
    text lists the section's `names`.
    """
    everywhere = list(known_paths(root))
    same = [known for known in everywhere if known.rpartition(".")[2] == name]
    # Nearby sections come first, so that train_loader.dataset.max_seq_len is suggested for train_loader.max_seq_len.
    same.sort(key=lambda known: -len(_common(known.split("."), key.split("."))))
    alike = _nearest(name, names, cutoff=0.65)
    # A very similar name in this section is preferred to the same name in a distant section.
    if same and (_common(same[0].split("."), key.split(".")) or _nearest(name, names, cutoff=0.7) is None):
        return same[0], f" here; the right key is {same[0]}"
    if alike is not None:
        return join(key, alike), f"; did you mean {alike}?"
    close = _nearest(name, [known.rpartition(".")[2] for known in everywhere], cutoff=0.75)
    if close is not None:
        known = next(known for known in everywhere if known.rpartition(".")[2] == close)
        return known, f"; did you mean {known}?"
    if not names:
        return None, f"; {setting(key)} has no keys"
    return None, f"; the keys in {setting(key)} are {', '.join(names)}" if key else " of any section"


def _common(one: list[str], other: list[str]) -> list[str]:
    return [a for a, b in zip(one, other, strict=False) if a == b]


def known_paths(hint: Any, key: str = "") -> Iterator[str]:
    """The dotted paths of all keys that this type allows."""
    for option in options_of(hint):
        if is_section(option):
            for name, below in hints_of(option).items():
                yield join(key, name)
                yield from known_paths(below, join(key, name))
        elif get_origin(option) is list:
            yield from known_paths(get_args(option)[0], f"{key}[0]")
        elif get_origin(option) is dict:
            yield from known_paths(get_args(option)[1], join(key, "NAME"))
