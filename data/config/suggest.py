"""What errors about keys and values suggest: the nearest key, where a key belongs, what a value must be."""

import difflib
from collections.abc import Iterable, Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from data.base.errors import setting
from data.base.paths import shown
from data.config.sections import Section, hints_of, join


def plain(hint: Any) -> Any:
    """A type without what `Annotated` adds."""
    return plain(get_args(hint)[0]) if get_origin(hint) is Annotated else hint


def options_of(hint: Any) -> list[Any]:
    """The types of a union, without null and flattened; of another type itself."""
    hint = plain(hint)
    if get_origin(hint) not in (Union, UnionType):
        return [hint]
    return [option for arg in get_args(hint) if arg is not type(None) for option in options_of(arg)]


def is_section(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Section)


def show(value: object) -> str:
    """A value as YAML has it, cut to a readable length."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return shown(value)


_WORDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}
_MANY = {int: "whole numbers", float: "numbers", str: "texts"}


def describe(hint: Any) -> str:
    """What a value of this type is, in words."""
    options = options_of(hint)
    if len(options) > 1:
        return " or ".join(map(describe, options))
    option = options[0]
    if get_origin(option) is Literal:
        return " or ".join(map(str, get_args(option)))
    if get_origin(option) is list:
        return f"a list of {_MANY.get(plain(get_args(option)[0]), 'mappings')}"
    return _WORDS.get(option, "a mapping of keys")


def fix_of_value(hint: Any, value: object, key: str) -> str:
    """A value that was meant, or how to write it; empty where none is near."""
    options = options_of(hint)
    if len(options) == 1 and get_origin(options[0]) is Literal:
        return near(value, get_args(options[0]))
    return _as_text(value, key) if str in options and isinstance(value, int | float) else ""


def _as_text(value: object, key: str) -> str:
    name = key.rpartition(".")[2]
    if name.startswith("t_") or name.endswith(("duration", "interval")):
        return f": a number and its unit, such as {10 if isinstance(value, bool) else value}ba"
    return f": write '{value}' in quotes"


def near(value: object, options: Iterable[object]) -> str:
    close = difflib.get_close_matches(str(value), [str(option) for option in options], n=1, cutoff=0.65)
    return f"; did you mean {close[0]}?" if close else ""


def intended_key(root: type[Section], name: str, key: str, names: list[str]) -> str:
    """What to do about an unknown `name` in the section at `key`, which has `names`: the same key elsewhere, one like
    it here or elsewhere, or the keys that there are."""
    everywhere = list(known_paths(root))
    same = [known for known in everywhere if known.rpartition(".")[2] == name]
    # Nearest in the tree first, so that train_loader.max_seq_len leads to train_loader.dataset.max_seq_len.
    same.sort(key=lambda known: -len(_common(known.split("."), key.split("."))))
    alike = near(name, names)
    # One like it here is nearer than the same in another part of the tree.
    if same and (not alike or _common(same[0].split("."), key.split("."))):
        return f" here; it belongs at {same[0]}"
    if alike:
        return alike
    close = difflib.get_close_matches(name, [known.rpartition(".")[2] for known in everywhere], n=1, cutoff=0.75)
    if close:
        return f"; did you mean {next(known for known in everywhere if known.rpartition('.')[2] == close[0])}?"
    return f"; the keys in {setting(key)} are {', '.join(names)}" if key else " here or anywhere below"


def _common(one: list[str], other: list[str]) -> list[str]:
    return [a for a, b in zip(one, other, strict=False) if a == b]


def known_paths(hint: Any, key: str = "") -> Iterator[str]:
    """Every key there can be, with its path."""
    for option in options_of(hint):
        if is_section(option):
            for name, below in hints_of(option).items():
                yield join(key, name)
                yield from known_paths(below, join(key, name))
        elif get_origin(option) is list:
            yield from known_paths(get_args(option)[0], f"{key}[0]")
        elif get_origin(option) is dict:
            yield from known_paths(get_args(option)[1], join(key, "NAME"))
