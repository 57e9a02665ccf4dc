"""The variants that scripts/bench/near_duplicates.py compares: the step near_duplicates, and datatrove's MinHash."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.curation.base.document import SCHEMA
from data.curation.base.step import Context
from data.curation.duplicates.near import NearDuplicates

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

STEP, DATATROVE = "near_duplicates", "datatrove"
Variant = Callable[[Path, Path], int]
"""Takes the folder of the documents and an empty folder, and returns the number of documents that are kept."""


def make_variants(spark: "SparkSession", n_workers: int, notes: list[str]) -> dict[str, Variant]:
    """The variants by name. If datatrove is not installed, the reason is appended to `notes`."""
    variants: dict[str, Variant] = {STEP: lambda documents, folder: run_step(spark, documents, folder)[1]}
    if find_spec("datatrove") is None:
        notes.append("not measured: datatrove is not installed (pip install datatrove[io,processing])")
    else:
        variants[DATATROVE] = lambda documents, folder: run_datatrove(documents, folder, n_workers)
    return variants


def run_step(spark: "SparkSession", documents: Path, folder: Path) -> tuple["DataFrame", int]:
    """The result of near_duplicates with its default parameters, and the number of kept documents."""
    (folder / "step").mkdir(parents=True)
    context = Context(spark=spark, folder=folder / "step", seed=0, count_tokens=len)
    result = NearDuplicates().apply(spark.read.schema(SCHEMA).parquet(str(documents)), context)
    result.write.parquet(str(folder / "result"))
    result = spark.read.parquet(str(folder / "result"))
    return result, result.where("reason is null").count()


def run_datatrove(documents: Path, folder: Path, n_workers: int) -> int:
    """The four steps of datatrove's MinHash, with the same buckets, and with words that are separated by spaces. (Its
    word tokenizer for English, spaCy, is slower.) Candidate pairs count as duplicates."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import ParquetWriter

    step, n_tasks = NearDuplicates(), len(list(documents.iterdir()))
    config = MinhashConfig(n_grams=step.n_grams, num_buckets=step.num_buckets, hashes_per_bucket=step.hashes_per_bucket)
    signatures, buckets, clusters, out = (str(folder / name) for name in ("signatures", "buckets", "clusters", "out"))
    reader = ParquetReader(str(documents))
    by_spaces: Any = _Spaces()
    stages = [
        ([reader, MinhashDedupSignature(signatures, config, language=by_spaces)], n_tasks),
        ([MinhashDedupBuckets(signatures, buckets, config=config)], step.num_buckets),
        ([MinhashDedupCluster(buckets, clusters, config=config)], 1),
        ([reader, MinhashDedupFilter(clusters), ParquetWriter(out, adapter=_columns)], n_tasks),
    ]
    for number, (pipeline, tasks) in enumerate(stages):
        logs = str(folder / f"logs{number}")
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=min(n_workers, tasks), logging_dir=logs).run()
    return _n_rows(Path(out))


def _columns(writer: Any, document: Any) -> dict[str, str]:
    # The default adapter omits an id that is 0, so that the first rows would have other columns.
    return {"id": str(document.id), "text": document.text}


def _n_rows(folder: Path) -> int:
    import pyarrow.dataset as ds

    return ds.dataset(folder, format="parquet").count_rows()


def _make_spaces() -> type[Any]:
    if find_spec("datatrove") is None:
        return object
    from datatrove.utils.word_tokenizers import WordTokenizer

    return WordTokenizer


class _Spaces(_make_spaces()):
    """Splits simplified texts at spaces."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        return [text]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [(0, len(text))]
