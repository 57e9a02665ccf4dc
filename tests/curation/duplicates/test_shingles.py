"""Words and shingles."""

import random

import numpy as np
import pytest

from data.curation.duplicates.shingles import _WORD, shingles, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't  stop_me, 2x!", ["don", "t", "stop_me", "2x"]),
        ("ＦＵＬＬ ﬁne STRASSE straße", ["full", "fine", "strasse", "strasse"]),
        ("abc中文 カナ", ["abc", "中", "文", "カ", "ナ"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("e\u0301te\u0301 été", ["été", "été"]),
        ("... —", []),
    ],
)
def test_words_of_many_scripts(text, expected):
    assert words(text) == expected


def test_ascii_texts_have_the_same_words_as_other_texts():
    text = "".join(map(chr, range(128))) * 2 + " Two_words 3.5"
    assert words(text) == _WORD.findall(text.casefold())


def slow_shingles(text: str, n: int) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[at : at + n]) for at in range(max(len(found) - n + 1, 1))} if found else set()


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_similarity_of_hashes_is_the_similarity_of_n_grams(n):
    chosen = random.Random(0)
    for size in (0, 1, n, 40):
        a, b = (" ".join(chosen.choices("abc", k=size)) for _ in range(2))
        fast, slow = (shingles(a, n), shingles(b, n)), (slow_shingles(a, n), slow_shingles(b, n))
        assert len(np.intersect1d(*fast)) == len(slow[0] & slow[1])
        assert [len(each) for each in fast] == [len(each) for each in slow]


def test_hashes_do_not_change():
    assert shingles("one two three four five six", 5).tolist() == [2434426799381170693, 16907570477133639065]
