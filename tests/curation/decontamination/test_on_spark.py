"""Documents are judged on Spark's executors, and what was found is listed by evaluation set."""

import json

import pytest

from data.curation.base.document import SCHEMA
from data.curation.base.step import Context
from data.curation.decontamination.decontaminate import Decontaminate

pytestmark = [pytest.mark.slow, pytest.mark.subprocess]
QUESTIONS = {
    "one": ["Who wrote the novel Dracula?", "Why?", "Where is the largest city of France?"],
    "two": ["who wrote THE novel Dracula", "Which animal is the largest animal of all?"],
    "clean": ["What is the boiling point of water in degrees Celsius at sea level on a clear day?"],
}
TEXTS = [
    "Nothing.",
    "Tell me, who wrote the novel Dracula?",
    "Who wrote the novel Dracula? Where is the largest city of France?",
    "Which animal is the largest animal of all? Why?",
    "Where is the largest city of Germany?",
]


def test_contamination_is_listed_by_set(spark, tmp_path):
    for name, questions in QUESTIONS.items():
        lines = [json.dumps({"question": question}) + "\n" for question in questions]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    step = Decontaminate(evals={name: str(tmp_path / f"{name}.jsonl") for name in QUESTIONS})
    context = Context(spark=spark, folder=tmp_path / "tmp", seed=1, count_tokens=len)
    rows = [(number, "web", "a.jsonl", 0, text, 1, {}) for number, text in enumerate(TEXTS)]
    step.apply(spark.createDataFrame(rows, SCHEMA), context).write.parquet(str(tmp_path / "result"))
    result = spark.read.parquet(str(tmp_path / "result"))
    reasons = {row["id"]: row["reason"] for row in result.collect()}
    assert reasons == {0: None, 1: "decontaminate.one", 2: "decontaminate.one", 3: "decontaminate.two", 4: None}
    (table,) = step.tables(result, context)
    assert table.columns == [
        "set",
        "first found question",
        "questions",
        "too short to search",
        "found",
        "documents removed",
    ]
    assert table.rows == [
        ["one", f"{tmp_path}/one.jsonl:1: Who wrote the novel Dracula?", 3, 1, 2, 2],
        ["two", f"{tmp_path}/two.jsonl:1: who wrote THE novel Dracula", 2, 0, 2, 3],
        ["clean", "", 1, 0, 0, 0],
    ]
