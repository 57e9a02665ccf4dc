"""How the bench of faults evaluates outcomes. Its runs take minutes and are not part of this test."""

from collections import Counter
from pathlib import Path

import pytest

from scripts.bench.faults import flips
from scripts.bench.faults.processes import Ended
from scripts.bench.faults.runs import (
    CRASHED,
    FELL_BACK,
    NO_END,
    OTHER_MODEL,
    REFUSED,
    SKIPPED,
    UNNAMED,
    Case,
    Lab,
    refusal,
)
from tests.helpers.load_script import load_script

TRACEBACK = "Traceback (most recent call last)"


@pytest.mark.parametrize(
    ("ended", "seen"),
    [
        (Ended(0, ""), None),
        (Ended(2, "error: ep0-ba6 is corrupt: __0_0.distcp"), REFUSED),
        (Ended(2, "error: ep0-ba6"), UNNAMED),
        (Ended(1, f"{TRACEBACK} ep0-ba6 __0_0.distcp"), CRASHED),
        (Ended(0, TRACEBACK), CRASHED),
        (Ended(None, "ep0-ba6 __0_0.distcp"), NO_END),
    ],
)
def test_how_a_command_failed(ended: Ended, seen: str | None) -> None:
    assert refusal(ended, "ep0-ba6", "__0_0.distcp") == seen


def test_one_different_outcome_is_unexpected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = {"right": [REFUSED, REFUSED], "wrong": [REFUSED, OTHER_MODEL], "skipped": [SKIPPED], "nothing": []}
    cases = [Case(name, REFUSED, lambda lab, seen=seen: iter(seen)) for name, seen in outcomes.items()]
    rows = load_script("bench/bench_faults").measure(Lab(tmp_path), cases)
    assert [row["ok"] for row in rows] == [True, False, None, False]
    assert "1 of 4 faults ended as expected, 1 not injected" in capsys.readouterr().out


def test_flips_are_counted_by_file_and_outcome() -> None:
    rows = flips.table(Counter({("shard", FELL_BACK): 2, ("manifest.json", OTHER_MODEL): 1}))
    assert rows == [
        {"bit in": "manifest.json", OTHER_MODEL: "1", FELL_BACK: "0"},
        {"bit in": "shard", OTHER_MODEL: "0", FELL_BACK: "2"},
    ]


def test_every_fault_occurs_once() -> None:
    assert len(load_script("bench/bench_faults").CASES) == 96
