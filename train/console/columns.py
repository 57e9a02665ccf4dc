"""The columns of the step lines, and their header."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from data.base.durations import format_seconds
from train.console.facts import count_of

HEADER_EVERY = 30
"""Number of lines between two headers."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the step lines: a metric, and the format in which it is shown."""

    header: str
    metric: str
    show: Callable[[float], str]
    width: int
    """Minimum width. Longer values are not truncated."""
    unless: str | None = None
    """A metric whose presence hides the column."""
    comes_later: bool = False
    """Whether to show the column from the start, although the metric is not logged before the speed is known."""

    def cell(self, metrics: Mapping[str, float]) -> str:
        return self.show(metrics[self.metric]) if self.metric in metrics else "-"


def _fixed(value: float) -> str:
    """Format with four decimals, or with an exponent if the number is large."""
    return f"{value:.4f}" if abs(value) < 1000 or value != value else f"{value:.1e}"


def _three_digits(value: float) -> str:
    """Format as `0.931`, `1.30`, `12.5`, `340`, or with an exponent."""
    return f"{value:#.3g}".rstrip(".")


COLUMNS = (
    Column(header="loss", metric="loss/train/total", show=_fixed, width=7),
    Column(header="lbl", metric="loss/train/load_balancing", show=_fixed, width=6),
    Column(header="lr", metric="lr", show=lambda value: f"{value:.1e}", width=7),
    Column(header="grad", metric="l2_norm/grad/global", show=_three_digits, width=6),
    Column(header="tok/s", metric="throughput/tokens_per_sec", show=count_of, width=6, comes_later=True),
    Column(header="MFU", metric="throughput/device/mfu", show=lambda value: f"{value:.1%}", width=6),
    Column(
        header="FLOP/s",
        metric="throughput/flops_per_sec",
        show=count_of,
        width=6,
        unless="throughput/device/mfu",
        comes_later=True,
    ),
    Column(header="GiB", metric="memory/peak_gib", show=lambda value: f"{value:.2f}", width=5),
    Column(header="left", metric="time/remaining_seconds", show=format_seconds, width=6, comes_later=True),
)
"""The columns after step and tokens. `lbl` is the load-balancing loss, and `GiB` is the peak memory."""


def shown(metrics: Mapping[str, float]) -> list[Column]:
    """Return the columns whose metrics are in `metrics`, without the columns whose `unless` is one of these metrics."""
    return [column for column in COLUMNS if column.metric in metrics and column.unless not in metrics]


class StepTable:
    """Step lines under a header, which is repeated every HEADER_EVERY lines and when the columns change."""

    def __init__(self, max_batches: int, *, stages: bool) -> None:
        self._max_batches, self._stages = max_batches, stages
        self._columns: list[Column] = []
        self._rows = 0

    def lines(self, batch: int, tokens: int, metrics: Mapping[str, float], stage: str = "") -> list[str]:
        """Return the line of a step, preceded by the header if a header is due."""
        present = shown(metrics)
        columns = [each for each in COLUMNS if each in present or (each.comes_later and each.unless not in metrics)]
        due = self._rows % HEADER_EVERY == 0 or columns != self._columns
        self._rows = 1 if due else self._rows + 1
        self._columns = columns
        values = [column.cell(metrics) for column in columns]
        line = self._line(f"{batch}/{self._max_batches}", count_of(tokens), values, stage)
        return [self._line("step", "tokens", [column.header for column in columns], "stage"), line] if due else [line]

    def _line(self, step: str, tokens: str, cells: list[str], stage: str) -> str:
        width = 2 * len(str(self._max_batches)) + 1
        parts = [f"{step:>{width}}", f"{tokens:>6}"]
        parts += [f"{cell:>{column.width}}" for column, cell in zip(self._columns, cells, strict=True)]
        return "  ".join([*parts, stage] if self._stages else parts).rstrip()


def eval_text(metrics: Mapping[str, float]) -> str:
    """Format Composer's `metrics/eval/*` as `loss 1.2301, perplexity 3.4216, accuracy 61.2%`."""
    names = {"LanguageCrossEntropy": "loss", "LanguagePerplexity": "perplexity", "LanguageTokenAccuracy": "accuracy"}
    parts = []
    for key, value in metrics.items():
        if key.startswith("metrics/"):
            name = names.get(key.rpartition("/")[2], key.removeprefix("metrics/"))
            parts.append(f"{name} {value:.1%}" if name == "accuracy" else f"{name} {_fixed(value)}")
    return ", ".join(parts)


def lines_interval(max_batches: int, most: int = 1000) -> int:
    """Return the smallest interval between lines, out of 1, 2, 5, 10, 20, 50, ... batches, at which a run prints at
    most `most` lines."""
    interval, steps = 1, (2, 2.5, 2)
    for number in range(60):
        if interval * most >= max_batches:
            break
        interval = round(interval * steps[number % 3])
    return interval
