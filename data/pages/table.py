"""Tables of a page. They are also shown without JavaScript."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of texts, as drawn by the macro `table` of assets/macros.html."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    """Number of text columns. The other columns contain numbers and are right-aligned."""

    def __bool__(self) -> bool:
        return bool(self.rows)
