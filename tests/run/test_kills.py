"""A run killed with `kill -9` at any moment and then resumed ends bit for bit like an uninterrupted run."""

import hashlib
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.helpers.kill_moments import MOMENTS, Kill, place
from tests.helpers.killed_run import KilledRun, drawn_histories, history, write_run

pytestmark = [pytest.mark.ranks, pytest.mark.slow]

ROOT = Path(__file__).parents[2]

TEN = [
    Kill(moment="between manifest and rename", batch=0, everyone=True),
    Kill(moment="model is built", rank=1, everyone=True),
    Kill(moment="worker reads", rank=1, batch=3),
    Kill(moment="shard is half written", rank=1, batch=3, call=3),
    Kill(moment="stage begins", rank=0, batch=5, everyone=True),
    Kill(moment="superseded one is half deleted", batch=5, everyone=True),
    Kill(moment="rank, while its worker reads", rank=0, batch=7, everyone=True),
    Kill(moment="between rename and latest", batch=7, everyone=True),
    Kill(moment="evaluation", rank=1, batch=9, everyone=True),
    Kill(moment="read-back", rank=0, batch=9, everyone=True),
]


def test_the_functions_of_all_moments_exist() -> None:
    for name, moment in MOMENTS.items():
        assert callable(getattr(*place(moment), None)), name


@pytest.mark.timeout(400)
def test_a_run_killed_ten_times_ends_as_if_it_had_not_been_killed(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    whole = KilledRun(config, "whole")
    whole.start()
    rows = [row for line in whole.starts[0].batches.values() for row in line["rows"] if row.startswith("0:")]
    assert len(set(rows)) == len(rows), "no row of a stream is repeated within an epoch"
    hit, defects = history(config, "killed", TEN, whole)
    assert hit == TEN
    assert defects == []


@pytest.mark.proof
def test_a_run_killed_at_200_moments_ends_as_if_it_had_not_been_killed(tmp_path: Path) -> None:
    """Continues an interrupted earlier run of this proof over the same code."""
    file = ROOT / ".cache" / "proofs" / f"kills-{code_hash()}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    config = write_run(tmp_path)
    whole = KilledRun(config, "whole")
    whole.start()
    for number, kills in enumerate(drawn_histories()):
        if number < len(lines):
            continue
        if sum(len(line["hit"]) for line in lines) >= 200:
            break
        hit, defects = history(config, f"run{number}", kills, whole)
        lines.append({"hit": [asdict(kill) for kill in hit], "defects": defects})
        with file.open("a") as results:
            results.write(json.dumps(lines[-1]) + "\n")
    print(f"\n{table(lines)}\n{file}")
    assert [line for line in lines if line["defects"]] == []
    assert {kill["moment"] for line in lines for kill in line["hit"]} == {None, *MOMENTS}


def code_hash() -> str:
    """Return a hash of the code of the runs and of the kills."""
    files = [path for folder in ("train", "data", "tests/helpers") for path in (ROOT / folder).rglob("*.py")]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()[:12]


def table(lines: list[dict]) -> str:
    """Return a table of the kills at each moment, and how many of them belong to runs with a correct end."""
    kills, right = Counter[str](), Counter[str]()
    for line in lines:
        for kill in line["hit"]:
            name = f"{kill['moment'] or 'any time'}, {'all ranks' if kill['everyone'] else 'one process'}"
            kills[name] += 1
            right[name] += not line["defects"]
    rows = [f"| {name} | {kills[name]} | {right[name]} |" for name in sorted(kills)]
    total = f"| all | {kills.total()} | {right.total()} |"
    return "\n".join(["| moment | kills | resumed bit-equal |", "|---|---|---|", *rows, total])
