"""Writes the tables of docs/curation.md between their markers: the keys of a config, and the steps with their
parameters. The tables are generated from the classes."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Import modules only from the repository's root, because scripts/evaluate.py would hide the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, get_args, get_origin

from pydantic import TypeAdapter

from data.config.markdown import complete_properties, key_table, prose, section_of, table_row
from data.config.sections import Section, hints_of
from data.config.suggest import options_of
from data.curation.config import STEPS, CurationConfig
from scripts.dev.preset_table import filled

PAGE = ROOT / "docs" / "curation.md"
DESCRIBED = {
    "SourceConfig": "[as for a stream](keys.md#train_loaderdatasetstreamsname)",
    "TokenizerConfig": "[tokenizer](keys.md#tokenizer)",
}
"""Links to sections that are described on another page."""


def main(argv: Sequence[str] | None = None) -> int:
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), TABLES), encoding="utf-8")
    return 0


def step_table() -> str:
    """The table of all steps, with the first sentence of each class."""
    rows = [table_row(f"`{name}`", prose(_sentence(inspect.getdoc(step) or ""))) for name, step in STEPS.items()]
    return "\n".join(["| step | meaning |", "|---|---|", *rows])


def section_tables(cls: type[Section], path: str = "") -> str:
    """The table of a section's keys, followed by the tables of the sections in it."""
    return "\n\n".join("\n".join(lines) for lines in _tables(cls, path))


def _tables(cls: type[Section], path: str) -> Iterator[list[str]]:
    if not hints_of(cls):
        yield ["This step has no parameters."]
        return
    yield list(key_table(cls, _properties(cls), _link))
    for name, hint in hints_of(cls).items():
        for below, section in _sections(hint, f"{path}.{name}" if path else name):
            if section.__name__ not in DESCRIBED:
                yield [f"`{below}` is a section with these keys:"]
                yield from _tables(section, below)


def _sections(hint: Any, path: str) -> Iterator[tuple[str, type[Section]]]:
    for option in options_of(hint):
        if get_origin(option) is dict:
            yield from _sections(get_args(option)[-1], f"{path}.NAME")
        elif (section := section_of(option)) is not None:
            yield path, section


def _properties(cls: type[Section]) -> Mapping[str, Any]:
    """The keys in the JSON schema, with the description of its section for a key without a description."""
    properties = TypeAdapter(cls).json_schema()["properties"]
    complete_properties(properties, cls)
    for name, hint in hints_of(cls).items():
        section = section_of(hint)
        if section is not None:
            properties[name].setdefault("description", inspect.getdoc(section))
    return properties


def _link(cls: type[Section]) -> str:
    return DESCRIBED.get(cls.__name__, "(see below)")


def _sentence(text: str) -> str:
    first = " ".join(text.partition("\n\n")[0].split())
    return first.partition(". ")[0].removesuffix(".")


TABLES: Mapping[str, Callable[[], str]] = {
    "config": partial(section_tables, CurationConfig),
    "steps": step_table,
    **{name: partial(section_tables, step) for name, step in STEPS.items()},
}
"""The functions that make the tables, by the names in the markers of the page."""


if __name__ == "__main__":
    sys.exit(main())
