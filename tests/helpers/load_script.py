"""Load a script as a module without running it and without changing sys.path."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

SCRIPTS = Path(__file__).parents[2] / "scripts"


def load_script(name: str) -> ModuleType:
    """Load scripts/{name}.py under a name that no package has. `evaluate`, for example, is also a package."""
    spec = importlib.util.spec_from_file_location(f"script_{Path(name).name}", SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    path = sys.path.copy()
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = path
    return module
