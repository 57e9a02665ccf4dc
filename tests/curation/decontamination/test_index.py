"""The index finds the same questions as a slow search."""

import random
from dataclasses import replace

import numpy as np
import pytest

from data.curation.decontamination.index import Index, build_index
from data.curation.decontamination.questions import EvalSet, Question
from data.curation.decontamination.search import build_search
from tests.curation.decontamination.slow_search import slow_search

VOCABULARY = [
    "a",
    "b",
    "Ü",
    "don't",
    "中国",
    "x_y",
    "…",
    "3.5",
    "STRASSE",
    "straße",
    "ﬁ",
    "e\u0301",
    "\u00a0",
    "-",
    "น",
]


def some_text(rng: random.Random, most: int) -> str:
    return "".join(rng.choice(VOCABULARY) + rng.choice([" ", " ", "\n", ", "]) for _ in range(rng.randint(0, most)))


def some_set(rng: random.Random, name: str) -> EvalSet:
    questions = []
    for number in range(rng.randint(0, 8)):
        exact = some_text(rng, 7)
        questions.append(Question(f"{name}:{number}", (f"{exact} {some_text(rng, 6)}", exact), exact))
    return EvalSet(name=name, questions=questions, common=[some_text(rng, 5)])


@pytest.mark.parametrize("seed", range(4))
def test_the_index_finds_what_a_slow_search_finds(seed):
    rng, n_found = random.Random(seed), 0
    for _ in range(30):
        sets = [some_set(rng, "one"), some_set(rng, "two")]
        n, min_overlap = rng.randint(2, 4), rng.choice([0.0, 0.0, 0.4, 1.0])
        n_short = rng.randint(1, n)
        search = build_search(sets, n, n_short, min_overlap)
        for _ in range(10):
            text = some_text(rng, 30)
            found = [
                (search.names[number], search.places[one.question])
                for number, ones in search.find(text)
                for one in ones
            ]
            assert found == slow_search(sets, text, n=n, n_short=n_short, min_overlap=min_overlap)
            n_found += len(found)
    assert n_found > 300


def index_of(*texts: str, n: int = 3, n_short: int | None = None) -> Index:
    return build_index([EvalSet(name="a", questions=[Question(t, (t, t), t) for t in texts])], n, n_short)


def test_words_with_the_same_hash_are_not_found():
    index = index_of("one two three four")
    same = replace(index, hashes=index_of("other words with these hashes").hashes[:2])
    assert len(index.find("one two three")) == 1
    assert same.find("other words with these hashes") == []


def test_a_question_is_found_behind_another_with_the_same_hash():
    index = index_of("one two three", "four five six")
    same = replace(index, hashes=np.full(2, index_of("four five six").hashes[0]))
    assert [found.question for found in same.find("four five six")] == [1]


def test_n_grams_begin_and_end_at_words():
    index = index_of("one two three", n_short=2, n=4)
    assert [index.find(text) for text in ("bone two three", "one two threes", "one two thre")] == [[], [], []]
    assert len(index.find("one two three")) == 1


def test_a_saved_index_is_the_same(tmp_path):
    for number, index in enumerate((index_of("one two three", "four five", n_short=2), index_of(""))):
        index.save(tmp_path / str(number))
        loaded = Index.load(tmp_path / str(number))
        assert loaded.find("ONE two THREE four five") == index.find("ONE two THREE four five")
        assert loaded.findable().tolist() == [number == 0] * len(index.counts)


def test_questions_with_too_few_words_cannot_be_found():
    assert index_of("one two three", "four five", "six", n_short=2).findable().tolist() == [True, True, False]
    assert index_of("one two three", "four five", n_short=None).findable().tolist() == [True, False]


def test_a_long_document_is_searched_to_its_end():
    rng = random.Random(0)
    text = " ".join(str(rng.randint(0, 999)) for _ in range(150_000))
    index = index_of("the words of this question", n=5)
    words = text.split()
    for place in (0, 65_534, 131_072, 150_000):
        assert len(index.find(" ".join([*words[:place], "The words of THIS question?", *words[place:]]))) == 1
    assert index.find(text) == []
