"""The step `decontaminate`: remove documents that contain questions of evaluation sets."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import xxhash

from data.base.errors import ConfigError, Problems, under
from data.config.sections import Defect
from data.config.source import Paths
from data.config.values import Count, Range, Share
from data.curation.base.document import Judge
from data.curation.base.report import Table
from data.curation.base.step import Context, DocumentStep
from data.curation.decontamination.evals import EvalFiles, read_evals
from data.curation.decontamination.questions import EvalSet
from data.curation.decontamination.search import PAIRS, Search, SearchInFolder, build_search, pairs_in_batches
from data.spark.executors import arrow_function

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_FOLDER = "questions"
_SHOWN = 80
"""Maximum number of characters of a question in the table."""


def _names(step: "Decontaminate") -> Iterator[Defect]:
    if not step.evals:
        yield Defect("evals", "is empty: specify at least one evaluation set, such as {mmlu: mmlu.jsonl}")
    for name in step.evals:
        if not re.fullmatch(r"[\w-]{1,64}", name):
            yield Defect(
                "evals", f"contains the name {name!r}, but a name has at most 64 letters, digits, - and _: rename it"
            )


def _lengths(step: "Decontaminate") -> Iterator[Defect]:
    if step.exact_questions and step.min_question_words > step.n_grams:
        yield Defect(
            "min_question_words",
            f"is {step.min_question_words}, but it must be at most n_grams ({step.n_grams}), because longer questions "
            "are found by their n-grams",
        )


@dataclass(frozen=True, kw_only=True)
class Decontaminate(DocumentStep):
    """Removes documents that contain questions of evaluation sets.

    A document contains a question if both contain the same `n_grams` consecutive words, or if the document contains all
    words of a shorter question without a gap. Case, punctuation and whitespace are ignored, as in appendix C of the
    GPT-3 paper. A document that contains questions of several sets is counted for each of them in the table; its reason
    is the first of these sets in `evals`.
    """

    RULES = (_names, _lengths)

    evals: dict[str, Paths | EvalFiles]
    """The evaluation sets by name: files (file names or patterns), or a mapping with `path` and `fields`, or with
    `lm_eval`."""
    n_grams: Annotated[int, Range(ge=2)] = 13
    """Number of consecutive words. GPT-3 uses 13, PaLM uses 8. In scripts without spaces between words, such as
    Chinese, each letter counts as a word."""
    min_overlap: Share = 0.0
    """The share of the different n-grams of a question that a document must contain. 0: one n-gram is enough, as in
    GPT-3. PaLM uses 0.7. Questions with fewer than `n_grams` words must always occur completely."""
    exact_questions: bool = True
    """Also search questions with fewer than `n_grams` words."""
    min_question_words: Count = 5
    """Questions with fewer words are not searched, because many of them are common phrases."""

    def check(self) -> None:
        _ = self.sets

    @cached_property
    def sets(self) -> list[EvalSet]:
        """The evaluation sets, which are read only once. Raises ConfigError with all problems."""
        problems, sets = Problems(), []
        for name, files in self.evals.items():
            with problems.collect(), under(f"evals.{name}") if isinstance(files, EvalFiles) else _at(f"evals.{name}"):
                sets.append(read_evals(name, files if isinstance(files, EvalFiles) else EvalFiles(path=files)))
        problems.raise_if_any()
        return sets

    def made_from(self) -> dict[str, Any]:
        return {**asdict(self), "evals": [[one.name, _hash(one)] for one in self.sets]}

    def judge(self) -> Judge:
        return self._search().judge

    def apply(self, documents: "DataFrame", context: Context) -> "DataFrame":
        return SearchInFolder(folder=str(self._saved(context))).apply(documents, context)

    def tables(self, result: "DataFrame", context: Context) -> list[Table]:
        from pyspark.sql import functions as F

        folder = self._saved(context)
        removed = result.where(F.col("reason").isNotNull()).select("id", "text")
        pairs = removed.mapInArrow(arrow_function(pairs_in_batches, str(folder)), PAIRS)
        counts = pairs.groupBy("set").agg(
            F.count_distinct("question").alias("questions"),
            F.count_distinct("id").alias("documents"),
            F.min("question").alias("example"),
        )
        return [_table(Search.load(folder), self.sets, {row["set"]: row for row in counts.collect()})]

    def _saved(self, context: Context) -> Path:
        """The folder of the search, which all executors can read. It is written when it is first needed."""
        folder = context.folder / _FOLDER
        if not folder.exists():
            self._search().save(folder)
        return folder

    def _search(self) -> Search:
        n_short = self.min_question_words if self.exact_questions else None
        return build_search(self.sets, self.n_grams, n_short, self.min_overlap)


@contextmanager
def _at(key: str) -> Iterator[None]:
    """Replace the key of a ConfigError, for files that the config specifies without the key `path`."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(error.text, key=key) from None


def _hash(one: EvalSet) -> str:
    """A hash of the texts of the questions, without their locations."""
    texts = [[question.texts, question.exact] for question in one.questions]
    return xxhash.xxh3_128_hexdigest(json.dumps([texts, one.common]).encode())


def _table(search: Search, sets: list[EvalSet], counts: Mapping[int, Any]) -> Table:
    """Contamination by evaluation set. counts: for the index of each set, the numbers of questions and documents, and
    the first question."""
    columns = ["set", "first found question", "questions", "too short to search", "found", "documents removed"]
    findable, rows, first = search.index.findable(), [], 0
    for number, one in enumerate(sets):
        last = first + len(one.questions)
        too_short = len(one.questions) - int(findable[first:last].sum())
        row, example = counts.get(number), ""
        if row is not None:
            question = one.questions[row["example"] - first]
            example = f"{question.place}: {_short(question.exact)}"
        found = (0, 0) if row is None else (row["questions"], row["documents"])
        rows.append([one.name, example, len(one.questions), too_short, *found])
        first = last
    return Table(title="Contamination by evaluation set", columns=columns, rows=rows)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
