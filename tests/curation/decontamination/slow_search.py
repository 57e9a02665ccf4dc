"""Decontamination, implemented slowly and obviously, for comparison with the index."""

import re
import unicodedata
from collections.abc import Sequence

from data.curation.decontamination.questions import EvalSet, Question

UNSPACED = r"([\u3005-\u3007\u0e00-\u0eff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff])"


def words_of(text: str) -> list[str]:
    words = []
    for piece in unicodedata.normalize("NFKC", text).casefold().split():
        word = "".join(char for char in piece if char.isalnum())
        words += [part for part in re.split(UNSPACED, word) if part]
    return words


def grams_of(words: Sequence[str], n: int) -> set[tuple[str, ...]]:
    return {tuple(words[first : first + n]) for first in range(len(words) - n + 1)}


def is_in(question: Question, text: str, common: set, *, n: int, n_short: int, min_overlap: float) -> bool:
    words, exact = words_of(text), words_of(question.exact)
    grams = set().union(*(grams_of(words_of(one), n) for one in question.texts)) - common
    found = grams & grams_of(words, n)
    is_short = n_short <= len(exact) < n and tuple(exact) in grams_of(words, len(exact))
    return is_short or (len(found) > 0 and len(found) / len(grams) >= min_overlap)


def slow_search(sets: Sequence[EvalSet], text: str, **settings) -> list[tuple[str, str]]:
    """The names of the sets and the places of the questions in the text."""
    found = []
    for one in sets:
        common = set().union(*(grams_of(words_of(each), settings["n"]) for each in one.common))
        found += [(one.name, each.place) for each in one.questions if is_in(each, text, common, **settings)]
    return found
