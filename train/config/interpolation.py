r"""`${key}` in a YAML: other keys of the file, and LLM Foundry's `variables:`, a section of values to refer to.

OmegaConf interpolates. Here is what it is asked first, so that each error names the key that the text stands in.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException

from train.config.typed import join, near, show

VARIABLES = "variables"
_RESOLVER = re.compile(r"\$\{\s*[\w.]+\s*:")
_REFERENCE = re.compile(r"\$\{\s*(?P<dots>\.*)(?P<name>[\w.-]*)")


def strings(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(key, text) of every text in a tree."""
    if isinstance(node, str):
        yield path, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from strings(value, join(path, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from strings(value, f"{path}[{index}]")


def malformed(tree: Any, path: str = "") -> list[str]:
    """A line for each text that OmegaConf cannot parse, such as one with an unclosed `${`."""
    problems = []
    for key, text in strings(tree, path):
        try:
            OmegaConf.create({"value": text})
        except GrammarParseError:
            problems.append(
                f"{key} is {show(text)}, in which ${{ does not begin a reference such as ${{max_seq_len}}: close it, "
                "or write \\${ for the text ${"
            )
    return problems


def resolvers(tree: dict[str, Any]) -> list[str]:
    """A line for each `${resolver:...}`: values come from the file and the command line alone."""
    return [
        f"{key} is {text!r}, but only other keys are interpolated, such as ${{max_seq_len}}: "
        f"write {key}=$VAR on the command line, and the shell fills it in"
        for key, text in strings(tree)
        if _RESOLVER.search(text)
    ]


def unused_variables(tree: dict[str, Any]) -> list[str]:
    """A line for each variable that nothing refers to: a typo, or a value that would have no effect."""
    variables = tree.get(VARIABLES)
    if variables is None:
        return []
    if not isinstance(variables, dict):
        return [f"{VARIABLES} is {show(variables)}, but it must be a mapping of names to values"]
    used = {name for key, text in strings(tree) for name in _references(key, text)}
    if VARIABLES in used:
        return []
    unused = [str(name) for name in variables if f"{VARIABLES}.{name}" not in used]
    return [
        f"{VARIABLES}.{name} is never used: write ${{{VARIABLES}.{name}}} where it belongs, or remove it"
        for name in unused
    ]


def _references(key: str, text: str) -> Iterator[str]:
    """The first two parts of what a text refers to: `variables.x`, or `variables` where that is all there is."""
    for match in _REFERENCE.finditer(text):
        # One dot is the mapping that the key is in, each more the one above it.
        above = key.split(".")[: -len(match["dots"])] if match["dots"] else []
        yield ".".join([*above, *filter(None, match["name"].split("."))][:2])


def unresolved(error: OmegaConfBaseException, tree: Mapping[str, Any]) -> str:
    """What is wrong with a reference that OmegaConf could not follow, with its key."""
    message = str(error).partition("\n")[0]
    missing = re.fullmatch(r"Interpolation key '(.*)' not found", message)
    hint = ""
    if missing is not None:
        variables = tree.get(VARIABLES)
        names = [*tree, *(f"{VARIABLES}.{name}" for name in (variables if isinstance(variables, dict) else ()))]
        wanted = f"{VARIABLES}.{missing[1]}"
        hint = f"; write ${{{wanted}}}" if wanted in names else near(missing[1], names)
    return f"{getattr(error, 'full_key', '') or 'a value'}: {message}{hint}"
