"""Executors of Spark: the packages that they must share with the driver, and functions that run there on batches of
rows."""

import platform
import socket
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import xxhash

from data.base.errors import EngineError
from data.base.versions import STREAMING, installed_versions

if TYPE_CHECKING:
    import pyarrow as pa

PACKAGES = (*STREAMING, "numpy", "tiktoken", "transformers", "tokenizers", "pyarrow", "zstd", "brotli")
"""Distributions that affect the bytes of the output."""
ROOT = Path(__file__).parents[2]
"""The folder that contains the package `data`."""


def versions_here() -> dict[str, str]:
    """The versions of Python, of the packages in PACKAGES, and a hash of Dropless' code."""
    found = installed_versions(PACKAGES)
    found["python"] = ".".join(platform.python_version_tuple()[:2])
    return {**found, "dropless (hash of the code)": _hash_of_code()}


def check_versions(of_driver: dict[str, str]) -> None:
    """Raises EngineError if this executor has other packages than the driver."""
    here = versions_here()
    names = sorted({*here, *of_driver})
    different = [
        f"{name} {here.get(name, 'is missing')} (driver: {of_driver.get(name, 'none')})"
        for name in names
        if here.get(name) != of_driver.get(name)
    ]
    if different:
        raise executor_error(f"has other packages than the driver: {', '.join(different)}: install the same versions")


def executor_error(text: str) -> EngineError:
    """An error of this executor, whose message contains the name of the machine."""
    return EngineError(f"Spark's executor on {socket.gethostname()} {text}")


def arrow_function(
    function: Callable[..., "Iterator[pa.RecordBatch]"], *arguments: Any, modules: tuple[ModuleType, ...] = ()
) -> "Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]":
    """The function `batches -> function(batches, *arguments)` for `DataFrame.mapInArrow`.

    `function` is a function of a module of Dropless, which executors import from ROOT. The arguments are pickled.
    `modules` are the user's own modules: objects of these modules are pickled with their code, because the executors
    may not have these modules.
    """
    from pyspark import cloudpickle

    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        pickled = cloudpickle.dumps(arguments)
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)
    module, name, root = function.__module__, function.__name__, str(ROOT)

    # A nested function is pickled with its code, so that it can set the path before it imports Dropless.
    def run(batches: "Iterator[pa.RecordBatch]") -> "Iterator[pa.RecordBatch]":
        import importlib
        import pickle
        import sys

        if root not in sys.path:
            sys.path.insert(0, root)
        return getattr(importlib.import_module(module), name)(batches, *pickle.loads(pickled))

    return run


def module_of(function: str) -> ModuleType | None:
    """The imported module of a user's own function, which is written as `module:function`."""
    return sys.modules.get(function.partition(":")[0])


@cache
def _hash_of_code() -> str:
    digest = xxhash.xxh3_64()
    for file in sorted((ROOT / "data").rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
