"""Summaries of steps are computed batch by batch. These tests need no Spark."""

import pickle
import random

import numpy as np
import pyarrow as pa
import pytest

from data.curation.base.report import Counts, StepReport
from data.curation.base.step import Threshold
from data.curation.statistics import step_report
from data.curation.statistics.step_report import with_counts, with_histograms
from data.curation.statistics.summary import MAX_KEPT, MAX_SAMPLES, Summary, hashes_of, summarize_batches

REPORT = StepReport(number=1, name="step", parameters={}, fingerprint="f", flows={})


def rows(n: int) -> list[dict]:
    draw = random.Random(0)
    return [
        {
            "id": id,
            "source": draw.choice(["web", "books"]),
            "reason": draw.choice([None, None, "short", "long"]),
            "changes": draw.choice([0, 0, 2]),
            "n_tokens": draw.randint(1, 50),
            "n_bytes": draw.randint(1, 200),
            "scores": list({"length": draw.random()}.items()) if draw.random() < 0.9 else [],
        }
        for id in range(n)
    ]


def summary_of(found: list[dict], sizes: list[int], every: int = 1) -> Summary:
    schema = pa.schema(
        [
            ("id", pa.int64()),
            ("source", pa.string()),
            ("reason", pa.string()),
            ("changes", pa.int64()),
            ("n_tokens", pa.int64()),
            ("n_bytes", pa.int64()),
            ("scores", pa.map_(pa.string(), pa.float64())),
        ]
    )
    total, start = Summary(), 0
    for size in sizes:
        batches = pa.Table.from_pylist(found[start : start + size], schema=schema).to_batches(max_chunksize=7)
        for batch in summarize_batches(iter(batches), ("length",), every, seed=3):
            total.merge(pickle.loads(batch.column(0)[0].as_py()))
        start += size
    return total


@pytest.mark.parametrize("sizes", [[100], [1, 99], [30, 30, 40]])
def test_counts_and_samples_do_not_depend_on_the_batches(sizes):
    found = rows(100)
    total = summary_of(found, sizes)
    for source in ("web", "books"):
        for reason in (None, "short", "long"):
            of_key = [row for row in found if (row["source"], row["reason"]) == (source, reason)]
            assert total.counts[source, reason] == Counts(
                documents=len(of_key),
                tokens=sum(row["n_tokens"] for row in of_key),
                bytes=sum(row["n_bytes"] for row in of_key),
            )
        assert total.changed[source] == sum(
            row["source"] == source and row["reason"] is None and row["changes"] > 0 for row in found
        )
    hashes = dict(enumerate(hashes_of(np.arange(100), 3).tolist()))
    for reason in (None, "short", "long"):
        pairs = sorted((hashes[row["id"]], row["id"]) for row in found if row["reason"] == reason)
        assert total.samples[reason] == pairs[: MAX_KEPT if reason is None else MAX_SAMPLES]


def test_scores_are_sampled_by_the_hash_of_the_id():
    found = rows(1000)
    total = summary_of(found, [1000], every=4)
    sampled = np.flatnonzero(hashes_of(np.arange(1000), 3) % np.uint64(4) == 0)
    assert 180 < len(sampled) < 320
    expected = [dict(found[id]["scores"]).get("length", np.nan) for id in sampled]
    np.testing.assert_array_equal(np.sort(np.concatenate(total.scores["length"])), np.sort(expected))
    assert sum(map(len, total.kept)) == len(sampled)


def test_counts_of_a_report_add_up():
    found = rows(200)
    summary = summary_of(found, [200])
    before = {"books": Counts(documents=90), "web": Counts(documents=110)}
    report = with_counts(REPORT, summary, before)
    assert list(report.flows) == ["books", "web"]
    assert report.flows["web"].before == before["web"]
    removed = sum(counts.documents for counts in report.reasons.values())
    assert report.total().after.documents + removed == 200
    assert list(report.reasons) == sorted(report.reasons, key=lambda reason: -report.reasons[reason].documents)


def test_a_histogram_counts_each_scored_document_once():
    found = rows(300)
    summary = summary_of(found, [150, 150])
    thresholds = [Threshold("length", "min_length", min=-0.5), Threshold("length", "max_length", max=0.5)]
    (drawn,) = with_histograms(REPORT, summary, [*thresholds, Threshold("missing", "min", min=1.0)]).histograms
    scored = [row for row in found if row["scores"]]
    assert sum(drawn.kept) == sum(row["reason"] is None for row in scored)
    assert sum(drawn.removed) == sum(row["reason"] is not None for row in scored)
    assert drawn.n_documents == len(scored)
    assert (drawn.edges[0], drawn.min, drawn.max) == (-0.5, -0.5, 0.5)
    assert len(drawn.edges) == step_report.BINS + 1


def test_a_limit_far_from_all_scores_does_not_stretch_a_histogram():
    summary = summary_of(rows(300), [300])
    thresholds = [Threshold("length", "min_length", min=0.5), Threshold("length", "max_length", max=100.0)]
    (drawn,) = with_histograms(REPORT, summary, thresholds).histograms
    assert drawn.edges[-1] < 1
    assert (drawn.min, drawn.max) == (0.5, 100.0)
