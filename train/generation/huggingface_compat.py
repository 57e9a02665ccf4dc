"""Patches of Hugging Face libraries: huggingface_hub up to version 1.33, and datasets up to version 5.2."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def offline() -> Iterator[None]:
    """Within this context, huggingface_hub and datasets use only the local cache. Otherwise, without a network
    connection, the libraries would try to connect to the hub for half a minute.

    The libraries read the environment variable HF_HUB_OFFLINE once, at import. According to the documentation of
    huggingface_hub, the setting can afterwards be changed only by assigning to the variable HF_HUB_OFFLINE of the
    module `huggingface_hub.constants`. lm-eval, which calls both libraries, has no `local_files_only` argument.
    """
    patched = online_modules()
    try:
        for module in patched:
            setattr(module, "HF_HUB_OFFLINE", True)  # noqa: B010
        yield
    finally:
        for module in patched:
            setattr(module, "HF_HUB_OFFLINE", False)  # noqa: B010


def online_modules() -> list[ModuleType]:
    """The probe of this patch: return the modules of these libraries that would query the hub, because the environment
    variable was not set when they were imported."""
    modules = [importlib.import_module(name) for name in ("huggingface_hub.constants", "datasets.config")]
    return [module for module in modules if not module.HF_HUB_OFFLINE]
