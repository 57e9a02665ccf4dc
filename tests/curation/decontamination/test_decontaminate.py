"""Documents that contain questions are removed, and others are kept. These tests need no Spark."""

import random

import pytest

from data.base.errors import ConfigError
from data.config.build import build
from data.curation.base.document import KEPT, Document
from data.curation.decontamination.decontaminate import Decontaminate
from tests.curation.decontamination.planted import contaminated, sentence, write_set


def document(text: str) -> Document:
    return Document(1, "web", "a.jsonl", 0, text, 1, {})


def judge_of(evals: dict, **parameters):
    step = build(Decontaminate, {"evals": evals, **parameters})
    step.check()
    judge = step.judge()
    return lambda text: judge(document(text))


def test_every_planted_question_is_found(tmp_path):
    rng = random.Random(0)
    questions = write_set(tmp_path / "a.jsonl", rng, [*range(5, 30), 60])
    judge = judge_of({"mine": str(tmp_path / "a.jsonl")})
    planted = [text for question in questions for text in contaminated(question, rng)]
    assert len(planted) == 728
    assert {judge(text).reason for text in planted} == {"decontaminate.mine"}


def test_13_consecutive_words_of_a_question_are_found(tmp_path):
    rng = random.Random(1)
    (question,) = write_set(tmp_path / "a.jsonl", rng, [40])
    judge, words = judge_of({"mine": str(tmp_path / "a.jsonl")}), question.split()
    for first in range(28):
        text = " ".join([sentence(rng, 20), *words[first : first + 13], sentence(rng, 20)])
        assert judge(text).reason == "decontaminate.mine"
        assert judge(text.replace(words[first + 6], "other")) == KEPT


def test_clean_documents_are_kept(tmp_path):
    rng = random.Random(2)
    write_set(tmp_path / "a.jsonl", rng, [5, 12, 13, 40] * 20)
    judge = judge_of({"mine": str(tmp_path / "a.jsonl")})
    assert {judge(sentence(rng, 300)) for _ in range(100)} == {KEPT}
    assert judge("") == KEPT


def test_a_removal_names_the_question_and_the_common_words(tmp_path):
    (tmp_path / "a.jsonl").write_text('\n{"question": "Who wrote the novel Dracula?"}\n')
    (tmp_path / "b.csv").write_text("question,answer\nWho wrote the novel Dracula in 1897?,Stoker\n")
    judge = judge_of({"one": str(tmp_path / "a.jsonl"), "two": str(tmp_path / "b.csv")}, n_grams=6)
    short, both = judge("Q: who wrote the novel 'Dracula'?"), judge("Who wrote the novel Dracula in 1897? Stoker.")
    assert short.detail == f"contains the question of {tmp_path}/a.jsonl:2: 'who wrote the novel dracula'"
    assert (both.reason, both.scores) == ("decontaminate.one", {"decontaminate.one": 1.0, "decontaminate.two": 1.0})
    assert both.detail is not None
    assert " (also questions of two): " in both.detail
    two = judge("he wrote the novel Dracula in 1897? Stoker.")
    place = f"{tmp_path}/b.csv row 1 (line 2)"
    assert two.detail == f"contains 2 of 3 n-grams of {place}: 'wrote the novel dracula in 1897'"


def test_short_questions_are_not_searched_below_the_minimum_or_on_request(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"question": "Who wrote Dracula?"}\n{"question": "Who wrote the novel Dracula?"}'
    )
    texts, evals = ("Who wrote Dracula?", "Who wrote the novel Dracula?"), {"mine": str(tmp_path / "a.jsonl")}
    for parameters, removed in (({}, [False, True]), ({"min_question_words": 3}, [True, True])):
        judge = judge_of(evals, **parameters)
        assert [judge(text).reason is not None for text in texts] == removed
    judge = judge_of(evals, exact_questions=False)
    assert [judge(text) for text in texts] == [KEPT, KEPT]


def test_min_overlap_is_a_share_of_the_questions_n_grams(tmp_path):
    (question,) = write_set(tmp_path / "a.jsonl", random.Random(3), [22])
    words = question.split()  # with the two choices, 24 words and 12 n-grams
    judge = judge_of({"mine": str(tmp_path / "a.jsonl")}, min_overlap=0.5)
    assert judge(" ".join(words[:17])) == KEPT
    assert judge(" ".join(words[:18])).reason == "decontaminate.mine"


def test_the_fingerprint_depends_on_the_questions_but_not_on_their_location(tmp_path):
    def made_from(name: str, content: str, **parameters):
        (tmp_path / name).write_text(content)
        return Decontaminate(evals={"mine": str(tmp_path / name)}, **parameters).made_from()

    same = made_from("a.jsonl", '{"question": "one two"}')
    assert same == made_from("b.csv", "question\none two\n")
    assert same != made_from("c.jsonl", '{"question": "one three"}')
    assert same != made_from("d.jsonl", '{"question": "one two"}', n_grams=8)


def test_all_problems_are_reported_before_anything_runs(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "one two"}')
    evals = {"none": "none.jsonl", "misspelt": {"path": str(tmp_path / "a.jsonl"), "fields": ["questoin"]}}
    with pytest.raises(ConfigError) as raised:
        build(Decontaminate, {"evals": evals}).check()
    assert "evals.none has 'none.jsonl', but no such file exists" in str(raised.value)
    assert "evals.misspelt.fields contains 'questoin', but no record has this field; did you mean question?" in str(
        raised.value
    )


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "evals is missing"),
        ({"evals": {}}, "evals is empty"),
        ({"evals": {"a.b": "x.jsonl"}}, "evals contains the name 'a.b'"),
        ({"evals": {"a": 3}}, "evals.a is 3"),
        ({"evals": {"a": {"pth": "x.jsonl"}}}, "evals.a.pth is not a key; did you mean path"),
        ({"evals": {"a": {}}}, "evals.a has no unique source, because path and lm_eval are both missing"),
        ({"evals": {"a": {"path": "x", "lm_eval": "y"}}}, "path and lm_eval are both set"),
        ({"evals": {"a": {"lm_eval": "y", "fields": ["z"]}}}, "evals.a.fields requires path"),
        ({"evals": {"a": {"path": "x", "fields": []}}}, "evals.a.fields is empty"),
        ({"evals": {"a": "x"}, "n_grams": 1}, "n_grams is 1"),
        ({"evals": {"a": "x"}, "min_overlap": 1.5}, "min_overlap is 1.5"),
        ({"evals": {"a": "x"}, "min_question_words": 14}, "min_question_words is 14, but it must be at most n_grams"),
        ({"evals": {"a": "x"}, "ngrams": 8}, "ngrams is not a key; did you mean n_grams"),
    ],
)
def test_invalid_parameters_are_refused(parameters, message):
    with pytest.raises(ConfigError) as raised:
        build(Decontaminate, parameters)
    assert message in str(raised.value)
