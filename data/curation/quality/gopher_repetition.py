"""The repetition rules of Gopher (Rae et al. 2021, https://arxiv.org/abs/2112.11446, table A1)."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from data.config.sections import Defect
from data.config.values import Share
from data.curation.base.document import Document, Verdict
from data.curation.base.step import Threshold
from data.curation.quality.ngrams import NGrams
from data.curation.quality.pieces import repeated
from data.curation.quality.splitters import WordsStep

_PARAGRAPH_END = re.compile(r"\n{2,}")
_LINE_END = re.compile(r"\n+")


def _n_grams(step: "GopherRepetition") -> Iterator[Defect]:
    for key in ("top_n_grams", "dup_n_grams"):
        for n, share in getattr(step, key).items():
            if n < 1:
                yield Defect(key, f"has the key {n}, but the number of words of an n-gram must be at least 1")
            if not 0 <= share <= 1:
                yield Defect(f"{key}.{n}", f"is {share}, but it must be in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class GopherRepetition(WordsStep):
    """Removes documents with many repeated lines, paragraphs or n-grams. A threshold that is null is not applied.

    Shares of characters are relative to the number of characters of the text. The first occurrence of a line or a
    paragraph is not counted as repeated.
    """

    RULES = (_n_grams,)

    dup_line_frac: Share | None = 0.3
    """Maximum share of repeated lines."""
    dup_para_frac: Share | None = 0.3
    """Maximum share of repeated paragraphs, which are separated by empty lines."""
    dup_line_char_frac: Share | None = 0.2
    """Maximum share of characters in repeated lines."""
    dup_para_char_frac: Share | None = 0.2
    """Maximum share of characters in repeated paragraphs."""
    top_n_grams: dict[int, float] = field(default_factory=lambda: {2: 0.2, 3: 0.18, 4: 0.16})
    """Maps n to the maximum share of characters in the most frequent n-gram."""
    dup_n_grams: dict[int, float] = field(
        default_factory=lambda: {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
    )
    """Maps n to the maximum share of characters in repeated n-grams. Overlapping n-grams are counted once."""

    def scorer(self) -> Callable[[Document], Mapping[str, float]]:
        split, top, dup = self.splitter(), sorted(self.top_n_grams), sorted(self.dup_n_grams)

        def score(document: Document) -> dict[str, float]:
            text = document.text
            scores = {"n_chars": float(len(text))}
            if text:
                scores |= _of_pieces("para", _PARAGRAPH_END.split(text.strip()), len(text))
                scores |= _of_pieces("line", _LINE_END.split(text), len(text))
                scores |= _of_n_grams(split(text), top, dup, len(text))
            return {f"gopher_repetition.{name}": value for name, value in scores.items()}

        return score

    def scores_made_from(self) -> dict[str, Any]:
        sizes = {"top_n_grams": sorted(self.top_n_grams), "dup_n_grams": sorted(self.dup_n_grams)}
        return super().scores_made_from() | sizes

    def decide(self, scores: Mapping[str, float]) -> Verdict:
        if scores["gopher_repetition.n_chars"] == 0:
            return Verdict(reason="gopher_repetition.empty", detail="the text is empty")
        return super().decide(scores)

    def thresholds(self) -> list[Threshold]:
        names = ("dup_para_frac", "dup_para_char_frac", "dup_line_frac", "dup_line_char_frac")
        of_pieces = [Threshold(f"gopher_repetition.{name}", name, max=getattr(self, name)) for name in names]
        of_n_grams = [
            Threshold(f"gopher_repetition.{kind}_{n}_gram_char_frac", f"{kind}_n_grams.{n}", max=share)
            for kind, shares in (("top", self.top_n_grams), ("dup", self.dup_n_grams))
            for n, share in sorted(shares.items())
        ]
        return of_pieces + of_n_grams


def _of_pieces(kind: str, pieces: list[str], length: int) -> dict[str, float]:
    n_repeated, n_chars = repeated(pieces)
    return {f"dup_{kind}_frac": n_repeated / len(pieces), f"dup_{kind}_char_frac": n_chars / length}


def _of_n_grams(words: list[str], top: list[int], dup: list[int], length: int) -> dict[str, float]:
    grams = NGrams(words)
    scores = {f"top_{n}_gram_char_frac": grams.top_chars(hashes, n) / length for n, hashes in grams.joined(top, " ")}
    for n, hashes in grams.joined(dup, ""):
        scores[f"dup_{n}_gram_char_frac"] = grams.duplicate_chars(hashes, n) / length
    return scores
