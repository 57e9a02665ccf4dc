"""Parameters of the quality rules, and the list of bad words."""

import pickle
import re
import sys

import pytest

from data.base.errors import ConfigError, DataError
from data.curation.quality.bad_words import C4BadWords
from data.curation.quality.c4_quality import C4Quality
from data.curation.quality.fineweb_quality import FineWebQuality
from data.curation.quality.gopher_quality import GopherQuality
from data.curation.quality.gopher_repetition import GopherRepetition
from tests.curation.quality.texts import document

TEXT = "The bridge is old, and the people of the town have to be careful with it. " * 10


def test_the_first_threshold_that_is_not_met_is_the_reason():
    verdict = GopherQuality(min_doc_words=1000).judge()(document("one two three"))
    assert verdict.reason == "gopher_quality.min_doc_words"
    assert verdict.detail == "gopher_quality.n_words is 3, but at least 1000 is required"


@pytest.mark.parametrize("cls", [GopherQuality, GopherRepetition, FineWebQuality])
def test_stored_scores_lead_to_the_same_verdict(cls):
    strict, normal = cls(), cls()
    scores = normal.scorer()(document(TEXT))
    assert strict.decide(scores)._replace(scores=scores) == strict.judge()(document(TEXT))
    assert strict.scores_made_from() == normal.scores_made_from()


def test_a_changed_threshold_needs_no_new_scores_but_a_changed_splitter_does():
    step = GopherQuality()
    assert GopherQuality(min_doc_words=5).scores_made_from() == step.scores_made_from()
    assert GopherQuality(min_doc_words=5).made_from() != step.made_from()
    assert GopherQuality(words="whitespace").scores_made_from() != step.scores_made_from()


def test_an_unknown_splitter_is_reported_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"words is 'regx', but it must be regex or whitespace.*did you mean regex"):
        GopherQuality(words="regx").check()


def test_a_splitter_of_the_user_is_used_and_checked(tmp_path, monkeypatch):
    code = "def letters(text):\n    return list(text)\n\ndef broken(text):\n    return text\n"
    (tmp_path / "splitters_of_test.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "splitters_of_test", raising=False)
    step = GopherQuality(words="splitters_of_test:letters")
    step.check()
    assert [module.__name__ for module in step.modules()] == ["splitters_of_test"]
    assert step.scorer()(document("abc"))["gopher_quality.n_words"] == 3
    with pytest.raises(DataError, match="splitters_of_test:broken returned 'abc', but it must return a list"):
        GopherQuality(words="splitters_of_test:broken").scorer()(document("abc"))


def test_a_changed_parameter_of_c4_repeats_the_step():
    assert C4Quality().made_from() != C4Quality(min_num_sentences=3).made_from()


def test_bad_words_are_counted_as_whole_words_or_anywhere(tmp_path):
    (tmp_path / "words.txt").write_text("Ham\nwhite bread\n\nhä\n")
    text = "Ham, a hamster and WHITE BREAD. Hä? hamham"
    step = pickle.loads(pickle.dumps(C4BadWords(words=str(tmp_path / "words.txt"))))
    assert step.judge()(document(text)).scores == {"c4_bad_words.n_bad_words": 3.0}
    anywhere = C4BadWords(words=str(tmp_path / "words.txt"), whole_words=False).judge()(document(text))
    slow = sum(len(re.findall(word, text.lower())) for word in ("ham", "white bread", "hä"))
    assert anywhere.scores == {"c4_bad_words.n_bad_words": float(slow)}
    assert anywhere.reason == "c4_bad_words.max_bad_words"


def test_a_missing_or_empty_list_of_words_is_reported(tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n")
    for name, text in (("missing.txt", "this file cannot be read"), ("empty.txt", "this file contains no words")):
        with pytest.raises(ConfigError, match=text) as raised:
            C4BadWords(words=str(tmp_path / name)).check()
        assert raised.value.key == "words"
