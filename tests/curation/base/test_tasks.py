"""Steps are applied to batches of documents. These tests need no Spark."""

from dataclasses import dataclass

import pyarrow as pa
import pytest

from data.curation.base.document import COLUMNS, Document, Verdict
from data.curation.base.step import DocumentStep, ScoredStep, Threshold
from data.curation.base.tasks import ARROW_SCHEMA, DocumentError, error_from, judge_batches


def batch(*texts: str, scores: tuple = ()) -> pa.RecordBatch:
    rows = [Document(id, "web", "a.jsonl", 10 * id, text, len(text), dict(scores)) for id, text in enumerate(texts)]
    columns = {name: [getattr(row, name) for row in rows] for name in COLUMNS}
    columns["scores"] = [list(row.scores.items()) for row in rows]
    return pa.RecordBatch.from_pydict(columns, schema=ARROW_SCHEMA)


@dataclass(frozen=True, kw_only=True)
class Upper(DocumentStep):
    def judge(self):
        def judge(document: Document) -> Verdict:
            if "raise" in document.text:
                raise ValueError("no")
            if not document.text:
                return Verdict(reason="empty")
            return Verdict(text=document.text.upper() + "!", changes=1)

        return judge


@dataclass(frozen=True, kw_only=True)
class Lengths(ScoredStep):
    min_length: int = 2

    def scorer(self):
        return lambda document: {"lengths.length": float(len(document.text))}

    def scores_made_from(self):
        return {}

    def thresholds(self):
        return [Threshold("lengths.length", "min_length", min=self.min_length)]


def judge(step, found: pa.RecordBatch, *, again: bool = False) -> list[dict]:
    (result,) = judge_batches(iter([found]), step, len, again)
    return result.to_pylist(maps_as_pydicts="strict")


def test_a_changed_text_is_counted_again():
    first, second = judge(Upper(), batch("ab", ""))
    assert (first["text"], first["n_tokens"], first["changes"], first["reason"]) == ("AB!", 3, 1, None)
    assert (second["text"], second["reason"]) == ("", "empty")


def test_an_exception_reaches_the_driver_with_the_record():
    with pytest.raises(RuntimeError) as raised:
        judge(Upper(), batch("ab", "raise"))
    found = error_from(raised.value)
    assert isinstance(found, DocumentError)
    assert (str(found), found.source, found.file, found.position) == ("ValueError: no", "web", "a.jsonl", 10)


def test_scores_are_added_and_compared_with_thresholds():
    short, long = judge(Lengths(), batch("a", "abc", scores=[("x.y", 1.5)]))
    assert short["scores"] == {"x.y": 1.5, "lengths.length": 1.0}
    assert short["reason"] == "lengths.min_length"
    assert short["detail"] == "lengths.length is 1, but at least 2 is required"
    assert long["reason"] is None


def test_thresholds_can_be_applied_to_stored_scores():
    (row,) = judge(Lengths(min_length=9), batch("abc", scores=[("lengths.length", 12.0)]), again=True)
    assert row["reason"] is None
