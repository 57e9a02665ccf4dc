r"""References `${key}` in a YAML to other keys of the file, and LLM Foundry's `variables:` section.

OmegaConf resolves the references. An unresolved reference is reported with the key whose value contains it.
"""

import copy
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException

from data.config.build import UNRESOLVED
from data.config.sections import Defect, is_within, join
from data.config.suggest import near, show

VARIABLES = "variables"
_RESOLVER = re.compile(r"\$\{\s*[\w.]+\s*:")
_REFERENCE = re.compile(r"\$\{\s*(?P<dots>\.*)(?P<name>[\w.\[\]-]*)")

Path = tuple[str | int, ...]
"""The path of a value in nested mappings and lists."""


@dataclass(frozen=True, kw_only=True)
class Unresolved:
    """A string with a reference that OmegaConf cannot resolve."""

    defect: Defect
    targets: tuple[str, ...] = ()
    """The keys that the string refers to."""

    def refers_to(self, keys: Iterable[str]) -> bool:
        """Whether the string refers to one of these keys, to a key below one of them, or to a section that contains one
        of them."""
        keys, targets = set(keys), [target.replace("[", ".").replace("]", "") for target in self.targets]
        return any(is_within(target, keys) for target in targets) or any(is_within(key, targets) for key in keys)


def key_of(path: Path) -> str:
    """Format a path: `("a", 0, "b")` becomes `a[0].b`."""
    key = ""
    for part in path:
        key = f"{key}[{part}]" if isinstance(part, int) else join(key, part)
    return key


def strings(node: Any, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Yield every string in a tree, with its path."""
    if isinstance(node, str):
        yield path, node
    elif isinstance(node, dict | list):
        for name, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from strings(value, (*path, name))


def escaped(node: Any) -> Any:
    """Return plain values in which `${` is escaped, so that the values do not change when they are read back."""
    if isinstance(node, dict):
        return {name: escaped(value) for name, value in node.items()}
    if isinstance(node, list):
        return [escaped(value) for value in node]
    return node.replace("${", "\\${") if isinstance(node, str) else node


def resolve(tree: dict[str, Any], defaults: Collection[str] = frozenset()) -> tuple[dict[str, Any], list[Unresolved]]:
    """Replace each `${...}` in the tree with its value, or with UNRESOLVED if it cannot be resolved.

    `defaults` contains the keys that have a default. A reference to one of these keys is resolved only if the file sets
    the key.
    """
    texts = [(path, text) for path, text in strings(tree) if "${" in text]
    plain, failed = copy.deepcopy(tree), {}
    for path, text in texts:
        if (problem := _malformed(key_of(path), text)) is not None:
            failed[path] = Unresolved(defect=problem)
            _set(plain, path, "???")  # references to this value fail as well, but are not reported
    config = OmegaConf.create(plain)
    for path, text in texts:
        if path in failed:
            continue
        try:
            _set(plain, path, _at(config, path))
        except (OmegaConfBaseException, RecursionError) as error:
            failed[path] = _unresolved(path, text, error, tree, defaults)
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
            f"is {text!r}, but only references to other keys are resolved, such as ${{max_seq_len}}: pass {key}=$VAR "
            "on the command line, where the shell expands $VAR",
        )
    try:
        OmegaConf.create({"value": text})
    except GrammarParseError:
        return Defect(
            key,
            f"is {show(text)}, in which "
            f"${{ does not begin a reference such as ${{max_seq_len}}: close the brace, or write "
            "\\${ for a literal ${",
        )
    return None


def _unresolved(path: Path, text: str, error: Exception, tree: dict[str, Any], defaults: Collection[str]) -> Unresolved:
    key, targets = key_of(path), tuple(_targets(path, text))
    missing = next((target for target in targets if not _is_written(tree, target)), None)
    if missing is None:
        why = "it refers to itself" if isinstance(error, RecursionError) else str(error).partition("\n")[0]
        return Unresolved(defect=Defect(key, f"is {show(text)}, which cannot be resolved: {why}"), targets=targets)
    variables = tree.get(VARIABLES)
    names = [*tree, *(f"{VARIABLES}.{name}" for name in (variables if isinstance(variables, dict) else ()))]
    if missing in defaults:
        why = f"is {show(text)}, but {missing!r} is not set, and a reference cannot use a default: set {missing!r}"
        return Unresolved(defect=Defect(key, why), targets=targets)
    hint = f"; use ${{{VARIABLES}.{missing}}}" if f"{VARIABLES}.{missing}" in names else near(missing, names)
    return Unresolved(defect=Defect(key, f"is {show(text)}, but there is no key {missing!r}{hint}"), targets=targets)


def _is_written(tree: Any, key: str) -> bool:
    for part in key.replace("[", ".").replace("]", "").split("."):
        if isinstance(tree, str):
            return True  # the string may be a reference to a mapping that contains the remaining parts
        if isinstance(tree, list) and part.isdecimal() and int(part) < len(tree):
            tree = tree[int(part)]
        elif isinstance(tree, dict) and part in tree:
            tree = tree[part]
        else:
            return False
    return True


def unused_variables(tree: dict[str, Any]) -> list[Defect]:
    """Return a defect for each variable that is never referred to. Either its name is misspelt, or the variable has no
    effect."""
    variables = tree.get(VARIABLES)
    if variables is None:
        return []
    if not isinstance(variables, dict):
        return [Defect(VARIABLES, f"is {show(variables)}, but it must be a mapping of names to values")]
    targets = [target for path, text in strings(tree) for target in _targets(path, text)]
    if VARIABLES in targets:
        return []
    # If ${name} is used by mistake for ${variables.name}, this is reported as an unresolved reference. Therefore, it
    # counts as a use of the variable here.
    used = {".".join(target.split(".")[:2]) for target in targets} | {f"{VARIABLES}.{target}" for target in targets}
    unused = [str(name) for name in variables if f"{VARIABLES}.{name}" not in used]
    return [
        Defect(f"{VARIABLES}.{name}", f"is never used: refer to it as ${{{VARIABLES}.{name}}}, or remove it")
        for name in unused
    ]


def _targets(path: Path, text: str) -> Iterator[str]:
    """Yield the keys that a string refers to."""
    for match in _REFERENCE.finditer(text):
        # One leading dot refers to the mapping that contains the key, and each further dot to the next level above.
        above = path[: -len(match["dots"])] if match["dots"] else ()
        yield ".".join([*map(str, above), *filter(None, match["name"].split("."))])
