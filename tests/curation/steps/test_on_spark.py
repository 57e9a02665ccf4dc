"""The steps on Spark. Samples are compared with slow code that sorts all documents."""

import math
import random
import struct
import sys
from collections import defaultdict

import pytest
import xxhash

from data.curation.base.document import COLUMNS, SCHEMA, VERDICT_COLUMNS, Document
from data.curation.base.step import Context, Step
from data.curation.steps import smallest
from data.curation.steps.function import Function
from data.curation.steps.mask_pii import MaskPii
from data.curation.steps.normalize import Normalize
from data.curation.steps.sample import Sample

pytestmark = [pytest.mark.slow, pytest.mark.subprocess]


def random_documents(n: int) -> list[Document]:
    draw = random.Random(2)
    scores = [{}, {"x.y": math.nan}, *({"x.y": number / 4} for number in range(5))]
    ids = [draw.randrange(3) << 40 | number for number in range(n)]
    return [
        Document(
            id, draw.choice(["web", "web", "docs"]), f"{id % 3}.txt", 0, "a", draw.randrange(20), draw.choice(scores)
        )
        for id in ids
    ]


DOCUMENTS = random_documents(400)


def run(spark, step: Step, documents: list[Document], partitions: int = 3, seed: int = 17):
    """The result by id, and the tables."""
    context = Context(spark=spark, folder=None, seed=seed, count_tokens=len)  # pyright: ignore[reportArgumentType]
    frame = spark.createDataFrame([tuple(document) for document in documents], SCHEMA).repartition(partitions)
    result = step.apply(frame, context).cache()
    assert result.columns == [*COLUMNS, *VERDICT_COLUMNS]
    rows = result.collect()
    assert sorted(row["id"] for row in rows) == sorted(document.id for document in documents)
    return {row["id"]: row for row in rows}, step.tables(result, context)


def sampled(spark, step: Step, documents: list[Document] = DOCUMENTS, partitions: int = 3) -> set[int]:
    rows, _ = run(spark, step, documents, partitions)
    assert {row["reason"] for row in rows.values()} <= {None, "sample"}
    return {id for id, row in rows.items() if row["reason"] is None}


def slow_sample(step: Sample, stratum_of, documents: list[Document] = DOCUMENTS, seed: int = 17) -> set[int]:
    def order(document: Document) -> tuple[int, int]:
        of_seed = xxhash.xxh64(struct.pack("<q", seed), seed=42).intdigest()
        (number,) = struct.unpack("<q", xxhash.xxh64(struct.pack("<q", document.id), seed=of_seed).digest()[::-1])
        return number, document.id

    strata = defaultdict(list)
    for document in sorted(documents, key=order):
        strata[stratum_of(document)].append(document)
    kept = set()
    for name, members in strata.items():
        keys = [key for key in (name, "*") for limits in (step.fractions, step.documents, step.tokens) if key in limits]
        key, tokens = keys[0] if keys else None, 0
        for number, document in enumerate(members):
            full = (
                (key in step.fractions and number + 0.5 > step.fractions[key] * len(members))
                or (key in step.documents and number >= step.documents[key])
                or (key in step.tokens and tokens >= step.tokens[key])
            )
            if not full:
                kept.add(document.id)
            tokens += document.n_tokens
    return kept


def by_score(document: Document) -> str:
    score = document.scores.get("x.y", math.nan)
    return "..0.5" if score < 0.5 else "0.5..1" if 0.5 <= score < 1 else "*"


@pytest.mark.parametrize(
    ("bin_bits", "step", "stratum_of"),
    [
        (1, Sample(fractions={"web": 0.3}, tokens={"docs": 300}), lambda document: document.source),
        (14, Sample(by="x.y", fractions={"..0.5": 0.25}, tokens={"0.5..1": 10**6}, documents={"*": 7}), by_score),
    ],
)
def test_samples_equal_slow_code_with_any_partitions(spark, monkeypatch, bin_bits, step, stratum_of):
    monkeypatch.setattr(smallest, "BIN_BITS", bin_bits)
    expected = slow_sample(step, stratum_of)
    assert sampled(spark, step, partitions=bin_bits) == expected
    assert 0 < len(expected) < len(DOCUMENTS)


def test_a_second_sample_takes_its_fraction_of_the_first(spark):
    half = Sample(by="file", fractions={"*": 0.5})
    first = sampled(spark, half)
    second = sampled(spark, half, [document for document in DOCUMENTS if document.id in first])
    assert first == slow_sample(half, lambda document: document.file)
    assert second < first
    assert abs(len(second) - len(first) / 2) <= 3


def test_the_table_of_a_sample_has_the_limits_and_what_is_kept(spark):
    _, (table,) = run(spark, Sample(fractions={"docs": 0.5}, tokens={"news": 9}), DOCUMENTS)
    rows = {row[0]: row[1:] for row in table.rows}
    docs = [document for document in DOCUMENTS if document.source == "docs"]
    assert rows["docs"][:3] == [len(docs), math.floor(len(docs) / 2 + 0.5), sum(document.n_tokens for document in docs)]
    assert rows["docs"][4] == "0.5 of the documents"
    assert rows["web"][0] == rows["web"][1] > 0
    assert rows["news"] == [0, 0, 0, 0, "9 tokens"]


def test_counts_by_kind_are_summed_over_the_changed_documents(spark):
    texts = ["ann@a.com, bob@b.com and 52.1.2.33", "ann@a.com", "nothing", "earlier"]
    earlier = {"mask_pii.email": 5.0}
    documents = [Document(id, "web", "a", 0, text, 1, earlier if id == 3 else {}) for id, text in enumerate(texts)]
    rows, (table,) = run(spark, MaskPii(key=None), documents)
    assert rows[0]["text"] == "<EMAIL>, <EMAIL> and <IP_ADDRESS>"
    assert rows[0]["changes"] == 3
    assert [row for row in table.rows if row[1]] == [["ip_address", 1, 1], ["email", 2, 3]]
    assert "key" not in [row[0] for row in table.rows]


def test_tables_of_an_unchanged_dataset_have_zeros(spark):
    rows, (table,) = run(spark, Normalize(), [Document(1, "web", "a", 0, "clean", 1, {})])
    assert rows[1]["changes"] == 0
    assert {tuple(row[1:]) for row in table.rows} == {(0, 0)}


def test_own_functions_run_on_executors_that_cannot_import_them(spark, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_step.py").write_text(
        "def helper(text):\n    return text.upper()\n"
        "def judge(document, min_length):\n"
        "    return len(document['text']) >= min_length and helper(document['text'])\n"
    )
    documents = [Document(id, "web", "a", 0, text, 1, {}) for id, text in enumerate(["a", "abc"])]
    step = Function(function="own_step:judge", arguments={"min_length": 2})
    step.check()
    (tmp_path / "own_step.py").unlink()
    rows, _ = run(spark, step, documents)
    assert (rows[0]["reason"], rows[1]["text"]) == ("own_step:judge", "ABC")
    sys.modules.pop("own_step")
