"""How checks are run, and how the checks of many nodes are merged."""

import errno
import io
import json
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from rich.console import Console

from data.base.errors import ConfigError
from data.config.sections import Unavailable
from train.doctor.check import Check, is_any_check_running, run_check
from train.doctor.report import is_wrong, merged, summary, table, write_json


def raising(error: Exception) -> Callable[[], Iterable[Check]]:
    def check() -> Iterable[Check]:
        yield Check(name="first", status="ok", found="before")
        raise error

    return check


@pytest.mark.parametrize(
    ("error", "status", "found", "fix"),
    [
        (ConfigError("is 3: write 4", key="a.b"), "wrong", "a.b is 3: write 4", "another folder"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "wrong", "/x: Read-only file system", "another folder"),
        (ImportError("libx.so: no\nmore"), "wrong", "ImportError: libx.so: no", "another folder"),
        (Unavailable(), "not here", "depends on a part of the config that could not be read", ""),
    ],
)
def test_an_error_is_one_more_check(error: Exception, status: str, found: str, fix: str) -> None:
    first, last = run_check("folder", raising(error), 100, "another folder")
    assert first.found == "before"
    assert last == Check(name="folder", status=status, found=found, fix=fix)  # type: ignore[arg-type]


def test_a_check_that_hangs_times_out() -> None:
    go_on = threading.Event()

    def hang() -> Iterable[Check]:
        yield Check(name="first", status="ok", found="before")
        go_on.wait()

    first, last = run_check("disk", hang, 0.05, "name another")
    assert (first.status, last.status, last.found, last.fix) == (
        "ok",
        "wrong",
        "not finished within 0.05 s",
        "name another",
    )
    assert is_any_check_running()
    go_on.set()


def of_node(speed: float, *, locks: str = "ok") -> list[Check]:
    return [
        Check(name="speed", status="ok", found="written at {} MB/s {of 64mb}", numbers=(speed,)),
        Check(name="locks", status=locks, found=f"locks [are] {locks}", fix="" if locks == "ok" else "mount it"),  # type: ignore[arg-type]
    ]


NODES = {"a": of_node(812.3), "b": of_node(90.25), "c": of_node(1234.5, locks="wrong")}


def test_nodes_with_the_same_result_share_a_row() -> None:
    rows = merged(NODES)
    assert [(row.check.name, row.check.status, row.found, list(row.of_nodes)) for row in rows] == [
        ("speed", "ok", "written at 90.2 to 1,234 MB/s {of 64mb}", ["a", "b", "c"]),
        ("locks", "ok", "locks [are] ok", ["a", "b"]),
        ("locks", "wrong", "locks [are] wrong", ["c"]),
    ]
    assert summary(rows) == "2 ok, 1 wrong"
    assert is_wrong(rows)
    assert not is_wrong(merged({"a": of_node(1.0)}))


def test_the_table_names_the_nodes_and_the_fix() -> None:
    console = Console(file=io.StringIO(), width=160)
    console.print(table(merged(NODES), 3))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert [word in text for word in ("all 3", "a, b", "locks [are] wrong", "mount it", "2 ok, 1 wrong")] == [True] * 5
    console = Console(file=io.StringIO(), width=160)
    console.print(table(merged({"a": of_node(1.0)}), 1))
    assert "nodes" not in console.file.getvalue()  # type: ignore[attr-defined]


def test_json_has_every_number(tmp_path: Path) -> None:
    write_json(tmp_path / "d.json", merged(NODES), 24)
    written = json.loads((tmp_path / "d.json").read_text())
    assert (written["status"], written["ranks"]) == ("wrong", 24)
    assert written["checks"][0]["nodes"] == {"a": [812.3], "b": [90.25], "c": [1234.5]}
    assert written["checks"][2] == {
        "check": "locks",
        "status": "wrong",
        "found": "locks [are] wrong",
        "fix": "mount it",
        "nodes": {"c": []},
    }
