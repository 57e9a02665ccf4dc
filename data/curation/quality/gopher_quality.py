"""The quality rules of Gopher (Rae et al. 2021, https://arxiv.org/abs/2112.11446, appendix A.1.1)."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from data.config.values import Count, NotNegative, Share
from data.curation.base.document import Document
from data.curation.base.step import Threshold
from data.curation.quality.characters import PUNCTUATION
from data.curation.quality.splitters import WordsStep

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
_BULLETS = ("•", "-")
_ELLIPSES = ("...", "…")


@dataclass(frozen=True, kw_only=True)
class GopherQuality(WordsStep):
    """Removes documents that are not running text, by the number of words, the length of words, symbols, bullet points
    and stop words. A threshold that is null is not applied.

    Ratios are not defined for documents without words or lines. Such documents are removed only by `min_doc_words`.
    """

    min_doc_words: Count | None = 50
    """Minimum number of words. Symbols, which consist of punctuation only, are not counted."""
    max_doc_words: Count | None = 100_000
    """Maximum number of words, not counting symbols."""
    min_avg_word_length: NotNegative | None = 3.0
    """Minimum of the mean number of characters of the words, not counting symbols."""
    max_avg_word_length: NotNegative | None = 10.0
    """Maximum of the mean number of characters of the words, not counting symbols."""
    max_symbol_word_ratio: NotNegative | None = 0.1
    """Maximum number of `#`, and of ellipses, per word or symbol."""
    max_bullet_lines_ratio: Share | None = 0.9
    """Maximum share of lines that start with a bullet point: `•` or `-`."""
    max_ellipsis_lines_ratio: Share | None = 0.3
    """Maximum share of lines that end with an ellipsis."""
    max_non_alpha_words_ratio: Share | None = 0.8
    """Minimum share of words and symbols that contain a letter. The name is that of datatrove."""
    min_stop_words: Count | None = 2
    """Minimum number of different stop words."""
    stop_words: list[str] | None = None
    """The stop words; null means: the, be, to, of, and, that, have, with."""

    def scorer(self) -> Callable[[Document], Mapping[str, float]]:
        split = self.splitter()
        stop_words = self._stop_words()

        def score(document: Document) -> dict[str, float]:
            text = document.text
            scores = _of_words(Counter(split(text)), text, stop_words) | _of_lines(text.splitlines())
            return {f"gopher_quality.{name}": value for name, value in scores.items()}

        return score

    def scores_made_from(self) -> dict[str, Any]:
        return super().scores_made_from() | {"stop_words": sorted(self._stop_words())}

    def thresholds(self) -> list[Threshold]:
        symbols, alpha = self.max_symbol_word_ratio, self.max_non_alpha_words_ratio
        return [
            Threshold("gopher_quality.n_words", "min_doc_words", min=self.min_doc_words),
            Threshold("gopher_quality.n_words", "max_doc_words", max=self.max_doc_words),
            Threshold("gopher_quality.avg_word_length", "min_avg_word_length", min=self.min_avg_word_length),
            Threshold("gopher_quality.avg_word_length", "max_avg_word_length", max=self.max_avg_word_length),
            Threshold("gopher_quality.hash_ratio", "max_symbol_word_ratio", max=symbols),
            Threshold("gopher_quality.ellipsis_ratio", "max_symbol_word_ratio", max=symbols),
            Threshold("gopher_quality.bullet_lines_ratio", "max_bullet_lines_ratio", max=self.max_bullet_lines_ratio),
            Threshold(
                "gopher_quality.ellipsis_lines_ratio", "max_ellipsis_lines_ratio", max=self.max_ellipsis_lines_ratio
            ),
            Threshold("gopher_quality.alpha_words_ratio", "max_non_alpha_words_ratio", min=alpha),
            Threshold("gopher_quality.n_stop_words", "min_stop_words", min=self.min_stop_words),
        ]

    def _stop_words(self) -> frozenset[str]:
        return frozenset(STOP_WORDS if self.stop_words is None else self.stop_words)


def _of_words(counts: Counter[str], text: str, stop_words: frozenset[str]) -> dict[str, float]:
    n_all = counts.total()
    n_words = n_chars = n_alpha = 0
    for word, count in counts.items():
        if not PUNCTUATION.issuperset(word):
            n_words += count
            n_chars += count * len(word)
        if word.isalpha() or any(map(str.isalpha, word)):
            n_alpha += count
    scores: dict[str, float] = {"n_words": n_words, "n_stop_words": len(stop_words & counts.keys())}
    if n_words:
        scores["avg_word_length"] = n_chars / n_words
    if n_all:
        scores["hash_ratio"] = text.count("#") / n_all
        scores["ellipsis_ratio"] = sum(map(text.count, _ELLIPSES)) / n_all
        scores["alpha_words_ratio"] = n_alpha / n_all
    return scores


def _of_lines(lines: list[str]) -> dict[str, float]:
    if not lines:
        return {}
    return {
        "bullet_lines_ratio": sum(line.lstrip().startswith(_BULLETS) for line in lines) / len(lines),
        "ellipsis_lines_ratio": sum(line.rstrip().endswith(_ELLIPSES) for line in lines) / len(lines),
    }
