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


def test_verdicts_on_spark_are_those_of_the_judge(spark, tmp_path):
    (tmp_path / "list.txt").write_text("python\n")
    documents = [document(text)._replace(id=number) for number, text in enumerate(texts(2, 0))]
    frame = spark.createDataFrame([tuple(one) for one in documents], SCHEMA)
    context = Context(spark=spark, folder=tmp_path, seed=0, count_tokens=len)
    own = GopherQuality(words=f"{__name__}:semicolon_words", min_doc_words=2)
    for step in (own, C4Quality(min_num_sentences=1), C4BadWords(words=str(tmp_path / "list.txt"))):
        judge = step.judge()
        result = {row["id"]: row for row in step.apply(frame, context).collect()}
        assert len(result) == len(documents)
        for one in documents:
            verdict = judge(one)
            assert result[one.id]["reason"] == verdict.reason
            assert result[one.id]["text"] == (one.text if verdict.text is None else verdict.text)
            assert result[one.id]["scores"] == dict(verdict.scores or {})
