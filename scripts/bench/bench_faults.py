"""Injects faults into small real runs and compares the outcomes with the expected outcomes.

Each fault is injected into a separate copy of a run, which is then started with the same command that a user would run.
The trained weights must be bitwise equal to those of a run without a fault, which is checked by comparing the hashes of
the exported weights. With --flips N, a random bit in a random checkpoint file is also flipped, N times. The exit code
is nonzero if an outcome is not as expected. Full disks are simulated with small tmpfs mounts, which require root.
Without root, these faults are reported as not injected.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Keep scripts/ off sys.path, because scripts/evaluate.py would shadow the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from scripts.bench import common
from scripts.bench.faults import checkpoints, code, disks, hangs, instability, settings, signals
from scripts.bench.faults.flips import GOOD, flips, table
from scripts.bench.faults.processes import prepare
from scripts.bench.faults.runs import SKIPPED, Case, Lab

CASES = {
    case.name: case
    for module in (checkpoints, code, disks, settings, instability, signals, hangs)
    for case in module.CASES.values()
}


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    prepare()
    report = common.description(args)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        lab = Lab(Path(folder))
        report["faults"] = measure(lab, [case for name, case in CASES.items() if wanted(name, args.only)])
        report["flips"] = flip(lab, args.flips) if args.flips else []
    common.write_json(args.json, report)
    return 0 if all(row["ok"] is not False for row in [*report["faults"], *report["flips"]]) else 1


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = common.make_parser(__doc__, flips=0)
    what = "only run faults whose name contains this text (may be repeated)"
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help=what)
    parser.add_argument("--folder", type=Path, help="folder for all files (default: the system's temporary folder)")
    args = parser.parse_args(argv)
    if unknown := [text for text in args.only if not any(text in name for name in CASES)]:
        parser.error(f"no fault name contains {unknown[0]!r}; valid names are: {', '.join(CASES)}")
    return args


def wanted(name: str, only: Sequence[str]) -> bool:
    return not only or any(text in name for text in only)


def measure(lab: Lab, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Return a row for each fault, with the observed outcomes and their counts. `ok` is None if this machine cannot
    inject the fault."""
    rows = []
    for number, case in enumerate(cases, 1):
        began, seen = time.perf_counter(), Counter[str]()
        for outcome in case.trials(lab):
            seen[outcome] += 1
            progress(f"{number} of {len(cases)}: {case.name}: {outcome}")
        ok = None if SKIPPED in seen else {*seen} == {case.expected}
        seconds = round(time.perf_counter() - began, 1)
        rows.append({"fault": case.name, "expected": case.expected, "seen": dict(seen), "ok": ok, "seconds": seconds})
    if rows:
        common.show_table([cells(row) for row in rows])
        right, unknown = (sum(row["ok"] is value for row in rows) for value in (True, None))
        print(f"{right} of {len(rows)} faults ended as expected" + (f", {unknown} not injected" if unknown else ""))
    return rows


def cells(row: dict[str, Any]) -> dict[str, str]:
    seen = "; ".join(f"{count} x {outcome}" if count > 1 else outcome for outcome, count in row["seen"].items())
    ok = {True: "yes", False: "NO", None: "-"}[row["ok"]]
    return {"fault": row["fault"], "expected": row["expected"], "seen": seen, "ok": ok}


def flip(lab: Lab, count: int) -> list[dict[str, Any]]:
    outcomes = Counter[tuple[str, str]]()
    for number, (kind, seen) in enumerate(flips(lab, count), 1):
        outcomes[kind, seen] += 1
        progress(f"bit {number} of {count}: {kind}: {seen}")
    common.show_table(table(outcomes))
    right = sum(number for (_, seen), number in outcomes.items() if seen in GOOD)
    print(f"{right} of {count} flipped bits led to an error that names the file, or to the same model")
    return [
        {"file": kind, "seen": seen, "count": number, "ok": seen in GOOD} for (kind, seen), number in outcomes.items()
    ]


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
