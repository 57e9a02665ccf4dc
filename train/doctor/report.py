"""The checks of all nodes as a table and as JSON."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from data.secrets.redaction import redacted
from train.doctor.check import STATUSES, Check

_STYLES = {"ok": "green", "slow": "yellow", "wrong": "bold red", "not here": "bright_black"}
_SHOWN_NODES = 4


@dataclass(frozen=True, kw_only=True)
class Row:
    """A check whose results on several nodes are equal, except for the numbers."""

    of_nodes: Mapping[str, Check]

    @property
    def check(self) -> Check:
        """The check of the first node."""
        return next(iter(self.of_nodes.values()))

    @property
    def found(self) -> str:
        return redacted(self.check.shown(list(self.of_nodes.values())))

    def as_json(self) -> dict[str, Any]:
        return {
            "check": self.check.name,
            "status": self.check.status,
            "found": self.found,
            "fix": redacted(self.check.fix),
            "nodes": {node: list(check.numbers) for node, check in self.of_nodes.items()},
        }


def merged(of_nodes: Mapping[str, Sequence[Check]]) -> list[Row]:
    """Return the rows in the order of the checks. Nodes with equal results of a check share a row."""
    names = dict.fromkeys(check.name for checks in of_nodes.values() for check in checks)
    groups: dict[str, dict[tuple[str, str, str], dict[str, Check]]] = {name: {} for name in names}
    for node, checks in of_nodes.items():
        for check in checks:
            groups[check.name].setdefault((check.status, check.found, check.fix), {})[node] = check
    return [Row(of_nodes=found) for of_check in groups.values() for found in of_check.values()]


def table(rows: Sequence[Row], n_nodes: int) -> Table:
    made = Table(title=f"doctor: {summary(rows)}", title_justify="left")
    for column in ("check", "status", *(["nodes"] if n_nodes > 1 else []), "found", "fix"):
        made.add_column(column, overflow="fold", no_wrap=column in ("check", "status"))
    for row in rows:
        check, nodes = row.check, [_nodes(list(row.of_nodes), n_nodes)] if n_nodes > 1 else []
        texts = map(escape, (*nodes, row.found, redacted(check.fix)))
        made.add_row(escape(check.name), f"[{_STYLES[check.status]}]{check.status}[/]", *texts)
    return made


def _nodes(names: Sequence[str], n_nodes: int) -> str:
    if len(names) == n_nodes:
        return f"all {n_nodes}"
    more = len(names) - _SHOWN_NODES
    return ", ".join(names[:_SHOWN_NODES]) + (f" and {more} more" if more > 0 else "")


def summary(rows: Sequence[Row]) -> str:
    """Return the number of checks per status, such as `14 ok, 1 slow, 5 not here`."""
    counts = Counter(row.check.status for row in rows)
    return ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])


def write_json(file: Path, rows: Sequence[Row], world_size: int) -> None:
    """Write the rows to a JSON file. Raises OSError."""
    status = "wrong" if is_wrong(rows) else "ok"
    content = {"status": status, "ranks": world_size, "checks": [row.as_json() for row in rows]}
    file.write_text(json.dumps(content, indent=1) + "\n")


def is_wrong(rows: Sequence[Row]) -> bool:
    return any(row.check.status == "wrong" for row in rows)
