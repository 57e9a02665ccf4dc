"""Compares what was planted in raw text with what a curation has removed or changed."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COPIES = ("exact_duplicate", "near_duplicate", "similar")
"""Kinds of planted documents that are copies of another document."""
CLEAN = "no defect"
"""The kind of documents of `library` and `packages` in which nothing was planted."""
Place = tuple[str, int]
"""The source of a document, and its position in the file."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """The documents of one kind of defect."""

    kind: str
    planted: int
    found: int
    """Number of defects that are not in the curated text. For a copy, either the copy or the original is not there. For
    a line or a value, the text does not contain it."""
    steps: dict[str, int]
    """Number of these documents that each step has removed. Changed documents are counted as `changed`."""

    @property
    def share(self) -> float:
        return self.found / self.planted


@dataclass(frozen=True, kw_only=True)
class Curated:
    """The output of a curation with `keep_steps: true`."""

    texts: Mapping[Place, str]
    """The curated documents."""
    removed: Mapping[Place, str]
    """For each removed document, the name of the step."""

    @classmethod
    def read(cls, output: Path) -> "Curated":
        import pyarrow.dataset as ds

        columns = ["source", "position", "text"]
        kept = ds.dataset(output / "documents").to_table(columns=columns).to_pylist()
        removed = {}
        for folder in sorted((output / "steps").glob("*/documents/kept=false")):
            name = json.loads((folder.parents[1] / "step.json").read_text(encoding="utf-8"))["name"]
            for each in ds.dataset(folder).to_table(columns=columns[:2]).to_pylist():
                removed[each["source"], each["position"]] = name
        return cls(texts={(each["source"], each["position"]): each["text"] for each in kept}, removed=removed)


def compare(planted: Mapping[str, Any], curated: Curated) -> list[Found]:
    """One result for each kind, and one for the documents without a defect. planted: the content of planted.json."""
    by_kind: dict[str, list[str]] = {}
    used: set[Place] = set()
    for each in planted["documents"]:
        used |= {place_of(each), place_of(each.get("of", each))}
        by_kind.setdefault(each["kind"], []).append(_step(each, curated))
    everything = {*curated.texts, *curated.removed} - used
    clean = [place for place in everything if place[0] in ("library", "packages")]
    by_kind[CLEAN] = [curated.removed.get(place, "") for place in clean]
    return [_found(kind, steps) for kind, steps in by_kind.items()]


def place_of(each: Mapping[str, Any]) -> Place:
    return each["source"], each["position"]


def _step(each: Mapping[str, Any], curated: Curated) -> str:
    """The step that has removed the defect; empty if the defect is in the curated text."""
    place = place_of(each)
    if "of" in each:
        steps = [curated.removed.get(one, "") for one in (place, place_of(each["of"]))]
        # If one of both is removed for another reason, the pair is not a duplicate any more.
        return next((step for step in steps if "duplicates" in step), max(steps))
    if place in curated.removed:
        return curated.removed[place]
    values = each.get("values", ())
    return "changed" if values and not any(value in curated.texts[place] for value in values) else ""


def _found(kind: str, steps: list[str]) -> Found:
    counts = Counter(filter(None, steps))
    return Found(kind=kind, planted=len(steps), found=sum(counts.values()), steps=dict(counts.most_common()))
