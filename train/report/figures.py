"""The key figures and the warnings at the top of a report."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from data.base.durations import format_seconds
from train.report.reading.run import EVAL_LOSS, LOSS, Run
from train.report.timeline import counts

_RECENT = 20
"""Number of recent steps over which a loss is averaged."""
_RISE = 1.005
"""A rise of the evaluation loss is reported if the loss exceeds its minimum by more than this factor."""
_ALARMING = {
    "not finite": "{} with a loss or gradient that is not finite",
    "spike": "{} at which the loss had a spike",
    "rollback": "{} at which the run rolled back to a checkpoint",
    "expert dead": "{} at which an expert was reported as dead",
    "expert collapse": "{} at which an expert received too many tokens",
}


def state(run: Run) -> str:
    if run.state == "silent":
        return f"no new line in the logs for {format_seconds(run.age)}, and no end line: the run may have been killed"
    return "stopped: the run can be resumed" if run.state == "stopped" else run.state


def key_figures(run: Run) -> Iterator[tuple[str, str, str]]:
    """Yield the name, value and note of each key figure."""
    last, metrics = run.last_step, run.metrics
    of = f" of {run.max_steps:,}" if run.max_steps else ""
    part = f"{last / run.max_steps:.0%}" if run.max_steps else ""
    yield "step", f"{last:,}{of}", part
    if metrics.tokens.size:
        yield "tokens", short(float(metrics.tokens[-1])), _tokens_note(run)
    if LOSS in metrics.series:
        yield (
            "train loss",
            f"{_mean_of_last(run, LOSS):.4g}",
            f"mean of the last {min(_RECENT, metrics.steps.size)} steps",
        )
    if EVAL_LOSS in metrics.series:
        series = metrics.series[EVAL_LOSS]
        best = int(np.nanargmin(series.values)) if np.isfinite(series.values).any() else 0
        yield (
            "evaluation loss",
            f"{series.last:.4g}",
            f"lowest {series.values[best]:.4g} at step {series.steps[best]:,}",
        )
    for name, metric, unit, note in _SPEED:
        if metric in metrics.series:
            yield name, unit(_mean_of_last(run, metric)), note
    if (peak := metrics.last("memory/peak_gib")) is not None:
        planned = run.planned_gib
        yield "peak memory", f"{peak:.3g} GiB", f"planned {planned:.3g} GiB" if planned is not None else ""
    if metrics.times.size:
        yield "time", *_times(run)
    parameters = run.record.start.get("parameters")
    if isinstance(parameters, dict) and isinstance(parameters.get("total"), int):
        active = parameters.get("active")
        yield "parameters", short(parameters["total"]), f"{short(active)} active" if isinstance(active, int) else ""
    if (device := run.record.start.get("device")) is not None:
        yield (
            "ranks",
            f"{run.record.start.get('world_size', '')} × {device}",
            str(run.record.start.get("precision", "")),
        )


def alarms(run: Run) -> list[str]:
    """Return one short sentence per warning, most severe first."""
    found = []
    end = run.record.end
    if end is not None and run.state in ("failed", "stopped"):
        found.append(f"The run has {run.state}: {end.message}")
    if run.state == "silent":
        found.append(f"The last line of the logs is {format_seconds(run.age)} old, and the record has no end line.")
    if not run.metrics.steps.size:
        found.append("No step has been logged yet.")
    loss = run.metrics.series.get(LOSS)
    if loss is not None and not np.isfinite(loss.last):
        found.append("The last loss is not finite.")
    happened = counts(run)
    found += [
        f"There {'was' if n == 1 else 'were'} {text.format('1 step' if n == 1 else f'{n} steps')}."
        for kind, text in _ALARMING.items()
        if (n := happened[kind])
    ]
    if dead := run.metrics.last("experts/dead"):
        found.append(f"{dead:.0f} {'expert' if dead == 1 else 'experts'} received no tokens in the last step.")
    return [*found, *_evaluation_rises(run)]


def short(number: float) -> str:
    """Format a number as `131.6B`, `42.1M`, `512`."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(number) >= size:
            return f"{number / (1e3 if letter == 'k' else size):.4g}{letter}"
    return f"{number:,.4g}" if number != int(number) else f"{int(number):,}"


def _tokens_note(run: Run) -> str:
    real, trained = run.metrics.last("tokens/real"), run.metrics.last("tokens/trained")
    parts = [f"{short(real)} without padding"] if real is not None else []
    return ", ".join([*parts, *([f"{short(trained)} trained on"] if trained is not None else [])])


def _times(run: Run) -> tuple[str, str]:
    seconds = float(run.hours(run.metrics.times[-1:])[0]) * 3600
    left = run.metrics.last("time/remaining_seconds")
    note = f"{format_seconds(left)} left" if left and run.state == "running" else ""
    return format_seconds(seconds), note


def _mean_of_last(run: Run, name: str) -> float:
    values = run.metrics.series[name].values[-_RECENT:]
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def _evaluation_rises(run: Run) -> Iterator[str]:
    series = run.metrics.series.get(EVAL_LOSS)
    if series is None or len(series.values) < 3 or not np.isfinite(series.values).all():
        return
    best = int(series.values.argmin())
    if series.last > _RISE * series.values[best]:
        was, step = f"{series.values[best]:.4g}", f"{series.steps[best]:,}"
        yield f"The evaluation loss has risen from {was} at step {step} to {series.last:.4g}."


_SPEED: tuple[tuple[str, str, Any, str], ...] = (
    ("tokens/s", "throughput/real_tokens_per_sec", short, "without padding"),
    ("MFU", "throughput/device/mfu", "{:.1%}".format, "model FLOPs utilization"),
)
