"""The license of an input file, as its source declares it."""

from collections.abc import Mapping
from functools import cache
from typing import Any


def license_of(entry: Mapping[str, Any]) -> str | None:
    """The license of an input in a manifest: the entry's own `license`, or that in the card of the hub dataset, if the
    card is in the hub's cache. None if the license is unknown. Nothing is downloaded."""
    declared = entry.get("license")
    if isinstance(declared, str) and declared:
        return declared
    if isinstance(entry.get("dataset"), str):
        return _of_card(entry["dataset"], entry.get("revision"))
    return None


@cache
def _of_card(dataset: str, revision: str | None) -> str | None:
    from huggingface_hub import DatasetCard, try_to_load_from_cache

    try:
        card = try_to_load_from_cache(dataset, "README.md", revision=revision, repo_type="dataset")
        data = DatasetCard.load(card, ignore_metadata_errors=True).data.to_dict() if isinstance(card, str) else {}
    except Exception:  # a card can be invalid in many ways, and has no effect on the data
        return None
    found = data.get("license")
    names = found if isinstance(found, list) else [found]
    return ", ".join(str(name) for name in names if name) or None
