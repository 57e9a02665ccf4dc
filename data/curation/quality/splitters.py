"""Splitting of texts into words or sentences, with a built-in function or with the user's own function."""

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any, ClassVar

from data.base.errors import ConfigError, DataError
from data.base.paths import shown
from data.config.source import is_standard_library
from data.config.suggest import near
from data.curation.base.step import DocumentStep, ScoredStep
from data.curation.quality.characters import TERMINAL_PUNCTUATION
from data.examples.own_function import import_function, source_of

Splitter = Callable[[str], list[str]]

_WORD = re.compile(
    r"[^\W_](?:[^\s/:<>=,-]*[^\W_])?"  # from a letter or digit to the last one before a space or separator
    r"|\.\.+|--+"
    r"|\S"
)
_CLOSING = "\"'”’»)\\]"
_OTHERS = re.escape("".join(sorted(TERMINAL_PUNCTUATION - set(".!?"))))
# In scripts other than Latin, no space follows a sentence.
# Possessive quantifiers (`++`) keep the time linear for long runs of punctuation.
_SENTENCE = re.compile(rf"(?:[^.!?{_OTHERS}]|[.!?]++(?![{_CLOSING}]*+(?:\s|$)))*+[.!?{_OTHERS}]*+[{_CLOSING}]*+")


def regex_words(text: str) -> list[str]:
    """Words and symbols. Punctuation around a word is separate, and `...` and `--` are single symbols. The result is
    similar to that of spaCy's English tokenizer, which datatrove uses, in about 3% of the time."""
    return _WORD.findall(text)


def regex_sentences(text: str) -> list[str]:
    """Sentences. A sentence ends with punctuation that is followed by a space or by the end of the text."""
    return [found for piece in _SENTENCE.findall(text) if (found := piece.strip())]


WORDS: Mapping[str, Splitter] = {"regex": regex_words, "whitespace": str.split}
SENTENCES: Mapping[str, Splitter] = {"regex": regex_sentences}


class SplittingStep(DocumentStep):
    """A step with a parameter that selects a splitter: a built-in function, or the user's `module:function`, which is
    called with a text and returns a list of strings."""

    PARAMETER: ClassVar[str]
    BUILT_IN: ClassVar[Mapping[str, Splitter]]

    def check(self) -> None:
        """Raises ConfigError if the splitter does not exist, or has no Python source."""
        self.split_by()

    def splitter(self) -> Splitter:
        """The function. For a user's own function, each result is checked, and DataError is raised if it is invalid."""
        name = self._splitter_name()
        return self.BUILT_IN[name] if name in self.BUILT_IN else _checked(name, self._own())

    def split_by(self) -> str:
        """A text for fingerprints. It changes if the splitter may have changed."""
        name = self._splitter_name()
        if name in self.BUILT_IN:
            return name
        return source_of(name, self._own(), self.PARAMETER)

    def made_from(self) -> dict[str, Any]:
        return asdict(self) | {self.PARAMETER: self.split_by()}  # pyright: ignore[reportArgumentType]

    def modules(self) -> tuple[ModuleType, ...]:
        name = self._splitter_name()
        if name in self.BUILT_IN:
            return ()
        named, defined = sys.modules[name.partition(":")[0]], inspect.getmodule(inspect.unwrap(self._own()))
        if defined is None or defined is named or is_standard_library(defined.__name__):
            return (named,)
        return named, defined

    def __getstate__(self) -> dict[str, Any]:
        # The function itself is pickled, because executors on other machines may not be able to import it.
        built_in = self._splitter_name() in self.BUILT_IN
        return vars(self) if built_in else {**vars(self), "_loaded": self._own()}

    def _splitter_name(self) -> str:
        return getattr(self, self.PARAMETER)

    def _own(self) -> Splitter:
        name = self._splitter_name()
        if ":" not in name:
            raise ConfigError(
                f"is {shown(name)}, but it must be {' or '.join(self.BUILT_IN)}, or your own "
                f"module:function{near(name, self.BUILT_IN)}",
                key=self.PARAMETER,
            )
        loaded = vars(self).get("_loaded")
        return import_function(name, self.PARAMETER, f"returns {self.PARAMETER}") if loaded is None else loaded


@dataclass(frozen=True, kw_only=True)
class WordsStep(SplittingStep, ScoredStep):
    """A step that computes scores from the words of a document."""

    PARAMETER = "words"
    BUILT_IN = WORDS

    words: str = "regex"
    """How texts are split into words. `regex` separates words and punctuation. `whitespace` splits at white space.
    `module:function` is your own function, which is called with a text and returns a list of words. For datatrove's own
    words, install spaCy and set `datatrove.utils.text:split_into_words`."""

    def scores_made_from(self) -> dict[str, Any]:
        return {"words": self.split_by()}


def _checked(name: str, split: Splitter) -> Splitter:
    def checked(text: str) -> list[str]:
        found = split(text)
        if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
            raise DataError(f"{name} returned {shown(found)}, but it must return a list of strings")
        return found

    return checked
