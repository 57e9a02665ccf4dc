"""Measures the cost of train/expert_health: times a training step without expert health, a step between two
measurements, and a step with a measurement.

The variants run in turn in every round, in one process, with the same model and rows. Ratios are computed per round. On
a CPU, CPU time is measured, with one thread by default. The variant `without` omits the sums of squared logits, the
metrics, the probe, and the detection of dead and overloaded experts. `default` is the average of the other two
variants, weighted by how often each occurs with the default value of `experts.interval`. For these two variants,
`inside` is the fraction of a step's time that is spent in the functions of train/expert_health. This value is reliable
even if the difference between the variants' step times is smaller than the noise.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Keep scripts/ off sys.path, because scripts/evaluate.py would shadow the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
import os
import statistics
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

from composer.core import Callback, State
from composer.loggers import Logger
from torch import Tensor

from data.base.durations import Clock, parse_duration
from scripts.bench import common
from scripts.bench.step_models import make_batch
from scripts.bench.step_variants import prepared_model, trainer_step
from train.callbacks.global_batch import GlobalBatch
from train.composer_model import DbrxForComposer
from train.config.supervision import ExpertsConfig
from train.expert_health.health import ExpertHealth
from train.models import moe
from train.models.recompute import named_parameters
from train.stability.measurement import StepMeasurement
from train.supervision.events import Events

VARIANTS = ("without", "between measurements", "measured")
INTERVAL = int(parse_duration(ExpertsConfig().interval or "1ba")[0])
"""The default value of `experts.interval`: expert health is measured in one step per INTERVAL steps."""


def main(argv: Sequence[str] | None = None) -> int:
    args = common.step_parser(__doc__, probe_tokens=ExpertsConfig().probe_tokens).parse_args(argv)
    model = prepared_model(args)
    turn = Turn(model, args)
    step = trainer_step(model, make_batch(args), [GlobalBatch(model.config), turn], args)

    def seconds(variant: str) -> float:
        turn.variant = variant
        return step()["seconds"]

    times = common.alternated(VARIANTS, args.rounds, seconds, turn.forget)
    rows = {
        variant: {"seconds": times[variant], "of without": common.ratio(times[variant], times["without"])}
        for variant in VARIANTS
    }
    inside = {variant: common.ratio(turn.inside[variant], times[variant]) for variant in VARIANTS[1:]}
    default = {
        "of without": weighed(rows[VARIANTS[1]]["of without"], rows[VARIANTS[2]]["of without"]),
        "inside": weighed(inside[VARIANTS[1]], inside[VARIANTS[2]]),
    }
    common.show_table([cells(variant, row, inside.get(variant)) for variant, row in rows.items()])
    shares = f"{default['of without']:.4f} x the time of `without`; {default['inside']:.3%} of a step is `inside`"
    print(f"  average of {INTERVAL} steps, one of which measures expert health: {shares}")
    report = {"sides": rows, "inside": inside, "interval": INTERVAL, "default": default}
    common.write_json(args.json, common.description(args) | report)
    return 0


def weighed(between: float, measured: float) -> float:
    return ((INTERVAL - 1) * between + measured) / INTERVAL


def no_sum(logits_TE: Tensor) -> Tensor:
    return logits_TE.new_zeros(())


class Turn(Callback):
    """Performs the work of the current variant in each step, and records how many seconds this work takes."""

    def __init__(self, model: DbrxForComposer, args: argparse.Namespace) -> None:
        clock = Clock(tokens_per_batch=args.rows * args.max_seq_len, rows_per_batch=args.rows, rows_per_epoch=args.rows)
        self.health = ExpertHealth(ExpertsConfig(probe_tokens=args.probe_tokens), clock, model.model, Events(None))
        self.named, self.top_k = named_parameters(model.model), args.moe_top_k
        self.measurement = StepMeasurement()
        self.device, self.variant = args.device, VARIANTS[0]
        self.inside: dict[str, list[float]] = {}
        self.forget()
        self._squares = moe.sum_of_squares

    def forget(self) -> None:
        """Discard the seconds recorded so far."""
        self.inside = {variant: [] for variant in VARIANTS}

    def batch_start(self, state: State, logger: Logger) -> None:
        moe.sum_of_squares = self._timed if self.variant != "without" else no_sum
        self.inside[self.variant].append(0.0)
        self.measurement.begin(state.batch["input_ids"].shape[0])

    def _timed(self, logits_TE: Tensor) -> Tensor:
        began = common.now("cpu")  # CPU time, even on a GPU: wall-clock time would include waiting for the GPU
        squares = self._squares(logits_TE)
        self.inside[self.variant][-1] += common.now("cpu") - began
        return squares

    def after_loss(self, state: State, logger: Logger) -> None:
        self.measurement.add(state)

    def after_train_batch(self, state: State, logger: Logger) -> None:
        # All variants perform this reduction, because a training step needs the result even without expert health.
        values = self.measurement.reduce([param for _, param in self.named], self.top_k)
        if self.variant == "without":
            return
        began = common.now(self.device)
        self.health.log_step(logger, values.routing)
        self.health.report(state.timestamp.batch.value, logger, values.routing)
        if self.variant == "measured":
            names = [name for name, _ in self.named]
            self.health.measure(state, logger, values.routing, names, values.squares_P)
        self.inside[self.variant][-1] += common.now(self.device) - began


def cells(variant: str, row: dict[str, Any], inside: float | None) -> dict[str, str]:
    seconds = row["seconds"]
    shown = {"s": f"{statistics.median(seconds):.3f}", "min-max": common.spread(seconds, 3)}
    shown |= {"of without": f"{row['of without']:.4f}", "inside": f"{inside:.3%}" if inside is not None else ""}
    return {"variant": variant, **shown}


if __name__ == "__main__":
    sys.exit(main())
