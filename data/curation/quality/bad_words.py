"""The word list rule of C4 (Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 2.2)."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.base.errors import ConfigError
from data.config.values import CountOrZero, PathText
from data.curation.base.document import Document
from data.curation.base.step import ScoredStep, Threshold

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True)
class C4BadWords(ScoredStep):
    """Removes documents that contain words of a list. C4 uses the list of
    https://github.com/LDNOOBW/List-of-Dirty-Naughty-Obscene-and-Otherwise-Bad-Words."""

    words: PathText
    """A text file with one word or phrase per line. Only the driver reads it."""
    max_bad_words: CountOrZero | None = 0
    """Maximum number of occurrences in a document; null counts them only."""
    whole_words: bool = True
    """Do not search inside words. Set `false` for languages that are written without spaces."""

    def check(self) -> None:
        self._list()

    def scorer(self) -> Callable[[Document], Mapping[str, float]]:
        count = _counter(self._list(), self.whole_words)
        return lambda document: {"c4_bad_words.n_bad_words": float(count(document.text.lower()))}

    def scores_made_from(self) -> dict[str, Any]:
        return {"words": self._list(), "whole_words": self.whole_words}

    def made_from(self) -> dict[str, Any]:
        return {**self.scores_made_from(), "max_bad_words": self.max_bad_words}

    def thresholds(self) -> list[Threshold]:
        return [Threshold("c4_bad_words.n_bad_words", "max_bad_words", max=self.max_bad_words)]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_loaded": self._list()}

    def _list(self) -> list[str]:
        """The words of the file in lower case."""
        loaded = vars(self).get("_loaded")
        if loaded is not None:
            return loaded
        try:
            lines = Path(self.words).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"is {self.words!r}, but this file cannot be read ({error}): set the path of a text file in UTF-8 with "
                "one word per line",
                key="words",
            ) from None
        words = sorted({line.strip().lower() for line in lines} - {""})
        if not words:
            raise ConfigError(f"is {self.words!r}, but this file contains no words: write one per line", key="words")
        return words


def _counter(words: list[str], whole_words: bool) -> Callable[[str], int]:
    """A function that counts the words in a text, which is in lower case."""
    # Single words are looked up in a set, which is faster than searching each of them.
    single = {word for word in words if whole_words and _WORD.fullmatch(word)}
    sides = (r"(?<!\w)", r"(?!\w)") if whole_words else ("", "")
    others = [(word, re.compile(re.escape(word).join(sides))) for word in words if word not in single]

    def count(text: str) -> int:
        found = sum(word in single for word in _WORD.findall(text)) if single else 0
        return found + sum(len(pattern.findall(text)) for word, pattern in others if word in text)

    return count
