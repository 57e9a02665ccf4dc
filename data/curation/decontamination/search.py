"""Search for the questions of evaluation sets in documents. The index is on disk, so that executors share it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from data.curation.base.document import KEPT, Document, Judge, Verdict
from data.curation.base.step import DocumentStep
from data.curation.base.tasks import errors_for_driver
from data.curation.decontamination.index import Found, Index, build_index
from data.curation.decontamination.questions import EvalSet

if TYPE_CHECKING:
    import pyarrow as pa

RULE = "decontaminate"
"""Prefix of reasons and scores."""
_SHOWN = 160
"""Maximum number of characters of the common words in a detail."""
_NAMES = "questions.json"
PAIRS = "id long, set int, question int"
"""Spark's schema of pairs of document and question: the id of the document, and the numbers of the set and of the
question."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """An index and the names of its questions."""

    index: Index
    names: list[str]
    """The names of the evaluation sets."""
    set_of: list[int]
    """The set of each question, as an index in `names`."""
    places: list[str]
    """The location of each question."""
    min_overlap: float

    def save(self, folder: Path) -> None:
        self.index.save(folder)
        names = [self.names, self.set_of, self.places, self.min_overlap]
        (folder / _NAMES).write_text(json.dumps(names), encoding="utf-8")

    @staticmethod
    def load(folder: Path) -> "Search":
        names, set_of, places, min_overlap = json.loads((folder / _NAMES).read_text(encoding="utf-8"))
        return Search(index=Index.load(folder), names=names, set_of=set_of, places=places, min_overlap=min_overlap)

    def find(self, text: str) -> list[tuple[int, list[Found]]]:
        """The sets with questions in the text, and these questions."""
        found = self.index.find(text, self.min_overlap)
        return [(number, list(group)) for number, group in groupby(found, lambda one: self.set_of[one.question])]

    def judge(self, document: Document) -> Verdict:
        found = self.find(document.text)
        if not found:
            return KEPT
        (first, questions), *others = found
        best = max(questions, key=lambda one: (one.share, -one.question))
        also = f" (also questions of {', '.join(self.names[other] for other, _ in others)})" if others else ""
        return Verdict(
            reason=f"{RULE}.{self.names[first]}",
            detail=f"contains {self._described(best)} of {self.places[best.question]}{also}: {_short(best.words)!r}",
            scores={f"{RULE}.{self.names[number]}": float(len(group)) for number, group in found},
        )

    def _described(self, found: Found) -> str:
        if found.overlap == 0:
            return "the question"
        count = int(self.index.counts[found.question])
        return f"{found.overlap:,} of {count:,} {'n-gram' if count == 1 else 'n-grams'}"


def _short(words: str) -> str:
    return words if len(words) <= _SHOWN else f"{words[:_SHOWN]}..."


def build_search(sets: Sequence[EvalSet], n: int, n_short: int | None, min_overlap: float) -> Search:
    """See `build_index`."""
    return Search(
        index=build_index(sets, n, n_short),
        names=[one.name for one in sets],
        set_of=[number for number, one in enumerate(sets) for _ in one.questions],
        places=[question.place for one in sets for question in one.questions],
        min_overlap=min_overlap,
    )


@dataclass(frozen=True, kw_only=True)
class SearchInFolder(DocumentStep):
    """Judges documents with a saved Search. Executors get only the path of its folder."""

    folder: str

    def judge(self) -> Judge:
        return Search.load(Path(self.folder)).judge


def pairs_in_batches(batches: Iterator["pa.RecordBatch"], folder: str) -> Iterator["pa.RecordBatch"]:
    """The questions in batches of documents, which have the columns `id` and `text`. The result has the columns of
    PAIRS, and one row per document and question."""
    import pyarrow as pa

    schema = pa.schema([("id", pa.int64()), ("set", pa.int32()), ("question", pa.int32())])
    with errors_for_driver():
        search = Search.load(Path(folder))
        for batch in batches:
            pairs = [
                {"id": row["id"], "set": number, "question": found.question}
                for row in batch.to_pylist()
                for number, group in search.find(row["text"])
                for found in group
            ]
            yield pa.RecordBatch.from_pylist(pairs, schema=schema)
