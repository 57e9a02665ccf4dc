import importlib

import pytest

from train.generation.huggingface_compat import offline, online_modules

HUB, DATASETS = (importlib.import_module(name) for name in ("huggingface_hub.constants", "datasets.config"))


def test_only_libraries_that_query_the_hub_are_set_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HUB, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(DATASETS, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert online_modules() == [HUB], "the variable is read later than at import: the patch can be removed"
    with offline():
        assert (HUB.HF_HUB_OFFLINE, DATASETS.HF_HUB_OFFLINE, online_modules()) == (True, True, [])
    assert (HUB.HF_HUB_OFFLINE, DATASETS.HF_HUB_OFFLINE) == (False, True)
