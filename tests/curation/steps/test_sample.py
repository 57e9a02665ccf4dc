"""The config of samples. Their results are tested in test_on_spark.py."""

import pytest

from data.base.errors import ConfigError
from data.config.build import build
from data.curation.steps.sample import Sample
from data.curation.steps.strata import overlapping, parse_range


def problems(call) -> dict[str | None, str]:
    with pytest.raises(ConfigError) as raised:
        call()
    return {error.key: error.text for error in getattr(raised.value, "errors", (raised.value,))}


@pytest.mark.parametrize(
    ("values", "key", "text"),
    [
        ({}, "fractions", "is empty, but a sample needs fractions, documents or tokens"),
        ({"fractions": {"web": 1.5}}, "fractions.web", "is 1.5, but it must be in [0, 1]"),
        ({"tokens": {"web": 0}}, "tokens.web", "is 0, but it must be at least 1"),
        ({"fractions": {"web": 0.5}, "tokens": {"web": 9}}, "tokens.web", "is set together with fractions.web"),
        ({"by": "sources", "fractions": {"web": 1}}, "by", "must be source, file or a score; did you mean source?"),
        ({"by": "x.y", "fractions": {"0.5": 1}}, "fractions.0.5", "is not a range of the score: write MIN..MAX"),
        ({"by": "x.y", "fractions": {"2..1": 1}}, "fractions.2..1", "is not a range of the score"),
        ({"by": "x.y", "fractions": {"..2": 1}, "tokens": {"1..": 5}}, "by", "ranges ..2 and 1.., which overlap"),
        ({"fraction": {"web": 1}}, "fraction", "did you mean fractions?"),
    ],
)
def test_invalid_parameters_are_refused(values, key, text):
    found = problems(lambda: build(Sample, values))
    assert text in " ".join(message for name, message in found.items() if str(name).startswith(key))


def test_names_of_sources_are_checked():
    step = Sample(fractions={"wbe": 0.5, "docs": 0.1, "*": 0.2}, tokens={"boks": 5})
    assert problems(lambda: step.check_names(["web", "docs", "books"], [])) == {
        "fractions.wbe": "is not a source; did you mean web? (sources: web, docs, books)",
        "tokens.boks": "is not a source; did you mean books? (sources: web, docs, books)",
    }
    Sample(by="file", fractions={"a.jsonl": 0.5}).check_names(["web"], [])


def test_names_of_scores_are_checked():
    step = Sample(by="gopher.n_wrods", fractions={"..5": 0.5})
    text = problems(lambda: step.check_names(["web"], ["gopher.n_words"] * 2))["by"]
    assert text.endswith("no earlier step computes; did you mean gopher.n_words? (scores: gopher.n_words)")
    assert "(scores: none)" in problems(lambda: step.check_names(["web"], []))["by"]


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("0.5..0.8", (0.5, 0.8)),
        ("..-1", (float("-inf"), -1)),
        ("-2..1e3", (-2, 1000)),
        ("1.5..", (1.5, float("inf"))),
        ("..", (float("-inf"), float("inf"))),
    ],
)
def test_ranges_are_parsed(text, ends):
    assert parse_range(text) == (text, *ends)


@pytest.mark.parametrize("text", ["", "1", "a..b", "1..1", "nan..2", "1...2", "1 .. 2", "1..2..3"])
def test_other_texts_are_no_ranges(text):
    assert parse_range(text) is None


def test_adjacent_ranges_do_not_overlap():
    ranges = [found for text in ("1..2", "..1", "2..") if (found := parse_range(text))]
    assert overlapping(ranges) is None
