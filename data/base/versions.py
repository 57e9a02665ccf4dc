"""Which versions of Python and of other packages computed something, for records."""

import platform
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

STREAMING = ("mosaicml-streaming", "streaming-community")
"""The module `streaming` comes from either of these distributions."""


def installed_versions(distributions: Iterable[str]) -> dict[str, str]:
    """Of Python, and of those distributions that are installed."""
    found = {"python": platform.python_version()}
    for distribution in distributions:
        with suppress(PackageNotFoundError):
            found[distribution] = version(distribution)
    return found


_COMPUTES = ("torch", "mosaicml", *STREAMING, "transformers", "megablocks", "flash-attn", "bitsandbytes")


def versions() -> dict[str, str]:
    """Of Python and of the packages that compute."""
    return installed_versions(_COMPUTES)
