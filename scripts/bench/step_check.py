"""Measures the cost of StepCheck: times a full training step with the check, with torch's clip_grad_norm_ (which
Composer's GradientClipping calls) instead of the check, and with neither of them.

The variants run in turn in every round, in one process, with the same model and rows. Ratios are computed per round. On
a CPU, CPU time is measured, with one thread by default. `inside` is the fraction of a step's time that is spent in the
check's own functions. This value is reliable even if the difference between the variants' step times is smaller than
the noise.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Keep scripts/ off sys.path, because scripts/evaluate.py would shadow the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
import os
import statistics
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch
from composer.core import Callback, State
from composer.loggers import Logger

from data.base.durations import Clock
from data.config.dataset import DatasetConfig
from data.config.loader import DataLoaderConfig
from data.config.tokenizer import TokenizerConfig
from scripts.bench import common
from scripts.bench.step_models import make_batch
from scripts.bench.step_variants import prepared_model, trainer_step
from train.callbacks.global_batch import GlobalBatch
from train.config.optimizer import AlgorithmsConfig, GradientClippingConfig, OptimizerConfig, SchedulerConfig
from train.config.schema import TrainConfig
from train.config.supervision import ExpertsConfig
from train.models.config import ModelConfig
from train.stability.step_check import StepCheck
from train.supervision.events import Events

VARIANTS = ("neither", "torch's clip_grad_norm_", "step check")


def main(argv: Sequence[str] | None = None) -> int:
    args = common.step_parser(__doc__).parse_args(argv)
    model = prepared_model(args)
    check = StepCheck(
        run_config(model.config, args), plan(), model.model, Events(None), clock=clock(args), folder=None, saver=None
    )
    turn = Turn(check, args)
    step = trainer_step(model, make_batch(args), [GlobalBatch(model.config), turn], args)

    def seconds(variant: str) -> float:
        turn.variant = variant
        return step()["seconds"]

    times = common.alternated(VARIANTS, args.rounds, seconds, turn.inside.clear)
    rows = {variant: summarise(times, variant) for variant in VARIANTS}
    common.show_table([cells(variant, row) for variant, row in rows.items()])
    inside = statistics.median(a / b for a, b in zip(turn.inside, times["step check"], strict=True))
    print(f"  time inside the check: {inside:.2%} of a step")
    common.write_json(args.json, common.description(args) | {"sides": rows, "inside": inside})
    return 0


def run_config(config: ModelConfig, args: argparse.Namespace) -> TrainConfig:
    dataset = DatasetConfig(hf_name="json", max_seq_len=args.max_seq_len)
    clipping = GradientClippingConfig(clipping_type="norm", clipping_threshold=1.0)
    return TrainConfig(
        max_seq_len=args.max_seq_len,
        model=config,
        tokenizer=TokenizerConfig(name="unused"),
        train_loader=DataLoaderConfig(name="finetuning", dataset=dataset),
        optimizer=OptimizerConfig(name="adamw", lr=1e-4),
        scheduler=SchedulerConfig(name="constant_with_warmup"),
        algorithms=AlgorithmsConfig(gradient_clipping=clipping),
        max_duration="1000ba",
        global_train_batch_size=args.rows,
        # scripts/bench/expert_health.py measures the cost of measuring the experts.
        experts=ExpertsConfig(interval=None),
    )


def clock(args: argparse.Namespace) -> Clock:
    return Clock(tokens_per_batch=args.rows * args.max_seq_len, rows_per_batch=args.rows, rows_per_epoch=args.rows)


def plan() -> Any:
    """A mock of the parts of RowPlan that the check reads before each batch."""
    return SimpleNamespace(segments=(), stage=lambda batch: "")


class Turn(Callback):
    """Performs the work of the current variant in each step, and records the seconds spent in the check."""

    def __init__(self, check: StepCheck, args: argparse.Namespace) -> None:
        self.check, self.device, self.variant = check, args.device, VARIANTS[0]
        self.inside: list[float] = []

    def _timed(self, function: Callable[[State, Logger], None], state: State, logger: Logger) -> None:
        if self.variant == "step check":
            began = common.now(self.device)
            function(state, logger)
            self.inside[-1] += common.now(self.device) - began

    def batch_start(self, state: State, logger: Logger) -> None:
        if self.variant == "step check":
            self.inside.append(0.0)
        self._timed(self.check.batch_start, state, logger)

    def after_loss(self, state: State, logger: Logger) -> None:
        self._timed(self.check.after_loss, state, logger)

    def after_train_batch(self, state: State, logger: Logger) -> None:
        self._timed(self.check.after_train_batch, state, logger)
        if self.variant == "torch's clip_grad_norm_":
            torch.nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)


def summarise(times: dict[str, list[float]], variant: str) -> dict[str, Any]:
    ratios = {f"of {other}": common.ratio(times[variant], times[other]) for other in VARIANTS[:2]}
    return {"seconds": times[variant], "median_s": statistics.median(times[variant]), **ratios}


def cells(variant: str, row: dict[str, Any]) -> dict[str, str]:
    shown = {f"of {other}": f"{row[f'of {other}']:.4f}" for other in VARIANTS[:2]}
    return {"variant": variant, "s": f"{row['median_s']:.3f}", "min-max": common.spread(row["seconds"], 3), **shown}


if __name__ == "__main__":
    sys.exit(main())
