"""The plan of a run's data as tables and as a plot: its streams, the part of each stream that is used, and its
stages."""

from pathlib import Path

from rich.table import Table

from data.inspection.planned_shares import curves
from train.config.schema import TrainConfig
from train.planning.run_data import RunData


def streams_table(run: RunData) -> Table:
    """The size of each stream, and the rows and tokens that the run uses from the stream."""
    plan, max_batches = run.plan, run.clock.max_batches
    assert max_batches is not None
    table = Table(title="streams", title_justify="left")
    columns = ("stream", "rows", "tokens", "tokens per row", "rows drawn", "epochs", "share of rows", "share of tokens")
    for column in columns:
        table.add_column(column, justify="left" if column == "stream" else "right")
    counts = plan.counts(max_batches)
    taken = counts.tolist()
    of_tokens = plan.of_tokens(counts).tolist() if sum(taken) else taken
    all_known = all(stream.tokens is not None for stream in run.streams.values())
    for name, rows, token_share in zip(plan.names, taken, of_tokens, strict=True):
        stream = run.streams[name]
        tokens = "unknown" if stream.tokens is None else f"{stream.tokens:,}"
        mean = "" if stream.tokens is None else f"{stream.tokens / stream.n_rows:.1f}"
        table.add_row(
            name or "(the dataset)",
            f"{stream.n_rows:,}",
            tokens,
            mean,
            f"{rows:,}",
            f"{rows / stream.n_rows:.2f}",
            f"{rows / max(sum(taken), 1):.1%}",
            f"{token_share:.1%}" if all_known else "unknown",
        )
    return table


def stages_table(run: RunData, config: TrainConfig) -> Table:
    """The first and last batch of each stage, and its proportions: the streams' shares of tokens and, below these,
    their shares of rows."""
    plan, max_batches = run.plan, run.clock.max_batches
    assert max_batches is not None
    table = Table(
        title="stages (tok includes padding; rows of streams with an unknown number of tokens are counted as full)",
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


def draw(run: RunData, file: Path) -> None:
    """Plot the planned shares of the streams over the run as stacked areas and, below them, lr_scale. The suffix of the
    file determines the format."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plan, total = run.plan, run.clock.max_batches
    assert total is not None
    drawn = curves(plan, total)
    figure, (mix, scale) = plt.subplots(
        2, 1, figsize=(10, 5.5), layout="constrained", sharex=True, gridspec_kw={"height_ratios": [4, 1]}
    )
    mix.stackplot(drawn.batches, drawn.shares_PS.T, labels=[name or "the dataset" for name in plan.names], alpha=0.85)
    scale.plot(drawn.batches, drawn.lr_scale, color="black", linewidth=1.2)
    for name, first, _ in plan.stages():
        if first < total:
            mix.text(first, 1.01, f" {name}", fontsize=9, va="bottom")
            for axes in (mix, scale):
                axes.axvline(first, color="black", linewidth=0.8)
    mix.set(xlim=(0, total), ylim=(0, 1), ylabel="planned share of tokens")
    mix.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    scale.set(ylim=(0, 1.1 * max(drawn.lr_scale.max(), 1e-12)), xlabel="batch", ylabel="lr_scale")
    figure.savefig(file, dpi=150)
    plt.close(figure)
