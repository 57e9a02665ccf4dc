"""The quality rules of FineWeb (Penedo et al. 2024, https://arxiv.org/abs/2406.17557, section 3.6)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from data.config.values import CountOrZero, NotNegative, Share
from data.curation.base.document import Document, Verdict
from data.curation.base.step import Threshold
from data.curation.quality.characters import TERMINAL_PUNCTUATION
from data.curation.quality.pieces import repeated
from data.curation.quality.splitters import WordsStep


@dataclass(frozen=True, kw_only=True)
class FineWebQuality(WordsStep):
    """Removes documents with few lines that end a sentence, many short lines, or many repeated lines. A threshold that
    is null is not applied. Lines of only white space are ignored, and documents without other lines are removed."""

    line_punct_thr: Share | None = 0.12
    """Minimum share of lines that end with one of the `stop_chars`."""
    line_punct_exclude_zero: bool = False
    """Do not apply `line_punct_thr` to documents in which no line ends with one of the `stop_chars`."""
    stop_chars: list[str] | None = None
    """Strings that end a sentence; null means the terminal punctuation of all scripts."""
    short_line_thr: Share | None = 0.67
    """Maximum share of short lines."""
    short_line_length: CountOrZero = 30
    """Maximum number of characters of a short line."""
    char_duplicates_ratio: Share | None = 0.01
    """Maximum share of characters in lines that are equal to an earlier line."""
    new_line_ratio: NotNegative | None = 0.3
    """Maximum number of line breaks per word or symbol."""

    def scorer(self) -> Callable[[Document], Mapping[str, float]]:
        split, stop_chars, short = self.splitter(), tuple(self._stop_chars()), self.short_line_length

        def score(document: Document) -> dict[str, float]:
            text = document.text
            lines = [line for line in text.split("\n") if line and not line.isspace()]
            scores: dict[str, float] = {"n_lines": len(lines)}
            if lines:
                n_breaks = text.count("\n")
                scores["line_punct_ratio"] = sum(line.endswith(stop_chars) for line in lines) / len(lines)
                scores["short_line_ratio"] = sum(len(line) <= short for line in lines) / len(lines)
                scores["char_dup_ratio"] = repeated(lines)[1] / (len(text) - n_breaks)
                if words := split(text):
                    scores["new_line_ratio"] = n_breaks / len(words)
            return {f"fineweb_quality.{name}": value for name, value in scores.items()}

        return score

    def scores_made_from(self) -> dict[str, Any]:
        own = {"stop_chars": sorted(self._stop_chars()), "short_line_length": self.short_line_length}
        return super().scores_made_from() | own

    def decide(self, scores: Mapping[str, float]) -> Verdict:
        if scores["fineweb_quality.n_lines"] == 0:
            return Verdict(reason="fineweb_quality.empty", detail="the text has no lines")
        if self.line_punct_exclude_zero and scores["fineweb_quality.line_punct_ratio"] == 0:
            scores = {name: value for name, value in scores.items() if name != "fineweb_quality.line_punct_ratio"}
        return super().decide(scores)

    def thresholds(self) -> list[Threshold]:
        return [
            Threshold("fineweb_quality.line_punct_ratio", "line_punct_thr", min=self.line_punct_thr),
            Threshold("fineweb_quality.short_line_ratio", "short_line_thr", max=self.short_line_thr),
            Threshold("fineweb_quality.char_dup_ratio", "char_duplicates_ratio", max=self.char_duplicates_ratio),
            Threshold("fineweb_quality.new_line_ratio", "new_line_ratio", max=self.new_line_ratio),
        ]

    def _stop_chars(self) -> list[str]:
        return sorted(TERMINAL_PUNCTUATION) if self.stop_chars is None else self.stop_chars
