"""Versions of Python and of installed packages, to be recorded with a run or a dataset."""

import platform
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

STREAMING = ("mosaicml-streaming", "streaming-community")
"""The distributions that provide the module `streaming`."""


def installed_versions(distributions: Iterable[str]) -> dict[str, str]:
    """The version of Python, and the versions of the given distributions that are installed."""
    found = {"python": platform.python_version()}
    for distribution in distributions:
        with suppress(PackageNotFoundError):
            found[distribution] = version(distribution)
    return found


_COMPUTES = ("torch", "mosaicml", *STREAMING, "transformers", "megablocks", "flash-attn", "bitsandbytes")


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that affect results."""
    return installed_versions(_COMPUTES)
