"""Times a full training step with Composer and torch's fused AdamW. Compares Dropless, transformers' DBRX with the same
weights, a dense model with the same active FLOPs, and a baseline that computes only the GEMMs of the step.

The variants run in turn in every round, on the same rows of packed documents. Each variant has its own process, as in
training, because variants in the same process would fragment each other's memory. Ratios are computed per round. On a
CPU, CPU time is measured, with one thread by default, because other programs hardly affect CPU time. The lower bound is
the time of the forward GEMM and the two backward GEMMs of every matrix. For the experts, this time is measured with one
GEMM over all assignments and with one GEMM per expert. Two bounds are shown: with torch.mm, and with the faster of
torch.mm and oneDNN.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Keep scripts/ off sys.path, because scripts/evaluate.py would shadow the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
import contextlib
import gc
import multiprocessing
import os
import statistics
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

# train.py sets the same variable. All variants benefit.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import transformers

from scripts.bench import common
from scripts.bench.step_models import dense, make_batch
from scripts.bench.step_operations import gemm_floors, profile
from scripts.bench.step_variants import dropless, transformers_variant

FLOORS = "floors"


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    # train/main.py also calls gc.freeze(). All variants benefit.
    gc.freeze()
    common.prepare_process(args.threads)
    with contextlib.ExitStack() as stack:
        stack.callback(gc.unfreeze)
        variants = {name: stack.enter_context(Variant(build)) for name, build in builders(args).items()}
        times = measure(variants, args.rounds)
        profiled = variants["dropless"].run("profile") if "dropless" in variants else {}
    rows = summarise(times)
    common.show_table([cells(name, row) for name, row in rows.items()])
    for name, seconds in profiled.items():
        print(f"  a step of dropless, {name:<32}{seconds:>7.2f} s {seconds / sum(profiled.values()):>6.1%}")
    common.write_json(args.json, common.description(args) | {"sides": rows, "profile": profiled})
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = common.step_parser(__doc__)
    every = ["dropless", "transformers", "dense"]
    parser.add_argument("--sides", nargs="+", default=every, choices=every, help="variants to measure")
    return parser.parse_args(argv)


def builders(args: argparse.Namespace) -> dict[str, Callable[[], Callable[[], dict[str, float]]]]:
    """Return the function that builds each variant, by name. The lower bounds come last."""
    config, batch = common.model_config(args), make_batch(args)

    def by_row(count: bool) -> Callable[[], dict[str, float]]:
        step = dropless(config, batch, args)
        return lambda: step(microbatch=1, count=count)

    steps: dict[str, Callable[[], Any]] = {
        "dropless": lambda: dropless(config, batch, args),
        "dropless, a row a microbatch": lambda: by_row(count=False),
        "dropless, and moe_lbl_scope: batch": lambda: by_row(count=True),
        "transformers": lambda: transformers_variant(config, batch, args),
        "dense, equal active FLOPs": lambda: dropless(dense(config), batch, args),
    }

    def floors() -> Callable[[], dict[str, float]]:
        gemms = gemm_floors(config, batch, args)
        return lambda: {name: run() for name, run in gemms.items()}

    return {name: build for name, build in steps.items() if name.split(",")[0] in args.sides} | {FLOORS: floors}


class Variant:
    """Runs the step that `build` returns, in a separate process. The process waits while other variants run."""

    def __init__(self, build: Callable[[], Callable[[], Any]]) -> None:
        # The process is forked, because imports take longer than most steps. Forking is possible because no GPU is
        # initialized yet.
        context = multiprocessing.get_context("fork")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=self._serve, args=(build, other), daemon=True)

    def _serve(self, build: Callable[[], Callable[[], Any]], connection: Any) -> None:
        step = build()
        while True:
            connection.send(step() if connection.recv() == "step" else profile(step))

    def __enter__(self) -> "Variant":
        self.process.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.process.kill()
        self.process.join()

    def run(self, what: Literal["step", "profile"]) -> Any:
        self.connection.send(what)
        while not self.connection.poll(1):
            if not self.process.is_alive():
                sys.exit("error: the process of a variant has ended; its error is shown above")
        return self.connection.recv()


def measure(variants: dict[str, Variant], n_rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each variant and of each lower bound in each round."""
    # The first steps are a warm-up, which allocates the memory that later steps reuse. The losses of the first step are
    # also compared.
    firsts = {name: variant.run("step") for name, variant in variants.items()}
    for name, variant in variants.items():
        for _ in range(3 if name != FLOORS else 1):
            variant.run("step")
    if {"dropless", "transformers"} <= firsts.keys():
        ours, theirs = (firsts[name]["loss"] for name in ("dropless", "transformers"))
        assert abs(ours - theirs) < 1e-3, f"the losses of the variants differ: {ours}, {theirs}"
    times: dict[str, list[float]] = {name: [] for name in (*list(variants)[:-1], *firsts[FLOORS])}
    for order in common.rounds(variants, n_rounds):
        for name in order:
            result = variants[name].run("step")
            for key, seconds in result.items() if name == FLOORS else [(name, result["seconds"])]:
                times[key].append(seconds)
    return times


def summarise(times: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """For each variant, the median of the seconds over the rounds, and the medians of the ratios."""
    floors = common.floors_of(times, {"torch.mm": "GEMMs, torch.mm", "best GEMMs": "GEMMs"})
    rows = {}
    for name, seconds in times.items():
        rows[name] = {"seconds": seconds, "median_s": statistics.median(seconds)}
        rows[name] |= {f"share of the floor, {floor}": common.ratio(best, seconds) for floor, best in floors.items()}
        if "transformers" in times:
            rows[name]["speed over transformers"] = common.ratio(times["transformers"], seconds)
    return rows


def cells(name: str, row: dict[str, Any]) -> dict[str, str]:
    return {
        "variant": name,
        "s": f"{row['median_s']:.2f}",
        "min-max": common.spread(row["seconds"]),
        "x torch.mm": f"{row['share of the floor, torch.mm']:.2f}",
        "x best GEMMs": f"{row['share of the floor, best GEMMs']:.2f}",
        "x transformers": f"{row['speed over transformers']:.2f}" if "speed over transformers" in row else "",
    }


if __name__ == "__main__":
    sys.exit(main())
