"""Quality rules on Spark: executors receive the splitters, word lists and models of the steps."""

import pytest

from data.curation.base.document import SCHEMA
from data.curation.base.step import Context
from data.curation.quality.bad_words import C4BadWords
from data.curation.quality.c4_quality import C4Quality
from data.curation.quality.gopher_quality import GopherQuality
from tests.curation.quality.texts import document, texts

pytestmark = [pytest.mark.slow, pytest.mark.subprocess]


def semicolon_words(text: str) -> list[str]:
    return text.split(";")


def test_verdicts_of_a_chain_of_steps_are_those_of_their_judges(spark, tmp_path):
    (tmp_path / "list.txt").write_text("python\n")
    documents = [document(text)._replace(id=number) for number, text in enumerate(texts(2, 0))]
    frame = spark.createDataFrame([tuple(one) for one in documents], SCHEMA).coalesce(1)
    context = Context(spark=spark, folder=tmp_path, seed=0, count_tokens=len)
    own = GopherQuality(words=f"{__name__}:semicolon_words", min_doc_words=2)
    steps = (own, C4Quality(min_num_sentences=1), C4BadWords(words=str(tmp_path / "list.txt")))
    for step in steps:
        frame = step.apply(frame, context)
    result = {row["id"]: row for row in frame.collect()}
    assert len(result) == len(documents)
    judges = [step.judge() for step in steps]
    for one in documents:
        for judge in judges:
            verdict = judge(one)
            one = one._replace(scores={**one.scores, **(verdict.scores or {})}, text=verdict.text or one.text)
        assert (result[one.id]["reason"], result[one.id]["text"]) == (verdict.reason, one.text)
        assert result[one.id]["scores"] == one.scores
