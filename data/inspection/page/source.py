"""A source of rows, as it is read for the page."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from data.inspection.documents import BLOCKS, spread
from data.inspection.oddity import TextCollector, Texts
from data.inspection.survey import Survey, survey_rows
from data.loading.rows import Rows
from data.tokenization.tokenizer import Tokenizer

DEFAULT_POSITIONS = 8_000_000
"""Approximate number of positions (rows times max_seq_len) that are read from a source if the number of rows is not
limited explicitly."""


@dataclass(frozen=True, eq=False, kw_only=True)
class InspectedSource:
    """A source with the statistics of the rows that were read."""

    name: str
    rows: Rows
    numbers: Sequence[int]
    """The numbers of the rows that were read, ascending."""
    survey: Survey
    texts: Texts

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest of the folder. It is empty for a folder from another program."""
        return self.rows.mds.manifest or {}

    @property
    def is_complete(self) -> bool:
        return self.survey.n_rows == self.rows.n_rows

    @property
    def part(self) -> str:
        """The part of the source that was read."""
        read, total = self.survey.n_rows, self.rows.n_rows
        if self.is_complete:
            return f"all {total:,} rows"
        n_blocks = min(BLOCKS, read)
        return f"{read:,} of {total:,} rows ({read / total:.1%}), in {n_blocks} evenly spaced blocks"


def inspect_source(
    name: str,
    rows: Rows,
    tokenizer: Tokenizer,
    most_rows: int | None,
    progress: Callable[[Iterable[int]], Iterable[int]],
) -> InspectedSource:
    """Read at most `most_rows` rows. Raises DataError for a damaged row."""
    if most_rows is None:
        most_rows = max(DEFAULT_POSITIONS // rows.max_seq_len, BLOCKS)
    collector = TextCollector(tokenizer)
    numbers = spread(rows.n_rows, most_rows)
    survey = survey_rows(name, rows, progress, numbers=numbers, visit=collector.add)
    return InspectedSource(name=name, rows=rows, numbers=numbers, survey=survey, texts=collector.texts())
