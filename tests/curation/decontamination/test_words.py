"""Words are normalized and hashed."""

import random

import numpy as np
import pytest

from data.curation.decontamination.words import n_grams, normalized
from tests.curation.decontamination.slow_search import grams_of, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't  STOP,\n\tnow!", "dont stop now"),
        ("“Don’t stop”: now…", "dont stop now"),
        ("well-known (U.S.) 3,000 _x_", "wellknown us 3000 x"),
        ("Straße ﬁne cafe\u0301 café", "strasse fine café café"),
        ("中国的 首都, is 北京", "中 国 的 首 都 is 北 京"),
        ("a\u00a0b\u3000c\u200bd\x1ce\0f", "a b cd ef"),
        ("?! …", ""),
        ("\ud800a", "a"),
    ],
)
def test_case_punctuation_and_whitespace_are_ignored(text, words):
    assert normalized(text).decode() == words


def test_ascii_texts_have_the_same_words_as_in_other_texts():
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(chr(rng.randint(0, 127)) for _ in range(40))
        assert normalized(text).decode().split() == words_of(text)
        assert normalized(f"{text} é").decode().split() == [*words_of(text), "é"]


def test_every_character_is_normalized_as_in_the_slow_search():
    letters = "".join(chr(code) for code in range(0x3000, 0xAC00)) + "aÄßǅ" + "".join(map(chr, range(0x80, 0x250)))
    for first in range(0, len(letters), 97):
        text = letters[first : first + 97]
        assert normalized(text).decode().split() == words_of(text)


def test_equal_n_grams_and_only_these_have_equal_hashes():
    rng = random.Random(1)
    words = normalized(" ".join(rng.choice(["a", "b", "aa", "ab", "ü"]) for _ in range(400)))
    for n in (1, 2, 5):
        found = n_grams(words, n)
        grams = [words[start:end] for start, end in zip(found.starts, found.ends, strict=True)]
        assert {tuple(gram.decode().split()) for gram in grams} == grams_of(words.decode().split(), n)
        assert (
            len(set(zip(grams, found.hashes.tolist(), strict=True)))
            == len(set(grams))
            == len(set(found.hashes.tolist()))
        )


def test_hashes_do_not_depend_on_the_position():
    one, other = n_grams(b"a b c", 3), n_grams(b"some words before a b c and after", 3)
    assert one.hashes[0] in other.hashes
    assert np.array_equal(n_grams(b"a b", 3).hashes, np.empty(0, np.uint64))
    assert len(n_grams(b"", 1).hashes) == 0
