"""A step with scores, for tests. Each call of its scorer adds a character to a file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.curation.base.step import ScoredStep, Threshold


@dataclass(frozen=True, kw_only=True)
class Lengths(ScoredStep):
    min_length: int = 0
    max_length: int | None = None
    calls: str
    """The file that counts the calls."""

    def scorer(self):
        def score(document):
            with Path(self.calls).open("a") as file:
                file.write(".")
            return {"lengths.length": float(len(document.text))}

        return score

    def scores_made_from(self) -> dict[str, Any]:
        return {}

    def thresholds(self):
        return [
            Threshold("lengths.length", "min_length", min=self.min_length),
            Threshold("lengths.length", "max_length", max=self.max_length),
        ]
