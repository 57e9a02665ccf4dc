"""Plain values (dicts, lists, scalars) into frozen dataclasses by their type hints, noting everything that is wrong."""

import dataclasses
import difflib
import math
import types
from collections.abc import Iterable, Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from data.base.paths import shown
from train.config import llm_foundry

_BAD = object()
"""Stands for a value that could not be built and whose problem has been noted."""


class Builder:
    """Builds dataclasses from plain values and notes what is wrong, so that all of it can be said at once."""

    def __init__(self, root: Any) -> None:
        self.root = root
        """The outermost dataclass: where an unknown key may belong."""
        self.problems: list[str] = []
        self.missing: list[str] = []

    def build(self, hint: Any, value: Any, path: str) -> Any:
        if dataclasses.is_dataclass(hint):
            return self._dataclass(hint, value, path)
        origin = get_origin(hint)
        if origin in (Union, types.UnionType):
            return self._union(get_args(hint), value, path)
        if origin is Literal:
            if any(type(value) is type(option) and value == option for option in get_args(hint)):
                return value
            return self._defect(hint, value, path)
        if origin is list and isinstance(value, list):
            return self._all([self.build(get_args(hint)[0], item, f"{path}[{i}]") for i, item in enumerate(value)])
        if origin is dict and isinstance(value, dict):
            items = [self.build(get_args(hint)[1], item, join(path, key)) for key, item in value.items()]
            items = self._all(items)
            return items if items is _BAD else dict(zip(map(str, value), items, strict=True))
        if hint is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        if hint in (int, bool, str) and type(value) is hint:
            return value
        return self._defect(hint, value, path)

    def _dataclass(self, cls: Any, value: Any, path: str) -> Any:
        if value is None:
            value = {}
        if not isinstance(value, dict):
            return self._defect(cls, value, path)
        fields, hints = {field.name: field for field in dataclasses.fields(cls)}, get_type_hints(cls)
        good, given = True, {}
        for key in value:
            if key not in fields:
                self._unknown(str(key), value[key], path, list(fields))
        for name, field in fields.items():
            below = join(path, name)
            if name not in value or value[name] == "???":
                if _required(field):
                    self.missing.extend(_required_below(hints[name], below))
                    good = False
                continue
            given[name] = self.build(hints[name], value[name], below)
            good &= given[name] is not _BAD
        if not good:
            return _BAD
        try:
            return cls(**given)
        except ValueError as error:
            self.problems.append(join(path, error))
            return _BAD

    def _union(self, options: tuple[Any, ...], value: Any, path: str) -> Any:
        if value is None and type(None) in options:
            return None
        options = tuple(option for option in options if option is not type(None))
        if isinstance(value, dict):
            # What is wrong below it is said as if nothing else could be here.
            options = tuple(o for o in options if dataclasses.is_dataclass(o) or get_origin(o) is dict) or options
        if len(options) == 1:
            return self.build(options[0], value, path)
        for option in options:
            attempt = Builder(self.root)
            built = attempt.build(option, value, path)
            if not attempt.problems:
                return built
        return self._defect(Union[options], value, path)  # noqa: UP007 (options is a tuple at run time)

    def _unknown(self, key: str, value: Any, path: str, names: list[str]) -> None:
        full = join(path, key)
        rule = llm_foundry.rule_for(full)
        if rule is not None and llm_foundry.accepted(rule, value):
            return
        if rule is not None and rule.accepts:
            self.problems.append(f"{full} is {show(value)}, which cannot be: {rule.say}")
        elif rule is not None:
            self.problems.append(f"{full} is not taken: {rule.say}")
        else:
            self.problems.append(f"{full} is not a key{_suggest(self.root, key, path, names)}")

    def _defect(self, hint: Any, value: Any, path: str) -> Any:
        message = llm_foundry.instead_of(path, value)
        if message is not None:
            self.problems.append(f"{path} is {show(value)}: {message}")
        else:
            alike = near(value, get_args(hint)) if get_origin(hint) is Literal else ""
            takes_text = hint is str or (get_origin(hint) in (Union, types.UnionType) and str in get_args(hint))
            fix = _as_text(value, path) if takes_text and isinstance(value, int | float) else ""
            self.problems.append(f"{path} is {show(value)}, but it must be {_describe(hint)}{alike}{fix}")
        return _BAD

    def _all(self, items: list[Any]) -> Any:
        return _BAD if any(item is _BAD for item in items) else items


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _required_below(hint: Any, path: str) -> list[str]:
    """The keys that must be written for what is missing at `path`."""
    if not dataclasses.is_dataclass(hint):
        return [path]
    hints = get_type_hints(hint)
    lists = [_required_below(hints[f.name], join(path, f.name)) for f in dataclasses.fields(hint) if _required(f)]
    return [key for keys in lists for key in keys] or [path]


def join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def show(value: object) -> str:
    """A value as YAML has it, cut to a readable length."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return shown(value)


def _as_text(value: object, path: str) -> str:
    key = path.rpartition(".")[2]
    if key.startswith("t_") or key.endswith(("duration", "interval")):
        return f": a number and its unit, such as {10 if isinstance(value, bool) else value}ba"
    return f": write '{value}' in quotes"


_WORDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", type(None): "null"}
_MANY = {int: "whole numbers", float: "numbers", str: "texts"}


def _describe(hint: Any) -> str:
    if hint in _WORDS:
        return _WORDS[hint]
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(map(str, args))
    if origin is list:
        return f"a list of {_MANY.get(args[0], 'mappings')}"
    if origin in (Union, types.UnionType):
        return " or ".join(map(_describe, args))
    return "a mapping of keys"


def near(value: object, options: Iterable[object]) -> str:
    close = difflib.get_close_matches(str(value), [str(option) for option in options], n=1, cutoff=0.65)
    return f"; did you mean {close[0]}?" if close else ""


def _suggest(root: Any, key: str, path: str, names: list[str]) -> str:
    """The way out of an unknown key: the same key elsewhere, one like it here or elsewhere, or what there is."""
    everywhere = list(known_paths(root))
    same = [known for known in everywhere if known.rpartition(".")[2] == key]
    # Nearest in the tree first, so that train_loader.max_seq_len leads to train_loader.dataset.max_seq_len.
    same.sort(key=lambda known: -len(_common(known.split("."), path.split("."))))
    alike = near(key, names)
    # One like it here is nearer than the same in another part of the tree.
    if same and (not alike or _common(same[0].split("."), path.split("."))):
        return f" here; it belongs at {same[0]}"
    if alike:
        return alike
    close = difflib.get_close_matches(key, [known.rpartition(".")[2] for known in everywhere], n=1, cutoff=0.75)
    if close:
        return f"; did you mean {next(known for known in everywhere if known.rpartition('.')[2] == close[0])}?"
    return f"; the keys in {path} are {', '.join(names)}" if path else " here or anywhere below"


def _common(one: list[str], other: list[str]) -> list[str]:
    return [a for a, b in zip(one, other, strict=False) if a == b]


def known_paths(hint: Any, path: str = "") -> Iterator[str]:
    """Every key there can be, with its path."""
    if dataclasses.is_dataclass(hint):
        hints = get_type_hints(hint)
        for field in dataclasses.fields(hint):
            below = join(path, field.name)
            yield below
            yield from known_paths(hints[field.name], below)
    elif get_origin(hint) in (Union, types.UnionType):
        for option in get_args(hint):
            yield from known_paths(option, path)
    elif get_origin(hint) is list:
        yield from known_paths(get_args(hint)[0], f"{path}[0]")
    elif get_origin(hint) is dict:
        yield from known_paths(get_args(hint)[1], join(path, "NAME"))
