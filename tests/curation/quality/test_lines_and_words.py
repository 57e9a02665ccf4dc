"""Words, sentences, the lines that C4's rules remove, and the sizes of n-grams."""

import pytest

from data.base.errors import ConfigError
from data.config.build import build
from data.curation.quality.c4_quality import C4Quality
from data.curation.quality.gopher_repetition import GopherRepetition
from data.curation.quality.splitters import regex_sentences, regex_words
from tests.curation.quality.texts import document

SENTENCE = "The cat and the dog have been with us."


def test_words_and_sentences():
    assert regex_words("Hi, e.g. 3.14 (a_b)... x--y") == ["Hi", ",", "e.g", ".", "3.14", "(", "a_b", ")", "...", "x",
                                                          "--", "y"]  # fmt: skip
    assert regex_sentences('It is 3.14. "Is it?" (Yes!) No。はい。end') == [
        "It is 3.14.", '"Is it?"', "(Yes!)", "No。", "はい。", "end"]  # fmt: skip


def test_long_runs_of_punctuation_are_split_in_linear_time():
    """In quadratic time, this would take hours."""
    for text in ("a" + "." * 2**20 + "b.", ".)" * 2**19 + "x", "a" + ";" * 2**20 + "/b"):
        assert "".join(regex_sentences(text)) == "".join(regex_words(text)) == text


def test_c4_removes_lines_and_counts_them():
    text = (
        f"{SENTENCE}[1]\n{SENTENCE}\nNo punctuation here\nToo short.\nJavaScript is not enabled here.\n" + SENTENCE * 3
    )
    verdict = C4Quality(min_num_sentences=3).judge()(document(text))
    assert (verdict.text, verdict.changes) == (f"{SENTENCE}\n{SENTENCE}\n{SENTENCE * 3}", 4)
    assert verdict.scores == {"c4_quality.n_sentences": 3.0}
    verdict = C4Quality().judge()(document(text))
    assert (verdict.reason, verdict.text) == ("c4_quality.min_num_sentences", None)


def test_c4_removes_a_document_of_which_no_line_remains():
    assert C4Quality(min_num_sentences=None).judge()(document("none")).reason == "c4_quality.empty"


def test_sizes_of_n_grams_change_the_scores():
    assert GopherRepetition(top_n_grams={2: 0.5}).scores_made_from() != GopherRepetition().scores_made_from()
    read = build(GopherRepetition, {"top_n_grams": {2: 1, 3: 0.5}}, "steps[0]")
    assert read.made_from()["top_n_grams"] == {2: 1.0, 3: 0.5}
    with pytest.raises(ConfigError, match=r"steps\[0\].top_n_grams.2 is 1.5, but"):
        build(GopherRepetition, {"top_n_grams": {2: 1.5}}, "steps[0]")
