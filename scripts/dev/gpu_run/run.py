"""Runs the parts one after the other, and writes the results after each part: see scripts/dev/gpu_run.sh."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
# Import modules only from the repository's root, because scripts/evaluate.py would hide the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
import importlib
import importlib.util
import json
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from scripts.dev.gpu_run.parts import PARTS, Found, Part
from scripts.dev.gpu_run.report import markdown

_GRACE = 5.0
"""Maximum number of seconds from SIGTERM to the end of a part."""


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    if args.list:
        for part in PARTS:
            needs = f", needs {' and '.join(part.needs)}" if part.needs else ""
            print(f"{part.name:<12}{part.limit_s:>4} s  {part.what}{needs}")
        print(f"{'':<12}{sum(part.limit_s for part in PARTS):>4} s  at most")
        return 0
    if not args.tiny and (why := why_no_gpu()):
        print(f"error: {why}; --tiny runs the parts on the CPU", file=sys.stderr)
        return 2
    preload()
    args.out.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    with (args.out / "gpu_run.log").open("wb") as log:
        for part in chosen(args.parts, tiny=args.tiny):
            print(f"{part.name}: {part.what} (at most {part.limit_s} s)", flush=True)
            results.append(run_part(part, log.fileno(), tiny=args.tiny))
            print(f"{part.name}: {results[-1]['result']}, {results[-1]['seconds']:.1f} s", flush=True)
            (args.out / "gpu_run.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            (args.out / "gpu_run.md").write_text(markdown(results), encoding="utf-8")
    print(f"wrote {args.out / 'gpu_run.json'}, gpu_run.md and gpu_run.log")
    return 1 if any(result["result"].startswith("failed") for result in results) else 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/dev/gpu_run.sh", description=__doc__)
    names = [part.name for part in PARTS]
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of the report (default: runs/gpu)")
    parser.add_argument("--parts", nargs="+", choices=names, metavar="PART", help=f"parts to run: {', '.join(names)}")
    parser.add_argument("--list", action="store_true", help="show the parts and their time limits")
    parser.add_argument("--tiny", action="store_true", help="test the parts on the CPU, with tiny sizes")
    return parser.parse_args(argv)


def chosen(names: Sequence[str] | None, *, tiny: bool) -> list[Part]:
    """Return the named parts. Without names, return all parts; for a tiny run, only the parts that have a tiny
    version."""
    if names is None:
        return [part for part in PARTS if not tiny or part.tiny]
    return [part for part in PARTS if part.name in names]


def preload() -> None:
    """Import modules that several parts use and that take long to import. The parts are forked from this process, which
    does not use CUDA."""
    for name in ("transformers.models.dbrx.modeling_dbrx", "scripts.bench.moe", "scripts.bench.model_step"):
        importlib.import_module(name)


def why_no_gpu() -> str | None:
    """Return the reason why no GPU is available, or None. A separate process checks for a GPU, because the parts are
    forked from this process, which must not initialize CUDA."""
    from train.hardware.device import look, why_no_gpu

    context = multiprocessing.get_context("fork")
    with context.Pool(1) as pool:
        machine = pool.apply(look)
    return why_no_gpu(machine) or (None if machine.torch_gpus else "this machine has no GPU")


def run_part(part: Part, log: int, *, tiny: bool) -> dict[str, Any]:
    """Run a part and return its record, which contains the result as text."""
    record = {"part": part.name, "what": part.what, "limit_s": part.limit_s, "seconds": 0.0}
    if missing := [name for name in part.needs if importlib.util.find_spec(name) is None]:
        return record | {"result": f"not run: {', '.join(missing)} not installed"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        began = time.monotonic()
        process = multiprocessing.get_context("fork").Process(target=_in_child, args=(part, file, log, tiny))
        process.start()
        process.join(part.limit_s)
        in_time = not process.is_alive()
        _end(process)
        record["seconds"] = time.monotonic() - began
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if not in_time:
        return record | found | {"result": f"failed: timed out after {part.limit_s} s"}
    if not found:
        return record | {"result": f"failed: ended with exit code {process.exitcode}, see gpu_run.log"}
    return record | found | {"result": f"failed: {found['failure']}" if found["failure"] else "ok"}


def _in_child(part: Part, file: Path, log: int, tiny: bool) -> None:
    # The part runs in a new session, so that the part and its child processes can be ended together. The output of the
    # part is written to the log.
    os.setsid()
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = sys.stderr = os.fdopen(log, "w", buffering=1, closefd=False)
    print(f"\n==== {part.name}", flush=True)
    try:
        found = part.run(tiny)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        found = Found(failure=f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
    file.write_text(json.dumps(asdict(found)), encoding="utf-8")
    sys.stdout.flush()


def _end(process: Any) -> None:
    """End the part and all processes that it has started."""
    for number, grace in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        process.join(grace)
    process.join()


if __name__ == "__main__":
    sys.exit(main())
