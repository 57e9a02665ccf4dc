"""Both steps on Spark, compared with slow code on all pairs of documents."""

import itertools
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.base.errors import ConfigError
from data.curation.base.document import COLUMNS, SCHEMA, VERDICT_COLUMNS, Document
from data.curation.base.step import Context, Step
from data.curation.base.tasks import ARROW_SCHEMA
from data.curation.duplicates.exact import ExactDuplicates
from data.curation.duplicates.minhash import bucket_keys, signature
from data.curation.duplicates.near import NearDuplicates
from data.curation.duplicates.shingles import shingles, words

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

pytestmark = [pytest.mark.slow, pytest.mark.subprocess]

VOCABULARY = [f"w{number}" for number in range(3000)]


def document(id: int, text: str, **scores: float) -> Document:
    return Document(id, "web", "a.jsonl", 100 * id, text, len(words(text)), scores)


def similar_documents(n: int, seed: int = 0) -> list[Document]:
    """Documents in families: some words of the first document of a family are replaced in the others."""
    chosen = random.Random(seed)
    texts = ["", "!", "?", "two words", "two words"]
    while len(texts) < n:
        first = chosen.choices(VOCABULARY, k=chosen.randint(4, 80))
        texts.append(" ".join(first))
        for _ in range(chosen.randint(0, 4)):
            share = chosen.choice([0, 0.01, 0.03, 0.1])
            texts.append(" ".join(chosen.choice(VOCABULARY) if chosen.random() < share else word for word in first))
    return [document(id, text) for id, text in enumerate(texts[:n])]


def slow_jaccard(a: str, b: str, n: int = 5) -> float:
    sets = []
    for found in (words(a), words(b)):
        sets.append({tuple(found[at : at + n]) for at in range(max(len(found) - n + 1, 1))} if found else set())
    return len(sets[0] & sets[1]) / max(len(sets[0] | sets[1]), 1)


N_PLANTED = 1000


def planted_pair(rng: np.random.Generator, low: float, high: float) -> tuple[str, str]:
    """Two texts whose Jaccard similarity is in [low, high]."""
    while True:
        first = rng.permutation(len(VOCABULARY))[: rng.integers(40, 120)]
        second, n_changes = first.copy(), rng.integers(0, len(first) // 5)
        second[rng.integers(0, len(first), n_changes)] = rng.integers(0, len(VOCABULARY), n_changes)
        a, b = (" ".join(VOCABULARY[word] for word in each) for each in (first, second))
        if low <= slow_jaccard(a, b) <= high:
            return a, b


def planted_documents(first_id: int) -> list[Document]:
    """N_PLANTED pairs with a similarity of at least 0.9, and then as many pairs with a similarity of at most 0.6."""
    rng = np.random.default_rng(0)
    bands = [(0.9, 1.0)] * N_PLANTED + [(0.3, 0.6)] * N_PLANTED
    texts = [text for band in bands for text in planted_pair(rng, *band)]
    return [document(first_id + number, text) for number, text in enumerate(texts)]


def run(spark, folder: Path, step: Step, documents: list[Document], n_files: int = 2, fail: bool = False) -> list[dict]:
    """The result of the step, sorted by id."""
    return collected(applied(spark, folder, step, documents, n_files, fail), documents)


def applied(
    spark, folder: Path, step: Step, documents: list[Document], n_files: int = 2, fail: bool = False
) -> "DataFrame":
    """The result of the step. With `fail`, the first task of each job that reads the documents fails once."""
    for name in ("input", "step"):
        (folder / name).mkdir(parents=True)
    for number in range(n_files):
        rows = [row._asdict() | {"scores": list(row.scores.items())} for row in documents[number::n_files]]
        pq.write_table(pa.Table.from_pylist(rows, schema=ARROW_SCHEMA), folder / "input" / f"{number}.parquet")
    frame = spark.read.schema(SCHEMA).parquet(str(folder / "input"))
    if fail:
        frame = frame.repartition(n_files, "id").mapInArrow(fail_once, SCHEMA)
    return step.apply(frame, context(spark, folder))


def collected(result: "DataFrame", documents: list[Document]) -> list[dict]:
    assert result.columns == [*COLUMNS, *VERDICT_COLUMNS]
    rows = sorted((row.asDict() for row in result.collect()), key=lambda row: row["id"])
    assert [row["text"] for row in rows] == [each.text for each in sorted(documents)]
    return rows


def context(spark, folder: Path) -> Context:
    return Context(spark=spark, folder=folder / "step", seed=0, count_tokens=len)


def fail_once(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    from pyspark import TaskContext

    context = TaskContext.get()
    for batch in batches:
        yield batch
        if context is not None and context.partitionId() == 0 and context.attemptNumber() == 0:
            raise OSError("the first attempt fails")


def verdicts(rows: list[dict]) -> dict[int, int]:
    """Maps removed documents to the kept documents."""
    assert all((row["reason"] is None) == (row["other"] is None) == (row["detail"] is None) for row in rows)
    return {row["id"]: row["other"] for row in rows if row["other"] is not None}


def slow_near_duplicates(documents: list[Document], step: NearDuplicates) -> dict[int, int]:
    """As `verdicts`: the components of all pairs of documents that share a key and are similar."""
    by_key = defaultdict(list)
    for each in documents:
        if len(found := shingles(each.text, step.n_grams)):
            values = signature(found, step.num_buckets * step.hashes_per_bucket)
            for key in bucket_keys(values[None], step.num_buckets)[0].tolist():
                by_key[key].append(each)
    pairs = {pair for group in by_key.values() for pair in itertools.combinations([each.id for each in group], 2)}
    text = {each.id: each.text for each in documents}
    cluster = {each.id: {each.id} for each in documents}
    for a, b in pairs:
        if cluster[a] is not cluster[b] and slow_jaccard(text[a], text[b], step.n_grams) >= step.threshold:
            cluster[a] |= cluster[b]
            cluster.update(dict.fromkeys(cluster[b], cluster[a]))
    size = {each.id: each.n_tokens for each in documents}
    kept = {id: min(ids, key=lambda other: (-size[other], other)) for id, ids in cluster.items()}
    return {id: other for id, other in kept.items() if id != other}


def test_of_equal_texts_the_first_is_kept(spark, tmp_path):
    texts = ["a", "b", "a", "A", "a ", "b", "", "a", ""]
    rows = run(spark, tmp_path, ExactDuplicates(), [document(id, text) for id, text in enumerate(texts)][::-1])
    assert verdicts(rows) == {2: 0, 5: 1, 7: 0, 8: 6}
    assert rows[2]["reason"] == "exact_duplicate"
    assert rows[2]["changes"] == 0


@pytest.fixture(scope="module")
def documents():
    return [*similar_documents(400), *planted_documents(400)]


@pytest.fixture(scope="module")
def found(spark, tmp_path_factory, documents):
    """The result of near_duplicates."""
    return run(spark, tmp_path_factory.mktemp("near"), NearDuplicates(), documents)


def test_clusters_are_the_components_of_similar_pairs(documents, found):
    assert verdicts(found) == slow_near_duplicates(documents, NearDuplicates())


def test_the_detail_is_the_exact_similarity(found):
    n_measured = 0
    for row in found:
        if row["detail"] is not None and "compared" not in row["detail"]:
            similarity = slow_jaccard(row["text"], found[row["other"]]["text"])
            assert row["detail"] == f"has a Jaccard similarity of {similarity:.3f} to the kept document"
            n_measured += 1
    assert n_measured > 100


def test_partitions_order_and_failed_tasks_do_not_change_the_result(spark, tmp_path, documents, found):
    shuffled = random.Random(0).sample(documents, len(documents))
    assert run(spark, tmp_path, NearDuplicates(), shuffled, n_files=3, fail=True) == found


def test_the_document_with_the_highest_score_is_kept(spark, tmp_path):
    text = " ".join(VOCABULARY[:50])
    rows = [document(0, text), document(1, text, q=0.5), document(2, text, q=0.7), document(3, text, q=0.7)]
    step = NearDuplicates(keep="highest_score", score="q")
    result = applied(spark, tmp_path / "a", step, rows)
    assert verdicts(collected(result, rows)) == {0: 2, 1: 2, 3: 2}
    compared, sizes = step.tables(result, context(spark, tmp_path / "a"))
    assert [row[1] for row in compared.rows] == [3, 3, 0]
    assert sizes.rows[1] == ["3-5", 1, 4, 3]
    with pytest.raises(ConfigError, match="score is z, but no document has this score"):
        run(spark, tmp_path / "b", NearDuplicates(keep="highest_score", score="z"), rows)


def test_planted_pairs_are_found_and_different_pairs_are_kept(found):
    is_removed = np.array([row["reason"] is not None for row in found[-4 * N_PLANTED :]]).reshape(2, N_PLANTED, 2)
    n_found, n_wrong = is_removed.any(axis=2).sum(axis=1)
    assert n_found >= 0.99 * N_PLANTED
    assert n_wrong <= 0.01 * N_PLANTED


@pytest.mark.proof
def test_clusters_of_5000_documents(spark, tmp_path):
    documents = similar_documents(5000)
    assert verdicts(run(spark, tmp_path, NearDuplicates(), documents)) == slow_near_duplicates(
        documents, NearDuplicates()
    )


@pytest.mark.proof
@pytest.mark.parametrize("n_partitions", [1, 3, 7])
def test_the_number_of_partitions_does_not_change_the_result(spark, tmp_path, documents, found, n_partitions):
    before = spark.conf.get("spark.sql.shuffle.partitions")
    spark.conf.set("spark.sql.shuffle.partitions", str(n_partitions))
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "7")
    try:
        assert run(spark, tmp_path, NearDuplicates(), documents, n_partitions, fail=True) == found
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", before)
        spark.conf.unset("spark.sql.execution.arrow.maxRecordsPerBatch")
