"""Scripts import packages, not neighbouring files, although `python scripts/x.py` puts scripts/ first on sys.path."""

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.helpers.load_script import SCRIPTS

ROOT = SCRIPTS.parent
FILES = sorted(path for path in SCRIPTS.rglob("*.py") if 'if __name__ == "__main__":' in path.read_text())
# Does for each script what `python SCRIPT` does before it runs main, and says where modules are found then: one process
# for all, because importing torch and Composer takes seconds.
PROBE = """\
import json, runpy, sys
from concurrent.futures import ProcessPoolExecutor
from importlib.machinery import PathFinder
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path


def origin(spec):
    return spec and spec.origin

found, path = {}, sys.path[1:]
for script in sys.argv[1:]:
    sys.path[:] = [str(Path(script).parent), *path]
    runpy.run_path(script, run_name="not_main")
    found[script] = {name: origin(PathFinder.find_spec(name)) for name in ("evaluate", "trace", "train", "data")}
for method in ("spawn", "forkserver"):
    with ProcessPoolExecutor(1, mp_context=get_context(method)) as pool:
        found[method] = {name: origin(pool.submit(find_spec, name).result()) for name in ("evaluate", "trace")}
import evaluate, trace
found["imported"] = {"evaluate": evaluate.__file__, "trace": trace.__file__}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a folder with a package `evaluate`, like Hugging Face's package that lm-eval installs."""
    folder = tmp_path_factory.mktemp("packages")
    (folder / "evaluate").mkdir()
    (folder / "evaluate" / "__init__.py").touch()
    return folder


@pytest.fixture(scope="module")
def found(packages: Path) -> dict[str, dict[str, str]]:
    """Return the files of modules by script, and by start method for the last script."""
    command = [sys.executable, "-c", PROBE, *map(str, FILES)]
    env = {**os.environ, "PYTHONPATH": str(packages)}
    done = subprocess.run(command, env=env, cwd=packages, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_no_script_is_left_out() -> None:
    names = {path.relative_to(SCRIPTS).as_posix() for path in FILES}
    assert {"evaluate.py", "generate.py", "bench/step.py", "dev/verify_exports.py"} <= names
    libraries = {path for path in SCRIPTS.rglob("*.py") if path not in FILES and path.name != "__init__.py"}
    assert {path.relative_to(SCRIPTS).parts[0] for path in libraries} == {"bench", "dev"}


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.parametrize("place", [*(str(path.relative_to(ROOT)) for path in FILES), "spawn", "forkserver", "imported"])
def test_scripts_import_packages_not_each_other(place: str, found: dict[str, dict[str, str]], packages: Path) -> None:
    expected = {
        "evaluate": str(packages / "evaluate" / "__init__.py"),
        "trace": str(Path(sysconfig.get_path("stdlib")) / "trace.py"),
        "train": str(ROOT / "train" / "__init__.py"),
        "data": str(ROOT / "data" / "__init__.py"),
    }
    files = found[str(ROOT / place) if place.endswith(".py") else place]
    if place.endswith(".py"):
        # A script that imports neither package need not have the repository on its path.
        source = (ROOT / place).read_text("utf-8")
        unused = {name for name in ("train", "data") if not re.search(rf"\b(from|import) {name}\b", source)}
        files = {name: file for name, file in files.items() if file is not None or name not in unused}
    assert files == {name: expected[name] for name in files}


@pytest.mark.subprocess
def test_the_shadowing_that_this_prevents_is_real(packages: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); import evaluate; print(evaluate.__file__)"
    env = {**os.environ, "PYTHONPATH": str(packages)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(SCRIPTS / "evaluate.py")


@pytest.mark.subprocess
def test_a_script_runs_from_any_folder_without_the_repository_on_the_path(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "convert_text_to_mds.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "--out_root" in done.stdout
