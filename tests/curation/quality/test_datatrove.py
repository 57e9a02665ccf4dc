"""The rules decide as datatrove's filters do, on the same words and sentences, and their scores are those of
datatrove."""

import math
from functools import cache

import pytest

from data.curation.base.step import Threshold
from data.curation.quality.c4_quality import C4Quality
from data.curation.quality.characters import PUNCTUATION, TERMINAL_PUNCTUATION
from data.curation.quality.fineweb_quality import FineWebQuality
from data.curation.quality.gopher_quality import GopherQuality
from data.curation.quality.gopher_repetition import GopherRepetition
from data.curation.quality.splitters import WORDS, regex_sentences
from tests.curation.quality.texts import document, texts
from tests.helpers.missing import skip_or_fail

GOPHER_OFF = dict.fromkeys({threshold.key for threshold in GopherQuality().thresholds()})
REPETITION_OFF = dict.fromkeys(["dup_line_frac", "dup_para_frac", "dup_line_char_frac", "dup_para_char_frac"])
REPETITION_OFF |= {"top_n_grams": (), "dup_n_grams": ()}
FINEWEB_OFF = {"line_punct_thr": -1, "short_line_thr": 2, "char_duplicates_ratio": 2, "new_line_ratio": math.inf}
ALL = cache(texts)


@pytest.fixture(scope="module")
def filters():
    try:
        from datatrove.pipeline import filters
    except ImportError:
        skip_or_fail("datatrove is not installed")
    return filters


@pytest.fixture(params=["regex", "whitespace"])
def words(request, monkeypatch, filters):
    """datatrove's filters use our words, because its own need spaCy."""
    split = WORDS[request.param]
    for module in ("gopher_quality_filter", "gopher_repetition_filter", "fineweb_quality_filter"):
        monkeypatch.setattr(f"datatrove.pipeline.filters.{module}.split_into_words", lambda text, _: split(text))
    return request.param


def is_kept(theirs, text: str) -> bool:
    from datatrove.data import Document

    return theirs.filter(Document(text=text, id="")) is True


@pytest.mark.parametrize(
    ("theirs", "ours", "n_rules"),
    [
        ("GopherQualityFilter", GopherQuality, 6),
        ("GopherRepetitionFilter", GopherRepetition, 10),
        ("FineWebQualityFilter", FineWebQuality, 4),
    ],
)
def test_decisions_are_those_of_datatrove(theirs, ours, n_rules, words, filters):
    judge, theirs, reasons = ours(words=words).judge(), getattr(filters, theirs)(), set()
    for text in ALL():
        reason = judge(document(text)).reason
        assert (reason is None) == is_kept(theirs, text), (text, reason)
        reasons.add(reason)
    assert len(reasons) >= n_rules, reasons


def only(filters, threshold: Threshold, value: float):
    """datatrove's filter in which only the rule of this threshold is applied, with this value."""
    rule = threshold.score.partition(".")[0]
    if rule == "gopher_quality":
        return filters.GopherQualityFilter(**GOPHER_OFF | {threshold.key: value})
    if rule == "fineweb_quality":
        return filters.FineWebQualityFilter(**FINEWEB_OFF | {threshold.key: value})
    key, _, n = threshold.key.partition(".")
    return filters.GopherRepetitionFilter(**REPETITION_OFF | {key: ((int(n), value),) if n else value})


@pytest.mark.filterwarnings("ignore:.*empty slice", "ignore:invalid value")
@pytest.mark.parametrize("ours", [GopherQuality, GopherRepetition, FineWebQuality])
def test_scores_are_those_of_datatrove(ours, words, filters):
    """The score is the threshold at which datatrove's decision changes."""
    step = ours(words=words)
    score = step.scorer()
    for text in ALL()[::7]:
        scores = score(document(text))
        for threshold in step.thresholds():
            # datatrove compares the larger of these two with one threshold, and does not apply a threshold of 0.
            both = [scores.get(f"gopher_quality.{name}", 0) for name in ("hash_ratio", "ellipsis_ratio")]
            value = max(both) if threshold.key == "max_symbol_word_ratio" else scores.get(threshold.score, 0)
            if value != 0:
                beyond = math.nextafter(value, -math.inf if threshold.max is not None else math.inf)
                assert is_kept(only(filters, threshold, value), text), (threshold, value, text)
                assert not is_kept(only(filters, threshold, beyond), text), (threshold, value, text)


@pytest.mark.parametrize(
    "parameters", [{}, {"split_paragraph": False}, {"remove_citations": False, "filter_no_terminal_punct": False}]
)
def test_c4_changes_texts_as_datatrove_does(parameters, monkeypatch, filters):
    from datatrove.data import Document

    monkeypatch.setattr("datatrove.pipeline.filters.c4_filters.split_into_sentences", lambda x, _: regex_sentences(x))
    judge, theirs, n_changed = C4Quality(**parameters).judge(), filters.C4QualityFilter(**parameters), 0
    for text in ALL():
        verdict, expected = judge(document(text)), Document(text=text, id="")
        assert (verdict.reason is None) == (theirs.filter(expected) is True), (text, verdict)
        if verdict.reason is None:
            assert (text if verdict.text is None else verdict.text) == expected.text
            assert (verdict.changes > 0) == (verdict.text is not None)
            n_changed += verdict.changes > 0
    assert n_changed > 10


def test_punctuation_is_that_of_datatrove(filters):
    from datatrove.utils import text as characters

    assert PUNCTUATION == characters.PUNCTUATION_SET
    assert TERMINAL_PUNCTUATION == characters.TERMINAL_PUNCTUATION


@pytest.mark.proof
def test_decisions_mostly_agree_with_datatroves_own_words(filters):
    pytest.importorskip("spacy", reason="spaCy is not installed: pip install spacy")
    long = [text for text in texts(200, 0) if len(text) > 300]
    for theirs, ours, least in (
        (filters.GopherQualityFilter(), GopherQuality(), 0.97),
        (filters.GopherRepetitionFilter(), GopherRepetition(), 0.97),
        (filters.FineWebQualityFilter(), FineWebQuality(), 0.99),
        (filters.C4QualityFilter(), C4Quality(), 0.97),
    ):
        judge = ours.judge()
        same = [(judge(document(text)).reason is None) == is_kept(theirs, text) for text in long]
        print(type(ours).__name__, len(same), sum(same) / len(same))
        assert sum(same) / len(same) > least
