"""Imports point one way: train.py and scripts -> train -> data, and between packages from top to bottom of ORDER."""

import ast
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for folder in ("train", "data", "scripts") for path in (ROOT / folder).rglob("*.py"))
FILES.append(ROOT / "train.py")

ORDER = [
    "train.main",
    "train.dry_run",
    "train.run",
    "train.console",
    "train.loggers",
    "train.callbacks",
    "train.lineage",
    "train.stability",
    "train.expert_health",
    "train.throughput",
    "train.supervision.hangs",
    "train.supervision",
    "train.doctor",
    "train.simulation",
    "train.planning.cluster",
    "train.planning",
    "train.generation",
    "train.export",
    "train.weights",
    "train.inspection",
    "train.report",
    "train.report.reading",
    "train.resume",
    "train.checkpoint.saving",
    "train.checkpoint.remote",
    "train.checkpoint",
    "train.checkpoint.storage",
    "train.distributed",
    "train.optim",
    "train.hardware",
    "train.composer_model",
    "train.composer_compat",
    "train.config",
    "train.config.reading",
    "train.hf",
    "train.models",
    "data.inspection.page",
    "data.inspection",
    "data.loading",
    "data.lineage",
    "data.mixing",
    "data.curation",
    "data.curation.page",
    "data.curation.statistics",
    "data.curation.duplicates",
    "data.curation.quality",
    "data.curation.decontamination",
    "data.curation.steps",
    "data.curation.base",
    "data.preparation.conversion",
    "data.preparation",
    "data.preparation.engines",
    "data.preparation.parts",
    "data.preparation.packing",
    "data.spark",
    "data.tokenization",
    "data.sources",
    "data.sources.formats",
    "data.sources.remote",
    "data.mds",
    "data.mds.remote",
    "data.stores",
    "data.examples",
    "data.hub",
    "data.config",
    "data.pages",
    "data.base",
    "data.secrets",
]
"""The order of packages and of modules next to them. A package imports only from those below it."""

FORBIDDEN = {
    "data": ("train", "composer", "scripts", "tests"),
    "train/models": ("composer", "data"),
    "train": ("scripts", "tests"),
    "train.py": ("scripts", "tests"),
    "scripts": ("scripts", "tests"),
}
"""Packages that files in a folder must not import, at any nesting depth."""

_SECTIONS = ("data.config.sections", "data.config.values")
ALLOWED = {
    "scripts/bench": ("scripts.bench",),
    "scripts/dev": ("scripts.bench", "scripts.dev"),
    "train/models": (*_SECTIONS, "data.mds.row"),
}
"""The only exceptions: code shared by the benches, which scripts/dev also uses; and the base class of config sections
and the ignored label, which import no other module of data except data.base."""


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def package_of(module: str) -> str:
    """Return the entry of ORDER to which a module belongs; `train` and `data` are returned as they are."""
    found = [entry for entry in ORDER if within(module, entry)]
    return max(found, key=len) if found else module.partition(".")[0]


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def imported(path: Path) -> set[str]:
    """Return the full names of everything a file imports: `from a.b import c` yields a.b and a.b.c."""
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


MODULES = {
    module_of(path): path for path in FILES if path.parent != ROOT and path.relative_to(ROOT).parts[0] != "scripts"
}
GRAPH = {module: sorted((imported(path) & MODULES.keys()) - {module}) for module, path in MODULES.items()}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    place = path.relative_to(ROOT).as_posix()
    names = imported(path)
    for folder, allowed in ALLOWED.items():
        if place.startswith(f"{folder}/"):
            names = {name for name in names if not any(within(name, module) for module in allowed)}
    for folder, packages in FORBIDDEN.items():
        if place == folder or place.startswith(f"{folder}/"):
            forbidden = sorted(name for name in names for package in packages if within(name, package))
            assert forbidden == [], f"{place} imports {forbidden}"


def test_every_module_has_its_place_in_the_order() -> None:
    assert sorted(module for module in MODULES if package_of(module) not in ORDER) == ["data", "train"]


def test_packages_import_from_those_below_alone() -> None:
    rank = {entry: number for number, entry in enumerate(ORDER)}
    upward = [
        f"{module} imports {name}"
        for module, names in GRAPH.items()
        for name in names
        if package_of(name) in rank and package_of(module) in rank
        if rank[package_of(module)] > rank[package_of(name)]
    ]
    assert upward == []


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    # Importing a.b also runs a/__init__.py, but these files import nothing.
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        raise AssertionError(f"imported in a circle: {' <- '.join(error.args[1])}") from None


def private_names(path: Path) -> Iterable[str]:
    """Return the private names of other packages that a file imports, or reads from an imported module."""
    folder = module_of(path).rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        if (
            not isinstance(node, ast.ImportFrom)
            or node.module is None
            or node.module.partition(".")[0] not in ("train", "data")
        ):
            continue
        for alias in node.names:
            full = f"{node.module}.{alias.name}"
            if full in MODULES:
                modules[alias.asname or alias.name] = full
            elif alias.name.startswith("_") and node.module.rpartition(".")[0] != folder:
                yield full
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.attr.startswith("_"):
            module = modules.get(node.value.id)
            if module is not None and module.rpartition(".")[0] != folder:
                yield f"{module}.{node.attr}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_names_stay_in_their_package(path: Path) -> None:
    assert list(private_names(path)) == []


PACKAGES = sorted({path.parent for path in MODULES.values()} - {ROOT / "train", ROOT / "data"})


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_package_says_what_belongs_there(folder: Path) -> None:
    package = folder.relative_to(ROOT).as_posix().replace("/", ".")
    assert any(within(package, entry) for entry in ORDER), f"{package} is not in ORDER"
    tree = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
    lines = [line for line in (ast.get_docstring(tree) or "").splitlines() if line]
    assert 1 <= len(lines) <= 4
    assert len(tree.body) == 1, f"{package}/__init__.py has code"
    assert 3 <= len([*folder.glob("*.py")]) - 1 <= 10, f"{package} has too few or too many files for one subject"


def test_imports_are_found_at_any_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.project.test_imports.ROOT", tmp_path)
    file = tmp_path / "data" / "x.py"
    file.parent.mkdir()
    file.write_text("import a.b as c\nfrom . import d\nfrom .e import f\ndef g():\n    from h.i import j\n")
    assert imported(file) == {"a.b", "data", "data.d", "data.e", "data.e.f", "h.i", "h.i.j"}
