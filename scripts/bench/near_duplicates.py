"""Measures the step near_duplicates: its time for inputs of different sizes, beside datatrove's MinHash on the same
documents; and the share of pairs that it finds, by Jaccard similarity, of all pairs of a small input.

Spark and datatrove use the same number of processes. Both read and write Parquet files. The session of Spark is started
and warmed up before the measurement; datatrove starts its processes for each stage. datatrove's own filter has no exact
comparison of candidate pairs.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Keep scripts/ off sys.path, because scripts/evaluate.py would shadow the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
import itertools
import shutil
import tempfile
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from data.curation.duplicates.minhash import recall
from data.curation.duplicates.near import NearDuplicates
from data.curation.duplicates.shingles import shingles
from data.spark.session import spark_session
from scripts.bench import common
from scripts.bench.duplicate_texts import Texts, write_documents
from scripts.bench.duplicate_variants import STEP, Variant, make_variants, run_step

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

CONF = {
    "spark.driver.memory": "4g",
    "spark.driver.defaultJavaOptions": "",
    "spark.python.daemon.module": "data.curation.daemon",
}
"""Settings of the session, as in data/curation/curate.py."""
EDGES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder, spark_session(f"local[{args.workers}]", CONF) as spark:
        result = common.description(args)
        if args.rounds:
            variants = make_variants(spark, args.workers, notes)
            result |= {"sizes": measure(variants, args, Path(folder)), "notes": notes}
            common.show_table(size_cells(result["sizes"]))
        found = all_pairs(spark, Texts(seed=1).pairs(args.pairs), Path(folder) / "pairs")
        result |= found
    print()
    common.show_table([bin_cells(row) for row in found["bins"]])
    print("\n".join(["", *map(band_text, found["planted"]), *notes]))
    common.write_json(args.json, result)
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = common.make_parser(__doc__, documents=10_000, pairs=2500, rounds=3, workers=2)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4], help="multiples of --documents")
    return parser.parse_args(argv)


def measure(variants: dict[str, Variant], args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """The seconds of each variant for each size and round, and the number of documents that it keeps."""
    texts = Texts(seed=0).mixture(args.documents * max(args.sizes))
    inputs = {size: write_documents(folder / f"in{size}", texts[: args.documents * size]) for size in args.sizes}
    for number in range(2):
        variants[STEP](inputs[min(args.sizes)], folder / f"warm{number}")
    rows = {
        (size, name): {"variant": name, "documents": args.documents * size, "seconds": []}
        for name in variants
        for size in args.sizes
    }
    for (size, _), row in rows.items():
        row["bytes"] = sum(len(text.encode()) for text in texts[: args.documents * size])
    for order in common.rounds(variants, args.rounds):
        for size, name in itertools.product(args.sizes, order):
            began = time.perf_counter()
            rows[size, name]["kept"] = variants[name](inputs[size], folder / "out")
            rows[size, name]["seconds"].append(time.perf_counter() - began)
            shutil.rmtree(folder / "out")
    return list(rows.values())


def size_cells(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    first = {row["variant"]: row for row in reversed(rows)}
    step = {row["documents"]: row for row in rows if row["variant"] == STEP}
    return [
        {
            "variant": row["variant"],
            "documents": f"{row['documents']:,}",
            "MB": f"{row['bytes'] / 1e6:.0f}",
            "kept": f"{row['kept']:,}",
            "s": common.median(row["seconds"]),
            "min-max": common.spread(row["seconds"]),
            "of smallest": f"{common.ratio(row['seconds'], first[row['variant']]['seconds']):.2f}",
            f"of {STEP}": f"{common.ratio(row['seconds'], step[row['documents']]['seconds']):.2f}",
        }
        for row in rows
    ]


def all_pairs(spark: "SparkSession", texts: list[str], folder: Path) -> dict[str, Any]:
    """Compare all pairs of documents, and count the pairs that the step has compared, by similarity. Documents 2i and
    2i + 1 are a planted pair."""
    import pyarrow.dataset as ds

    step = NearDuplicates()
    folder.mkdir()
    result, _ = run_step(spark, write_documents(folder / "in", texts), folder / "out")
    removed = np.zeros(len(texts), dtype=bool)
    removed[[row["id"] for row in result.where("reason is not null").select("id").collect()]] = True
    compared = ds.dataset(folder / "out" / "step" / "compared", format="parquet").to_table()
    a, b, similarity = jaccard_of_all(texts, step.n_grams)
    known = dict(zip(zip(a.tolist(), b.tolist(), strict=True), similarity.tolist(), strict=True))
    pairs = list(zip(compared["a"].to_pylist(), compared["b"].to_pylist(), strict=True))
    assert np.array_equal([known[pair] for pair in pairs], compared["similarity"].to_numpy())
    expected = np.vectorize(recall)(similarity, step.num_buckets, step.hashes_per_bucket)
    n_compared = np.histogram(compared["similarity"].to_numpy(), EDGES)[0]
    n_pairs, n_expected = np.histogram(similarity, EDGES)[0], np.histogram(similarity, EDGES, weights=expected)[0]
    columns = zip(EDGES[:-1], n_pairs.tolist(), n_compared.tolist(), n_expected.tolist(), strict=True)
    bins = [dict(zip(("from", "pairs", "compared", "expected"), row, strict=True)) for row in columns]
    planted = np.array([known.get((at, at + 1), 0.0) for at in range(0, len(texts), 2)])
    is_removed = removed[0::2] | removed[1::2]
    bands = {"at least 0.9": planted >= 0.9, "at most 0.6": planted <= 0.6}
    counts = [
        {"similarity": name, "pairs": int(band.sum()), "removed": int(is_removed[band].sum())}
        for name, band in bands.items()
    ]
    return {"bins": bins, "planted": counts}


def jaccard_of_all(texts: list[str], n_grams: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs a < b of documents that have a common shingle, and their Jaccard similarities."""
    from scipy.sparse import csr_array, find

    sets = [shingles(text, n_grams) for text in texts]
    sizes = np.array([len(each) for each in sets])
    _, columns = np.unique(np.concatenate(sets), return_inverse=True)
    contains = csr_array((np.ones(len(columns), np.int32), columns, np.concatenate([[0], np.cumsum(sizes)])))
    a, b, n_common = find(contains @ contains.T)
    is_pair = a < b
    a, b, n_common = a[is_pair], b[is_pair], n_common[is_pair]
    return a, b, n_common / (sizes[a] + sizes[b] - n_common)


def bin_cells(row: dict[str, Any]) -> dict[str, str]:
    return {
        "similarity": f"{row['from']:.1f}-{row['from'] + 0.1:.1f}",
        "pairs": f"{row['pairs']:,}",
        "compared": f"{row['compared']:,}",
        "share": f"{row['compared'] / max(row['pairs'], 1):.2%}",
        "expected": f"{row['expected'] / max(row['pairs'], 1):.2%}",
    }


def band_text(band: dict[str, Any]) -> str:
    share = band["removed"] / max(band["pairs"], 1)
    return (
        f"planted pairs with a similarity of {band['similarity']}: {band['pairs']:,}; one document removed: {share:.2%}"
    )


if __name__ == "__main__":
    sys.exit(main())
