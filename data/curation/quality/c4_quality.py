"""The quality rules of C4 (Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 2.2)."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from data.config.values import Count
from data.curation.base.document import Document, Verdict
from data.curation.base.step import Judge, Threshold, violated
from data.curation.quality.splitters import SENTENCES, Splitter, SplittingStep

_CITATION = re.compile(r"\[(?:\d*|edit|citation needed)\]")
_ENDINGS = (".", "?", "!", '"', "'")
_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_POLICY = re.compile("|".join(_POLICIES))
_LOREM_IPSUM = "filter_lorem_ipsum"
_CURLY_BRACKET = "filter_curly_bracket"
_DETAILS = {_LOREM_IPSUM: "contains the text `lorem ipsum`", _CURLY_BRACKET: "contains a curly bracket"}


@dataclass(frozen=True, kw_only=True)
class C4Quality(SplittingStep):
    """Removes lines that are not sentences, and documents with few sentences, with curly brackets or with `lorem
    ipsum`. A limit that is null is not applied. White space around lines is removed.

    The number of sentences is stored as a score. If any parameter changes, the step is nevertheless repeated, because
    its result does not contain the removed lines.
    """

    PARAMETER = "sentences"
    BUILT_IN = SENTENCES

    split_paragraph: bool = True
    """Apply the rules for lines to lines, as in C4. `false` applies the rules to sentences."""
    remove_citations: bool = True
    """Remove citations as in Wikipedia, such as `[1]`, `[edit]` and `[citation needed]`."""
    filter_no_terminal_punct: bool = True
    """Remove lines that do not end with `.`, `?`, `!` or a quotation mark, or that end with `...`."""
    min_num_sentences: Count | None = 5
    """Minimum number of sentences in the remaining lines."""
    min_words_per_line: Count | None = 3
    """Minimum number of words of a line. Words are separated by white space."""
    max_word_length: Count | None = 1000
    """Maximum number of characters of a word. Lines with a longer word are removed."""
    filter_lorem_ipsum: bool = True
    """Remove documents with a line that contains `lorem ipsum`, ignoring case. Only lines that fulfill the rules for
    words and endings are searched, here and in `filter_curly_bracket`."""
    filter_javascript: bool = True
    """Remove lines that contain `javascript`, ignoring case."""
    filter_curly_bracket: bool = True
    """Remove documents with a line that contains `{`."""
    filter_policy: bool = True
    """Remove lines that mention the use of cookies, a privacy policy or terms of use."""
    sentences: str = "regex"
    """How lines are split into sentences. With `regex`, a sentence ends with punctuation and a space. `module:function`
    is your own function, which is called with a text and returns a list of sentences. For datatrove's own sentences,
    install spaCy and set `datatrove.utils.text:split_into_sentences`."""

    def judge(self) -> Judge:
        split, clean, (threshold,) = self.splitter(), _line_filter(self), self.thresholds()

        def judge(document: Document) -> Verdict:
            lines = document.text.splitlines() if self.split_paragraph else split(document.text)
            kept, reason = _kept_lines(lines, clean)
            if reason is not None:
                return Verdict(reason=f"c4_quality.{reason}", detail=_DETAILS[reason])
            scores = {threshold.score: float(self._count(kept, split))}
            if (removed := violated(threshold, scores)) is not None:
                return removed._replace(scores=scores)
            text = ("\n" if self.split_paragraph else " ").join(kept).strip()
            if not text:
                return Verdict(reason="c4_quality.empty", detail="no line remains", scores=scores)
            if text == document.text:
                return Verdict(scores=scores)
            changes = len(lines) - len(set(lines) & set(kept))
            return Verdict(text=text, changes=max(changes, 1), scores=scores)

        return judge

    def thresholds(self) -> list[Threshold]:
        return [Threshold("c4_quality.n_sentences", "min_num_sentences", min=self.min_num_sentences)]

    def _count(self, lines: list[str], split: Splitter) -> int:
        return sum(len(split(line)) for line in lines) if self.split_paragraph else len(lines)


def _kept_lines(lines: list[str], clean: Callable[[str], str | None]) -> tuple[list[str], str | None]:
    """The lines that remain; or the parameter for which the document is removed."""
    kept = []
    for line in lines:
        found = clean(line)
        if found in _DETAILS:
            return [], found
        if found is not None:
            kept.append(found)
    return kept, None
