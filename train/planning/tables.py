"""The plan of a run's data for eyes: which streams, how much of each, in which stages; as tables and as a picture."""

from pathlib import Path

import numpy as np
from rich.table import Table

from train.config.schema import TrainConfig
from train.planning.run_data import RunData

_POINTS = 400
"""At which a curve is drawn."""


def streams_table(run: RunData) -> Table:
    """What each stream has and what the run takes of it."""
    plan, max_batches = run.plan, run.clock.max_batches
    assert max_batches is not None
    table = Table(title="streams", title_justify="left")
    columns = ("stream", "rows", "tokens", "tokens a row", "rows taken", "passes", "share of rows", "share of tokens")
    for column in columns:
        table.add_column(column, justify="left" if column == "stream" else "right")
    counts = plan.counts(max_batches)
    taken = counts.tolist()
    of_tokens = plan.of_tokens(counts).tolist() if sum(taken) else taken
    all_known = all(stream.tokens is not None for stream in run.streams.values())
    for name, rows, token_share in zip(plan.names, taken, of_tokens, strict=True):
        stream = run.streams[name]
        tokens = "not known" if stream.tokens is None else f"{stream.tokens:,}"
        mean = "" if stream.tokens is None else f"{stream.tokens / stream.n_rows:.1f}"
        table.add_row(
            name or "(the dataset)",
            f"{stream.n_rows:,}",
            tokens,
            mean,
            f"{rows:,}",
            f"{rows / stream.n_rows:.2f}",
            f"{rows / max(sum(taken), 1):.1%}",
            f"{token_share:.1%}" if all_known else "not known",
        )
    return table


def stages_table(run: RunData, config: TrainConfig) -> Table:
    """From which batch to which a stage lasts, and what it is made of: shares of tokens, and below them of rows."""
    plan, max_batches = run.plan, run.clock.max_batches
    assert max_batches is not None
    table = Table(
        title="stages (tok: padding included; rows of streams whose tokens are not known are taken as full)",
        title_justify="left",
    )
    names = (name or "(the dataset)" for name in plan.names)
    left = ("stage", "as written", "shares of")
    for column in ("stage", "as written", "batches", "tok", "shares of", *names, "lr_scale"):
        table.add_column(column, justify="left" if column in left else "right")
    written = {stage.name: stage.duration for stage in config.train_loader.stages}
    for number, (name, first, end) in enumerate(plan.stages()):
        stop = max_batches if end is None else end
        start, last = plan.start_of(number), plan.end_of(number)
        shares = zip(*(mix.tolist() for mix in (start.tokens, last.tokens, start.rows, last.rows)), strict=True)
        duration = written.get(name)
        table.add_row(
            name or "(one mix)",
            "the rest"
            if duration is None
            else duration
            if isinstance(duration, str)
            else f"{duration.ep:g}ep of {duration.of}",
            f"{first:,} to {stop:,}",
            f"{(stop - first) * run.clock.tokens_per_batch:,}",
            "tokens\nrows",
            *(f"{_arrow(f'{a:.1%}', f'{b:.1%}')}\n{_arrow(f'{c:.1%}', f'{d:.1%}')}" for a, b, c, d in shares),
            _arrow(f"{start.lr_scale:g}", f"{last.lr_scale:g}"),
        )
    return table


def _arrow(start: str, end: str) -> str:
    return start if start == end else f"{start} → {end}"


def token_shares(run: RunData) -> tuple[list[int], np.ndarray]:
    """Batches all over the run, those at the ends of stages among them, and each stream's planned share of the tokens
    of each: int [B], float64 [B, S]."""
    plan, total = run.plan, run.clock.max_batches
    assert total is not None
    edges = {first for _, first, _ in plan.stages()}
    batches = sorted(
        {*range(0, total, max(1, total // _POINTS)), *edges, *(edge - 1 for edge in edges if edge), total - 1}
    )
    return batches, np.stack([plan.token_shares(batch) for batch in batches])


def draw(run: RunData, file: Path) -> None:
    """The planned mix over the run, stacked, as a picture of whatever kind the file's name says."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plan, total = run.plan, run.clock.max_batches
    assert total is not None
    batches, shares_BS = token_shares(run)
    figure, axes = plt.subplots(figsize=(10, 4.5), layout="constrained")
    axes.stackplot(batches, shares_BS.T, labels=[name or "the dataset" for name in plan.names], alpha=0.85)
    for name, first, _ in plan.stages():
        axes.axvline(first, color="black", linewidth=0.8)
        axes.text(first, 1.01, f" {name}", fontsize=9, va="bottom")
    axes.set(xlim=(0, max(total - 1, 1)), ylim=(0, 1), xlabel="batch", ylabel="planned share of tokens")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(file, dpi=150)
    plt.close(figure)
