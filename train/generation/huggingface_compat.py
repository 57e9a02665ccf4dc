"""Patches of Hugging Face libraries: for huggingface_hub 1.33, datasets 5.2 and earlier versions."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def offline() -> Iterator[None]:
    """Within this context, huggingface_hub and datasets use only the local cache. Otherwise, they would try to reach
    the hub for half a minute.

    They read HF_HUB_OFFLINE once, at import. According to the documentation of huggingface_hub, it can later only be
    changed by assigning to the module's variable. lm-eval, which calls both libraries, has no `local_files_only`
    argument.
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
    """The probe: the modules of the libraries that would query the hub, because the variable was not set when they were
    imported."""
    modules = [importlib.import_module(name) for name in ("huggingface_hub.constants", "datasets.config")]
    return [module for module in modules if not module.HF_HUB_OFFLINE]
