"""The progress in a journal."""

import pytest

from data.base.errors import DataError
from data.preparation.progress import Progress


def test_a_journal_of_an_earlier_version_still_counts_its_bad_rows() -> None:
    state = Progress(chunks=1, done=10, total=20).for_journal()
    state["reading"] = {"bad_rows": 2, "kinds": {"is empty": 2}, "shown": ["a.jsonl:1: is empty"]}
    progress = Progress.of_journal(state, 20)
    with pytest.raises(DataError, match="2 rows cannot be used"):
        progress.reading.raise_if_any()
