"""The license of an input: its own entry, or the card in the hub's cache."""

from pathlib import Path

import pytest

from data.lineage import licenses
from data.lineage.licenses import license_of

CARDS = {
    "license: cc-by-4.0": "cc-by-4.0",
    "license: [mit, apache-2.0]": "mit, apache-2.0",
    "language: en": None,
    "license: [": None,
}


@pytest.mark.parametrize(("card", "license"), CARDS.items(), ids=CARDS)
def test_the_card_in_the_hub_s_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, card: str, license: str | None
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    licenses._of_card.cache_clear()
    entry = {"dataset": "owner/name", "revision": "a" * 40, "path": "a.jsonl"}
    assert license_of(entry) is None
    licenses._of_card.cache_clear()
    snapshot = tmp_path / "datasets--owner--name" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "README.md").write_text(f"---\n{card}\n---\n# Name\n")
    assert license_of(entry) == license
    assert license_of({**entry, "license": "own"}) == "own"
    licenses._of_card.cache_clear()


def test_a_local_file_has_no_license() -> None:
    assert license_of({"path": "a.jsonl", "bytes": 1}) is None
