"""Measures the cost of the Throughput callback: times a full training step with and without the callback.

The variants run in turn in every round, in one process, with the same model and rows. The ratio is computed per round.
On a CPU, CPU time is measured, with one thread by default. `inside` is the time spent in the callback and in recording
the sections that the callback reads. This value is reliable even if the difference between the variants' step times is
smaller than the noise.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Keep scripts/ off sys.path, because scripts/evaluate.py would shadow the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import os
import statistics
import time
from collections.abc import Sequence

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

from composer.core import Callback, State
from composer.loggers import Logger

from scripts.bench import common
from scripts.bench.step_models import make_batch
from scripts.bench.step_variants import prepared_model, trainer_step
from train.callbacks.global_batch import GlobalBatch
from train.config.callbacks import CallbacksConfig
from train.config.supervision import DeadlinesConfig
from train.models.flops import flops_per_token
from train.supervision.hangs.deadlines import Deadlines, Section
from train.supervision.hangs.sections import Sections, waiting_for_data, watched_sections
from train.throughput.monitor import Throughput

VARIANTS = ("without", "with")


def main(argv: Sequence[str] | None = None) -> int:
    args = common.step_parser(__doc__).parse_args(argv)
    model = prepared_model(args)
    sections = Sections(Deadlines(DeadlinesConfig()), time.monotonic, print)
    monitor = Throughput(
        CallbacksConfig(),
        window_size=100,
        rows_per_batch=args.rows,
        flops_per_token=flops_per_token(model.config, args.max_seq_len),
        device_flops=None,
    )
    turn = Turn(monitor, sections, args.device)
    step = trainer_step(model, make_batch(args), [GlobalBatch(model.config), turn], args)

    def seconds(variant: str) -> float:
        turn.variant = variant
        step()
        return turn.seconds  # includes the callback, which runs after the clock of trainer_step stops

    with watched_sections(sections):
        times = common.alternated(VARIANTS, args.rounds, seconds, turn.inside.clear)
    inside = statistics.median(a / b for a, b in zip(turn.inside, times["with"], strict=True))
    ratio = common.ratio(times["with"], times["without"])
    common.show_table(
        [
            {"variant": variant, "s": common.median(times[variant], 3), "min-max": common.spread(times[variant], 3)}
            for variant in VARIANTS
        ]
    )
    milliseconds = 1e3 * statistics.median(turn.inside)
    print(
        f"  step time `with` / `without`: {ratio:.4f}; time in the callback: {milliseconds:.2f} ms, "
        f"{inside:.3%} of a step"
    )
    figures = {"seconds": times, "ratio": ratio, "inside_ms": milliseconds, "inside": inside}
    common.write_json(args.json, common.description(args) | figures)
    return 0


class Turn(Callback):
    """In steps of the variant "with", enters the sections of a real step, runs the callback, and records how many
    seconds the sections and the callback take."""

    def __init__(self, monitor: Throughput, sections: Sections, device: str) -> None:
        self.monitor, self.sections, self.device, self.variant = monitor, sections, device, VARIANTS[0]
        self.inside: list[float] = []
        self.began = self.seconds = 0.0

    def batch_start(self, state: State, logger: Logger) -> None:
        self.began = common.now(self.device)

    def batch_end(self, state: State, logger: Logger) -> None:
        if self.variant == "with":
            began = common.now(self.device)
            self._measure(state, logger)
            self.inside.append(common.now(self.device) - began)
        self.seconds = common.now(self.device) - self.began

    def _measure(self, state: State, logger: Logger) -> None:
        with waiting_for_data():
            pass
        self.sections.enter(Section.SAVE)
        self.sections.leave()
        self.sections.step_done(state.timestamp.batch.value)
        self.monitor.batch_end(state, logger)


if __name__ == "__main__":
    sys.exit(main())
