"""docs/architecture.md and the docstrings of the packages agree."""

import re

from scripts.dev.package_tables import PAGE, description, packages, with_tables
from tests.project.test_imports import ORDER


def test_the_tables_are_generated_from_the_docstrings() -> None:
    page = PAGE.read_text("utf-8")
    assert page == with_tables(page), "python scripts/dev/package_tables.py"
    for folder in ("train", "data"):
        for name in packages(folder):
            assert page.count(f"| `{name}` | {description(name)} |\n") == 1, name


def test_the_tables_are_in_the_order_of_imports() -> None:
    rows = re.findall(r"^\| `([\w/.]+)` \|", PAGE.read_text("utf-8"), re.MULTILINE)
    names = [row.removesuffix(".py").replace("/", ".") for row in rows]
    assert [name for name in names if name in ORDER] == ORDER


def test_descriptions_are_short() -> None:
    for folder in ("train", "data"):
        for name in packages(folder):
            assert 10 <= len(description(name)) <= 180, name
