"""Step 0: read the records of all sources as documents. Each task reads one slice of a source."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from data.base.errors import EngineError, Problems, RowError, under
from data.base.problems import Place, Problem, Reading
from data.curation.base.document import ID_BITS, SCHEMA, VERDICT_SCHEMA, Document, Verdict
from data.curation.base.tasks import batch_of, errors_for_driver
from data.curation.config import CurationConfig
from data.examples.examples import read_examples
from data.examples.forms import Text
from data.examples.preprocessing import is_own, preprocessing_source, resolve_preprocessing_fn
from data.sources.slices import Slice
from data.sources.source import Source, open_source
from data.spark.executors import arrow_function, check_versions, module_of, versions_here
from data.tokenization.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

SLICE_BYTES = 64 << 20
"""Minimum size of a slice in bytes of input, except for the last slice of a source."""
BATCH_BYTES = 8 << 20
"""Approximate size of the text in a batch of documents."""
INVALID = "invalid"
"""The reason of records that are not valid texts begins with this word."""
DROPPED = "preprocessing_fn returned None"
"""The reason of records that are dropped by preprocessing_fn."""
_FIX = "set preprocessing_fn to {text: COLUMN}, or to a function that converts the record to a text"


@dataclass(frozen=True)
class TokenCounter:
    """Counts the tokens of a text."""

    tokenizer: Tokenizer

    def __call__(self, text: str) -> int:
        return len(self.tokenizer.encode(text))


@dataclass(frozen=True, kw_only=True)
class OpenSource:
    """A source that is read."""

    name: str
    source: Source
    preprocess: Callable[[Any], Any] | None
    preprocessing: str
    """The text of preprocessing_fn for fingerprints."""
    module: Any = None
    """The module of the user's own preprocessing_fn."""

    @cached_property
    def files(self) -> list[str]:
        """The names of the input files."""
        return [str(each["path"]) for each in self.source.inputs]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a task needs to read slices. Can be pickled."""

    sources: list[OpenSource]
    slices: list[tuple[int, Slice]]
    """The index of the source and the slice. The position in this list is the number in the ids of documents."""
    count_tokens: TokenCounter
    versions: dict[str, str]


def open_sources(config: CurationConfig, *, rehash: bool = False) -> list[OpenSource]:
    """Open all sources. Raises ConfigError or DataError with the problems of all sources, and EngineError for a source
    that executors cannot read."""
    problems, found = Problems(), []
    for name, of_source in config.sources.items():
        with problems.collect(), under(f"sources.{name}"):
            fn = of_source.preprocessing_fn
            source = open_source(config.dataset(name), rehash=rehash)
            if source.is_local_only:
                raise EngineError(
                    f"sources.{name}: only the `datasets` library can read this dataset, in one process: save it as "
                    "Parquet first (Dataset.to_parquet)"
                )
            found.append(
                OpenSource(
                    name=name,
                    source=source,
                    preprocess=resolve_preprocessing_fn(fn),
                    preprocessing=preprocessing_source(fn),
                    module=module_of(str(fn)) if is_own(fn) else None,
                )
            )
    problems.raise_if_any()
    return found


def made_from(sources: list[OpenSource], config: CurationConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """Everything that determines the documents, as plain JSON values. New input files are read here."""
    return {
        "sources": [[each.name, each.source.fingerprint, each.preprocessing] for each in sources],
        "tokenizer": tokenizer.fingerprint,
        "on_bad_example": config.on_bad_example,
        "slice_bytes": SLICE_BYTES,
    }


def work_of(sources: list[OpenSource], tokenizer: Tokenizer) -> Work:
    """Cut the sources into slices."""
    slices = [(index, slice) for index, each in enumerate(sources) for slice in each.source.slices(SLICE_BYTES)]
    return Work(sources=sources, slices=slices, count_tokens=TokenCounter(tokenizer), versions=versions_here())


def read_documents(spark: "SparkSession", work: Work) -> "DataFrame":
    """The records of all sources, with the columns of SCHEMA and VERDICT_SCHEMA. Invalid records have an empty text and
    a reason."""
    modules = tuple({each.module.__name__: each.module for each in work.sources if each.module is not None}.values())
    n = len(work.slices)
    return spark.range(0, n, 1, n).mapInArrow(
        arrow_function(read_slices, work, modules=modules), f"{SCHEMA}, {VERDICT_SCHEMA}"
    )


def read_slices(batches: Iterator[pa.RecordBatch], work: Work) -> Iterator[pa.RecordBatch]:
    """The function of a task: read the slices with the numbers in the batches."""
    with errors_for_driver():
        check_versions(work.versions)
        for batch in batches:
            for number in batch.column(0).to_pylist():
                yield from _batches(_read_slice(work, number))


def _batches(rows: Iterator[tuple[Document, Verdict]]) -> Iterator[pa.RecordBatch]:
    held: list[tuple[Document, Verdict]] = []
    n_bytes = 0
    for row in rows:
        held.append(row)
        n_bytes += len(row[0].text)
        if n_bytes >= BATCH_BYTES:
            yield batch_of(held)
            held, n_bytes = [], 0
    if held:
        yield batch_of(held)


def _read_slice(work: Work, number: int) -> Iterator[tuple[Document, Verdict]]:
    index, slice = work.slices[number]
    opened = work.sources[index]
    count = 0
    for chunk in opened.source.chunks(slice):
        for place, row in opened.source.rows(chunk):
            text, verdict = _read_record(place, row, opened.preprocess)
            n_tokens = 0
            if verdict.reason is None:
                try:
                    n_tokens = work.count_tokens(text)
                except RowError as error:
                    text, verdict = "", _invalid(Problem(error.kind, str(error)))
            yield (
                Document(
                    id=(number << ID_BITS) | count,
                    source=opened.name,
                    file=opened.files[place.file],
                    position=place.position,
                    text=text,
                    n_tokens=n_tokens,
                    scores={},
                ),
                verdict,
            )
            count += 1


def _read_record(place: Place, row: Any, preprocess: Callable[[Any], Any] | None) -> tuple[str, Verdict]:
    reading = Reading()
    for _, example in read_examples([(place, row)], preprocess, reading):
        if isinstance(example, Text):
            return example.text, Verdict()
        problem = Problem(f"{example.form} instead of text", f"has {example.form}, but it must be a text: {_FIX}")
        return "", _invalid(problem)
    if reading.n_dropped:
        return "", Verdict(reason=DROPPED)
    kind = next(iter(reading.kinds))
    return "", _invalid(Problem(kind, reading.first[kind]))


def _invalid(problem: Problem) -> Verdict:
    return Verdict(reason=f"{INVALID}: {problem.kind}", detail=problem.text)


def check_files(result: "DataFrame", sources: list[OpenSource]) -> None:
    """Check the files after all slices were read. Raises DataError if a file has changed in the meantime, or if a
    source has no records."""
    seen: dict[str, set[str]] = {}
    for row in result.select("source", "file").distinct().collect():
        seen.setdefault(row["source"], set()).add(row["file"])
    for each in sources:
        files = seen.get(each.name, set())
        each.source.check_done({number for number, file in enumerate(each.files) if file in files})


def refuse_invalid(result: "DataFrame", place: Callable[[str, str, int], str]) -> None:
    """Raises a DataError that lists all invalid records. `place` makes the location of a document."""
    from pyspark.sql import functions as F

    invalid = result.where(F.col("reason").startswith(INVALID))
    reading = Reading()
    counts = invalid.groupBy("reason").agg(F.count("*").alias("n"), F.min("id").alias("first")).orderBy("first")
    for row in counts.collect():
        kind = row["reason"].removeprefix(f"{INVALID}: ")
        some = invalid.where(F.col("reason") == row["reason"]).orderBy("id").limit(3).collect()
        reading.merge(
            Reading(
                bad_rows=row["n"],
                kinds=Counter({kind: row["n"]}),
                first={kind: some[0]["detail"]},
                places={kind: [place(each["source"], each["file"], each["position"]) for each in some]},
            )
        )
    reading.raise_if_any()
