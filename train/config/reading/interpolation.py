r"""`${key}` in a YAML: other keys of the file, and LLM Foundry's `variables:`, a section of values to refer to.

OmegaConf interpolates. What it cannot follow is reported with the key that the text is the value of.
"""

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError, InterpolationToMissingValueError, OmegaConfBaseException

from data.config.build import UNRESOLVED
from data.config.sections import Defect, join
from data.config.suggest import near, show

VARIABLES = "variables"
_RESOLVER = re.compile(r"\$\{\s*[\w.]+\s*:")
_REFERENCE = re.compile(r"\$\{\s*(?P<dots>\.*)(?P<name>[\w.-]*)")
_NOT_FOUND = re.compile(r"Interpolation key '(.*)' not found")

Path = tuple[str | int, ...]
"""Of a value in nested mappings and lists."""


@dataclass(frozen=True, kw_only=True)
class Unresolved:
    """A text that OmegaConf cannot fill in."""

    defect: Defect
    wanted: str | None = None
    """The key that it refers to, where there is no such key or it has no value."""


def key_of(path: Path) -> str:
    """`("a", 0, "b")` to `a[0].b`."""
    key = ""
    for part in path:
        key = f"{key}[{part}]" if isinstance(part, int) else join(key, part)
    return key


def strings(node: Any, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Every text in a tree, with its path."""
    if isinstance(node, str):
        yield path, node
    elif isinstance(node, dict | list):
        for name, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from strings(value, (*path, name))


def resolve(tree: dict[str, Any]) -> tuple[dict[str, Any], list[Unresolved]]:
    """The tree with values in the place of `${...}`, and UNRESOLVED for those that there are none of."""
    texts = [(path, text) for path, text in strings(tree) if "${" in text]
    plain, failed = copy.deepcopy(tree), {}
    for path, text in texts:
        if (problem := _malformed(key_of(path), text)) is not None:
            failed[path] = Unresolved(defect=problem)
            _set(plain, path, "???")  # what refers to it fails as well, and is not reported
    config = OmegaConf.create(plain)
    for path, text in texts:
        if path in failed:
            continue
        try:
            _set(plain, path, _at(config, path))
        except OmegaConfBaseException as error:
            failed[path] = _unresolved(key_of(path), text, error, tree)
    for path in failed:
        _set(plain, path, UNRESOLVED)
    return plain, list(failed.values())


def _at(config: Any, path: Path) -> Any:
    for part in path:
        config = config[part]
    return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config


def _set(tree: Any, path: Path, value: object) -> None:
    for part in path[:-1]:
        tree = tree[part]
    tree[path[-1]] = value


def _malformed(key: str, text: str) -> Defect | None:
    if _RESOLVER.search(text):
        return Defect(
            key,
            f"is {text!r}, but only other keys are interpolated, such as ${{max_seq_len}}: write {key}=$VAR on the "
            "command line, and the shell fills it in",
        )
    try:
        OmegaConf.create({"value": text})
    except GrammarParseError:
        return Defect(
            key,
            f"is {show(text)}, in which ${{ does not begin a reference such as ${{max_seq_len}}: close it, or write "
            "\\${ for the text ${",
        )
    return None


def _unresolved(key: str, text: str, error: OmegaConfBaseException, tree: Mapping[str, Any]) -> Unresolved:
    message = str(error).partition("\n")[0]
    if isinstance(error, InterpolationToMissingValueError):
        wanted = message.rpartition(" ")[2]
        return Unresolved(defect=Defect(key, f"is {show(text)}, but {wanted} has no value"), wanted=wanted)
    missing = _NOT_FOUND.fullmatch(message)
    if missing is None:
        return Unresolved(defect=Defect(key, f"is {show(text)}, which cannot be filled in: {message}"))
    variables = tree.get(VARIABLES)
    names = [*tree, *(f"{VARIABLES}.{name}" for name in (variables if isinstance(variables, dict) else ()))]
    wanted = f"{VARIABLES}.{missing[1]}"
    hint = f"; write ${{{wanted}}}" if wanted in names else near(missing[1], names)
    return Unresolved(
        defect=Defect(key, f"is {show(text)}, but there is no key {missing[1]!r}{hint}"), wanted=missing[1]
    )


def unused_variables(tree: dict[str, Any]) -> list[Defect]:
    """A variable that nothing refers to: a typo, or a value that would have no effect."""
    variables = tree.get(VARIABLES)
    if variables is None:
        return []
    if not isinstance(variables, dict):
        return [Defect(VARIABLES, f"is {show(variables)}, but it must be a mapping of names to values")]
    used = {name for path, text in strings(tree) for name in _references(path, text)}
    if VARIABLES in used:
        return []
    unused = [str(name) for name in variables if f"{VARIABLES}.{name}" not in used]
    return [
        Defect(f"{VARIABLES}.{name}", f"is never used: write ${{{VARIABLES}.{name}}} where it belongs, or remove it")
        for name in unused
    ]


def _references(path: Path, text: str) -> Iterator[str]:
    """The first two parts of what a text refers to: `variables.x`, or `variables` where that is all there is."""
    for match in _REFERENCE.finditer(text):
        # One dot is the mapping that the key is in, each more the one above it.
        above = path[: -len(match["dots"])] if match["dots"] else ()
        yield ".".join([*map(str, above), *filter(None, match["name"].split("."))][:2])
