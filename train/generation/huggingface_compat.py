"""Patches of Hugging Face's libraries: for huggingface_hub 1.33 and datasets 5.2, and all before them."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def offline() -> Iterator[None]:
    """Within, both libraries take what is in the hub's cache; otherwise they would ask the hub for half a minute.

    They read HF_HUB_OFFLINE once, when they are imported: what is known later can only be assigned (huggingface_hub's
    documentation of the variable says so). lm-eval, which calls them, has no `local_files_only` to pass on.
    """
    patched = asking_modules()
    try:
        for module in patched:
            setattr(module, "HF_HUB_OFFLINE", True)  # noqa: B010
        yield
    finally:
        for module in patched:
            setattr(module, "HF_HUB_OFFLINE", False)  # noqa: B010


def asking_modules() -> list[ModuleType]:
    """The probe: the modules whose libraries would ask the hub, because the variable was not set at their import."""
    modules = [importlib.import_module(name) for name in ("huggingface_hub.constants", "datasets.config")]
    return [module for module in modules if not module.HF_HUB_OFFLINE]
