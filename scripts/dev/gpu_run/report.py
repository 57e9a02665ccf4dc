"""The Markdown report of a GPU run, in the same format as docs/performance.md."""

from collections.abc import Iterable, Mapping
from typing import Any


def markdown(results: Iterable[Mapping[str, Any]]) -> str:
    """Format the results of the parts, then their tables and notes."""
    results = list(results)
    ended = [
        {"part": each["part"], "what": each["what"], "seconds": f"{each['seconds']:.0f}", "result": each["result"]}
        for each in results
    ]
    lines = ["# GPU run", "", *table(ended)]
    for each in results:
        for title, rows in each.get("tables", {}).items():
            lines += ["", f"## {title}", "", *table(rows)]
        if notes := each.get("notes"):
            lines += ["", *(f"- {each['part']}: {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def table(rows: list[dict[str, str]]) -> list[str]:
    """Format a table. Its columns are the keys of the first row."""
    if not rows:
        return ["(nothing)"]
    columns = list(rows[0])
    cells = [[_cell(str(row.get(column, ""))) for column in columns] for row in rows]
    return [_line(columns), _line(["---"] * len(columns)), *map(_line, cells)]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
