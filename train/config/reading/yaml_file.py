"""Read the YAML of a config and apply `key=value` overrides; report problems with file and line."""

import difflib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data.base.errors import ConfigError, ConfigErrors, Problems, cannot_be, from_here
from data.base.paths import refuse_path, shown
from data.config.sections import is_within, join
from data.config.suggest import show

_INDEX = re.compile(r"\[(\d+)\]")
_MARK = "\ue000{"
"""Replaces `${` while YAML is parsed, so that OmegaConf does not interpret references."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """The plain values of a YAML file with overrides applied. References `${...}` are not resolved yet."""

    path: str
    tree: dict[str, Any]
    overridden: list[str] = field(default_factory=list)
    """Keys that were set on the command line."""

    def lines(self) -> dict[str, int]:
        """Return the line of each key in the file, counted from 1. Keys that are overridden on the command line are
        excluded."""
        node = yaml.compose(Path(self.path).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        found: dict[str, int] = {}
        _add_lines(node, "", found)
        return {key: line for key, line in found.items() if not self.is_overridden(key)}

    def placed(self, error: ConfigError) -> ConfigError:
        """Return the error with its problems in the order of the file, and with file and line added to each problem
        that has a key."""
        errors = error.errors if isinstance(error, ConfigErrors) else [error]
        if all(problem.key is None for problem in errors) and not isinstance(error, ConfigErrors):
            return error
        lines = self.lines()
        errors = sorted(errors, key=lambda problem: self._rank(problem.key, lines))
        if len(errors) == 1:
            return ConfigError(f"{self._place(errors[0].key, lines)}: {errors[0]}")
        placed = [f"{self._place(e.key, lines)}: {e}" if e.key else str(e) for e in errors]
        return ConfigError("\n  ".join([f"{self.path}: {len(placed)} problems", *placed]))

    def _place(self, key: str | None, lines: Mapping[str, int]) -> str:
        if key is not None and self.is_overridden(key):
            return "command line"
        return self.path if key is None or key not in lines else f"{self.path}:{lines[key]}"

    def _rank(self, key: str | None, lines: Mapping[str, int]) -> tuple[int, int]:
        """Return the sort key of a problem. Problems of keys in the file are sorted by the line of the key or of its
        nearest parent. Next are problems of keys on the command line, and last are problems without a key."""
        if key is None:
            return 2, 0
        if self.is_overridden(key):
            return 1, next(number for number, given in enumerate(self.overridden) if is_within(key, [given]))
        above = key
        while above and above not in lines:
            above = above[: max(above.rfind("."), above.rfind("["), 0)]
        return 0, lines.get(above, 0)

    def is_overridden(self, key: str) -> bool:
        return is_within(key, self.overridden)


def _add_lines(node: yaml.Node | None, key: str, found: dict[str, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        merged = [(name, value) for name, value in node.value if name.tag == "tag:yaml.org,2002:merge"]
        for name, value in node.value:
            if (name, value) not in merged:
                below = join(key, name.value)
                found.setdefault(below, name.start_mark.line + 1)
                _add_lines(value, below, found)
        for _, value in merged:  # keys next to `<<` take precedence
            for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                _add_lines(source, key, found)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            found.setdefault(f"{key}[{index}]", item.start_mark.line + 1)
            _add_lines(item, f"{key}[{index}]", found)


def read(path: str, overrides: Sequence[str] = ()) -> Written:
    """Read a YAML file and apply overrides. Raises ConfigError for a file that is not a YAML mapping, and for an
    override that is not `key=value`."""
    tree, overridden, problems = _read_yaml(path), [], Problems()
    for override in overrides:
        with problems.collect():
            overridden.append(_apply(tree, override))
    problems.raise_if_any()
    return Written(path=path, tree=tree, overridden=overridden)


def _read_yaml(path: str) -> dict[str, Any]:
    refuse_path("the config", path)
    file = Path(path)
    if not file.is_file():
        what = "is a folder, not a YAML file" if file.is_dir() else f"does not exist{from_here(file)}"
        raise ConfigError(f"{path} {what}{_yamls_beside(file)}")
    try:
        text = file.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            raise ConfigError(f"{path} is empty")
        if not isinstance(node, yaml.MappingNode):
            kind = "a list" if isinstance(node, yaml.SequenceNode) else "text"
            raise ConfigError(f"{path} contains {kind}, but a config must be a mapping: lines of `key: value`")
        return _plain(text)
    except ConfigError:
        raise
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not YAML: it is not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(cannot_be("read", file, error)) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}{_yaml_problem(error)}") from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: the keys of a config must be strings: {_first_line(error)}") from None
    except (ValueError, RecursionError) as error:  # for very long numbers and deeply nested lists
        raise ConfigError(f"{path} cannot be read: {_first_line(error)}") from None


def _plain(text: str) -> Any:
    # OmegaConf is used because it limits the expansion of nested aliases and refuses duplicate keys. `${` is replaced
    # because OmegaConf would fail at the first string with an unclosed `${`; interpolation.py reports each of these
    # strings with its key.
    return _restored(OmegaConf.to_container(OmegaConf.load(io.StringIO(text.replace("${", _MARK)))))


def _restored(node: Any) -> Any:
    if isinstance(node, dict):
        return {str(name).replace(_MARK, "${"): _restored(value) for name, value in node.items()}
    if isinstance(node, list):
        return [_restored(value) for value in node]
    return node.replace(_MARK, "${") if isinstance(node, str) else node


def _yamls_beside(file: Path) -> str:
    folder = file if file.is_dir() else file.parent
    names = sorted(found.name for found in folder.glob("*.yaml")) if folder.is_dir() else []
    close = difflib.get_close_matches(file.name, names, n=1)
    if close:
        return f"; did you mean {folder / close[0]}?"
    return f"; the YAML files in {folder} are: {', '.join(names)}" if names else ""


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f":{mark.line + 1}" if mark is not None else ""
    problem = _what(error)
    if "found duplicate key " in problem:
        return f"{place}: duplicate key {problem.partition('found duplicate key ')[2]}"
    if mark is not None and "found character '\\t'" in problem:
        return f"{place}: not valid YAML: a tab in column {mark.column + 1}: use spaces"
    hint = ": check the indentation, and quote text that contains `: `" if "mapping values" in problem else ""
    return f"{place}: not valid YAML: {problem}{hint}"


def _what(error: Exception) -> str:
    parts = [getattr(error, "context", None), getattr(error, "problem", None)]
    return ", ".join(part for part in parts if part) or _first_line(error)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _apply(tree: dict[str, Any], override: str) -> str:
    """Apply an override `a.b=value` to the tree, replacing any old value, and return the key. An item of a list is
    written as `a[0].b` or `a.0.b`. The value is parsed as YAML."""
    key, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"{override!r} is not key=value, such as optimizer.lr=1e-5")
    parts = _INDEX.sub(r".\1", key).split(".")
    if key.startswith("-") or not all(part.strip() for part in parts):
        fix = f": use {key.lstrip('-')}={text}, without dashes" if key.startswith("-") and key.lstrip("-") else ""
        raise ConfigError(
            f"{override!r} is not key=value: the key {key!r} must consist of names separated by dots{fix}"
        )
    value = _value(override, text)
    node: Any = tree
    place = ""
    for depth, part in enumerate(parts[:-1]):
        if isinstance(node, dict) and node.get(part) is None:
            node[part] = {}
        place = f"{place}[{part}]" if isinstance(node, list) else join(place, part)
        node = _step(node, part, override, parts[: depth + 1])
        if not isinstance(node, dict | list):
            raise ConfigError(f"{override}: {'.'.join(parts[: depth + 1])} is {show(node)}, which has no keys")
    if isinstance(node, list):
        _step(node, parts[-1], override, parts)
        node[int(parts[-1])] = value
        return f"{place}[{parts[-1]}]"
    node[parts[-1]] = value
    return join(place, parts[-1])


def _value(override: str, text: str) -> Any:
    try:
        values: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text.replace('${', _MARK)}"]))
        return _restored(values["value"])
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{shown(override)}: the value is not valid YAML: {_what(error)}; quote text with special characters"
        ) from None


def _step(node: Any, part: str, override: str, parts: list[str]) -> Any:
    if isinstance(node, dict):
        return node[part]
    if part.isdecimal() and int(part) < len(node):
        return node[int(part)]
    above = ".".join(parts[:-1])
    raise ConfigError(f"{override}: {above} has {len(node)} items: the index {part!r} must be below {len(node)}")
