"""Parameters of the quality rules: thresholds, splitters, word lists and lines."""

import pytest

from data.base.errors import ConfigError
from data.config.build import build
from data.curation.quality.bad_words import C4BadWords
from data.curation.quality.c4_quality import C4Quality
from data.curation.quality.fineweb_quality import FineWebQuality
from data.curation.quality.gopher_quality import GopherQuality
from data.curation.quality.gopher_repetition import GopherRepetition
from data.curation.quality.splitters import regex_sentences, regex_words
from tests.curation.quality.texts import document

SENTENCE = "The cat and the dog have been with us."


def comma_words(text: str) -> list[str]:
    return text.split(",")


def comma_text(text: str) -> str:
    return text


def test_a_null_threshold_is_not_applied():
    off = {threshold.key: None for threshold in GopherQuality().thresholds()}
    assert GopherQuality().judge()(document("#")).reason == "gopher_quality.min_doc_words"
    assert GopherQuality(**off).judge()(document("#")).reason is None


@pytest.mark.parametrize("cls", [GopherQuality, GopherRepetition, FineWebQuality])
def test_thresholds_do_not_change_what_scores_are_made_from(cls):
    names = {threshold.key for threshold in cls().thresholds() if "." not in threshold.key}
    other = cls(**dict.fromkeys(names))
    assert other.scores_made_from() == cls().scores_made_from()
    assert other.made_from() != cls().made_from()


def test_sizes_of_n_grams_change_the_scores():
    assert GopherRepetition(top_n_grams={2: 0.5}).scores_made_from() != GopherRepetition().scores_made_from()
    read = build(GopherRepetition, {"top_n_grams": {2: 1, 3: 0.5}}, "steps[0]")
    assert read.made_from()["top_n_grams"] == {2: 1.0, 3: 0.5}
    with pytest.raises(ConfigError, match=r"steps\[0\].top_n_grams.2 is 1.5, but"):
        build(GopherRepetition, {"top_n_grams": {2: 1.5}}, "steps[0]")


def test_own_words():
    step = GopherQuality(words=f"{__name__}:comma_words", min_doc_words=None)
    step.check()
    assert step.scorer()(document("a,b,.,c"))["gopher_quality.n_words"] == 3
    assert "split" in step.scores_made_from()["words"]


@pytest.mark.parametrize(
    ("words", "message"),
    [("regx", "words is regx, but it must be regex or whitespace, or your own module:function; did you mean regex?"),
     ("no_such_module:split", "words is 'no_such_module:split', but no_such_module cannot be imported")],
)  # fmt: skip
def test_unknown_words_are_a_config_error(words, message):
    with pytest.raises(ConfigError) as raised:
        GopherQuality(words=words).check()
    assert str(raised.value).replace("'regx'", "regx").startswith(message)


def test_own_words_must_be_a_list():
    with pytest.raises(Exception, match="comma_text returned 'a', but it must return a list of strings"):
        GopherQuality(words=f"{__name__}:comma_text").judge()(document("a"))


def test_words_and_sentences():
    assert regex_words("Hi, e.g. 3.14 (a_b)... x--y") == ["Hi", ",", "e.g", ".", "3.14", "(", "a_b", ")", "...", "x",
                                                          "--", "y"]  # fmt: skip
    assert regex_sentences('It is 3.14. "Is it?" (Yes!) No。はい。end') == [
        "It is 3.14.", '"Is it?"', "(Yes!)", "No。", "はい。", "end"]  # fmt: skip


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


@pytest.mark.parametrize(("whole", "text", "count"), [(True, "Bad badly a-bad VERY BAD! s&m", 5), (False, "badly", 1)])
def test_bad_words(tmp_path, whole, text, count):
    (tmp_path / "list.txt").write_text("bad\nVery bad\n\ns&m\n")
    verdict = C4BadWords(words=str(tmp_path / "list.txt"), whole_words=whole).judge()(document(text))
    assert verdict.scores == {"c4_bad_words.n_bad_words": float(count)}
    assert verdict.reason == "c4_bad_words.max_bad_words"


def test_a_missing_word_list_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match=r"words is .*no.txt.*cannot be read"):
        C4BadWords(words=str(tmp_path / "no.txt")).check()
