"""Writes the tables of docs/architecture.md, which list each package with the first sentence of its docstring.

The order of the rows is preserved. Packages that are missing from the tables are appended, and packages that no longer
exist are removed.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architecture.md"
MODULES = ("train/main.py", "train/composer_model.py", "train/composer_compat.py")
"""Modules that the tables contain in addition to packages."""

_ROW = re.compile(r"^\| `((?:train|data)(?:/[\w/.]+)?)` \| .* \|$", re.MULTILINE)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.parse_args(argv)
    PAGE.write_text(with_tables(PAGE.read_text("utf-8")), "utf-8")
    return 0


def with_tables(page: str) -> str:
    """Return the page with up-to-date tables."""
    listed = _ROW.findall(page)
    for folder in ("train", "data"):
        names = [name for name in listed if name.partition("/")[0] == folder]
        there = list(packages(folder))
        names = [name for name in names if name in there] + [name for name in there if name not in names]
        table = "\n".join(f"| `{name}` | {description(name)} |" for name in names)
        page = re.sub(
            rf"(?:^\| `{folder}[/`].*\n)+", lambda _, text=table: f"{text}\n", page, count=1, flags=re.MULTILINE
        )
    return page


def packages(folder: str) -> Iterator[str]:
    """Yield the package in a folder, all packages below it, and the MODULES in this folder."""
    for file in sorted((ROOT / folder).rglob("__init__.py")):
        yield file.parent.relative_to(ROOT).as_posix()
    yield from (name for name in MODULES if name.startswith(f"{folder}/"))


def description(name: str) -> str:
    """Return the first sentence of the docstring, without the period."""
    file = ROOT / name if name.endswith(".py") else ROOT / name / "__init__.py"
    docstring = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
    sentence = re.match(r".+?(?=\.\s|\.?$)", " ".join(docstring.partition("\n\n")[0].split()))
    return sentence[0].replace("|", "\\|") if sentence else ""


if __name__ == "__main__":
    sys.exit(main())
