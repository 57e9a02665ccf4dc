"""Statistics of documents match plain computations, and unusual documents have the highest scores."""

import random
from collections import Counter

import numpy as np
import pytest

from data.inspection.documents import Document
from data.inspection.oddity import LEAST_TOKENS, NGRAM, TextCollector, Texts, repeated, statistics
from tests.helpers.toy_tokenizer import ToyTokenizer

TOY = ToyTokenizer()
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "while", "seven", "wizards", "mix", "potions")


def collected(texts: list[str]) -> Texts:
    collector = TextCollector(TOY)
    for number, text in enumerate(texts):
        collector.add(Document((number, 0), np.append(TOY.encode(text), TOY.eos_token_id)))
    return collector.texts()


def sentences(count: int) -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=rng.randint(10, 60))) for _ in range(count)]


@pytest.mark.parametrize("text", ["", "abc", "abcabcabcabc", "a" * 40, "no five tokens are equal", *sentences(3)])
def test_repeated_ngrams_match_a_plain_count(text: str) -> None:
    grams = [text[n : n + NGRAM] for n in range(len(text) - NGRAM + 1)]
    assert repeated(TOY.encode(text)) == pytest.approx(1 - len(set(grams)) / len(grams) if grams else 0)


@pytest.mark.parametrize("text", ["plain text", "1 + 1 = 2", "  \n\t ", "Ёжик 漢字 𠀀 🎉!", "हिन्दी में"])
def test_statistics_match_a_plain_computation(text: str) -> None:
    ids = TOY.encode(text)
    visible = [character for character in text if not character.isspace()]
    marks = "\u093f\u094d\u0940\u0947\u0902"  # vowel signs and others, which belong to letters
    others = [character for character in visible if not character.isalpha() and character not in marks]
    _, most = Counter(ids.tolist()).most_common(1)[0]
    expected = (len(text) / len(ids), len(others) / max(len(visible), 1), repeated(ids), most / len(ids))
    assert statistics(ids, text) == pytest.approx(expected)


def test_unusual_documents_have_the_highest_scores() -> None:
    odd = ["na " * 60, "0.1234 5.678 " * 3, "Ёжик в тумане не " * 3, "zzzzzzzzzzzzzzzzzzzzzzzz"]
    texts = collected([*sentences(100), *odd, odd[0]])
    assert set(texts.oddest(4).tolist()) == {100, 101, 102, 103}
    assert texts.medians()[0] == 1


def test_the_longest_documents_are_listed_without_copies() -> None:
    texts = collected(["a" * 30, "b" * 50, "b" * 50, "c" * 20, "d" * 50])
    assert texts.longest(3).tolist() == [1, 4, 0]
    assert texts.longest(20).tolist() == [1, 4, 0, 3]


def test_special_tokens_are_not_counted_as_text() -> None:
    texts = collected(["äöü", ""])
    assert (texts.characters, texts.plain_tokens, texts.tokens.tolist()) == (3, 6, [7, 1])


def test_short_documents_have_no_score() -> None:
    assert collected(["1" * (LEAST_TOKENS - 1)]).oddest(20).tolist() == []
    assert collected([]).oddest(20).tolist() == []
