"""Imports point one way: train.py, scripts -> train -> train.models, data."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for folder in ("train", "data", "scripts") for path in (ROOT / folder).rglob("*.py"))
FILES.append(ROOT / "train.py")

# What files below a folder must not import, at any depth of nesting.
FORBIDDEN = {
    "data": ("train", "composer", "scripts"),
    "train/models": ("composer", "data", "scripts"),
    "train": ("scripts",),
    "train.py": ("scripts", "tests"),
    "scripts": ("scripts", "tests"),
}


def imported(path: Path) -> set[str]:
    """Full names of all that a file imports: `from a.b import c` gives a.b and a.b.c."""
    names: set[str] = set()
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names.add(module)
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    place = path.relative_to(ROOT).as_posix()
    names = imported(path)
    for folder, packages in FORBIDDEN.items():
        if place == folder or place.startswith(f"{folder}/"):
            wrong = sorted(name for name in names for package in packages if within(name, package))
            assert wrong == [], f"{place} imports {wrong}"


def test_the_model_knows_nothing_of_training():
    for path in (ROOT / "train" / "models").glob("*.py"):
        wrong = [n for n in imported(path) if within(n, "train") and n != "train" and not within(n, "train.models")]
        assert wrong == [], f"{path.name} imports {wrong}"


def test_an_import_is_seen_wherever_it_stands(tmp_path, monkeypatch):
    monkeypatch.setattr("test_imports.ROOT", tmp_path)
    file = tmp_path / "data" / "x.py"
    file.parent.mkdir()
    file.write_text("import a.b as c\nfrom . import d\nfrom .e import f\ndef g():\n    from h.i import j\n")
    assert imported(file) == {"a.b", "data", "data.d", "data.e", "data.e.f", "h.i", "h.i.j"}
