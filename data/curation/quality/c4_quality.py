"""The quality rules of C4 (Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 2.2)."""

import re
from dataclasses import dataclass

from data.config.values import Count
from data.curation.base.document import Document, Judge, Verdict
from data.curation.base.step import Threshold, violated
from data.curation.quality.splitters import SENTENCES, SplittingStep

_CITATION = re.compile(r"\[(?:\d*|edit|citation needed)\]")
_ENDINGS = (".", "?", "!", '"', "'")
_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_POLICY = re.compile("|".join(_POLICIES))


@dataclass(frozen=True, kw_only=True)
class C4Quality(SplittingStep):
    """Removes lines that are not sentences, and documents with few sentences, with curly brackets or with `lorem
    ipsum`. A limit that is null is not applied. White space around lines is removed.

    The number of sentences is stored as a score. If any parameter changes, the step is nevertheless repeated, because
    the result of the last run does not contain the removed lines.
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
        split, (threshold,) = self.splitter(), self.thresholds()

        def judge(document: Document) -> Verdict:
            lines = document.text.splitlines() if self.split_paragraph else split(document.text)
            result = _filtered(lines, self)
            if isinstance(result, Verdict):
                return result
            kept = [line for line in result if line is not None]
            n_sentences = sum(len(split(line)) for line in kept) if self.split_paragraph else len(kept)
            scores = {threshold.score: float(n_sentences)}
            if (removed := violated(threshold, scores)) is not None:
                return removed._replace(scores=scores)
            text = ("\n" if self.split_paragraph else " ").join(kept).strip()
            if not text:
                return Verdict(reason="c4_quality.empty", detail="no line remains", scores=scores)
            if text == document.text:
                return Verdict(scores=scores)
            changes = sum(old != new for old, new in zip(lines, result, strict=True))
            # Only white space at the end of the text may have changed.
            return Verdict(text=text, changes=max(changes, 1), scores=scores)

        return judge

    def thresholds(self) -> list[Threshold]:
        return [Threshold("c4_quality.n_sentences", "min_num_sentences", min=self.min_num_sentences)]


def _filtered(lines: list[str], step: C4Quality) -> list[str | None] | Verdict:
    """For each line, the line without citations and surrounding white space; None if the line is removed. If the
    document is removed, its verdict."""
    result: list[str | None] = []
    for original in lines:
        line = _terminated(original.strip(), step)
        lower = "" if line is None else line.lower()
        if step.filter_lorem_ipsum and "lorem ipsum" in lower:
            return Verdict(reason="c4_quality.filter_lorem_ipsum", detail="contains the text `lorem ipsum`")
        if step.filter_javascript and "javascript" in lower:
            line = None
        if step.filter_curly_bracket and line is not None and "{" in line:
            return Verdict(reason="c4_quality.filter_curly_bracket", detail="contains a curly bracket")
        if step.filter_policy and _POLICY.search(lower):
            line = None
        result.append(line)
    return result


def _terminated(line: str, step: C4Quality) -> str | None:
    """The line without citations, if it has enough words, no long word, and terminal punctuation."""
    words = line.split()
    longest = step.max_word_length
    if longest is not None and len(line) > longest and any(len(word) > longest for word in words):
        return None
    if step.remove_citations and "[" in line:
        line = _CITATION.sub("", line)
    if step.filter_no_terminal_punct and (not line.endswith(_ENDINGS) or line.endswith("...")):
        return None
    # As in C4, a citation counts as a word.
    return None if step.min_words_per_line is not None and len(words) < step.min_words_per_line else line
