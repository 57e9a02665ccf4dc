"""Shows the result of a simulation as tables for the console."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table

from data.base.sizes import format_bytes
from train.config.schema import TrainConfig
from train.simulation.simulate import Simulation
from train.simulation.storages import Phase


def simulation_tables(config: TrainConfig, simulation: Simulation) -> Iterator[RenderableType]:
    yield f"\nsimulated memory of rank 0 of {simulation.ranks:,}, in its second step"
    yield _phases(simulation)
    yield f"\nmemory at the peak, in phase {simulation.peak.name}"
    yield _peak(simulation.peak)
    if simulation.traffic:
        yield "\nsimulated traffic: GB (10^9 bytes) that rank 0 sends per step"
        yield _traffic(simulation)
    tokens = simulation.tokens
    yield (
        f"{simulation.flops / 1e12:,.1f} TFLOPs per rank in a step of {tokens:,} tokens, "
        f"{simulation.flops / tokens / 1e9:,.2f} GFLOPs per token; experts: {simulation.moe_impl}"
        f"{', routing is even' if config.model.ffn_config.moe_num_experts > 1 else ''}"
    )


def _table(first: str, *columns: str) -> Table:
    table = Table()
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _phases(simulation: Simulation) -> Table:
    table = _table("phase", "allocated at the end", "peak")
    for phase in simulation.phases:
        table.add_row(phase.name, format_bytes(phase.alive), format_bytes(phase.peak))
    return table


def _peak(peak: Phase) -> Table:
    table = _table("part", "allocated")
    for part, n_bytes in sorted(peak.parts.items(), key=lambda item: -item[1]):
        if n_bytes:
            table.add_row(part, format_bytes(n_bytes))
    table.add_section()
    table.add_row("all", format_bytes(peak.peak))
    return table


def _traffic(simulation: Simulation) -> Table:
    table = _table("kind", "over", "GB")
    found = sorted(simulation.traffic.items(), key=lambda item: -item[1])
    for (kind, dimension), n_bytes in found:
        table.add_row(kind, dimension, f"{n_bytes / 1e9:,.3g}")
    table.add_section()
    table.add_row("all", "", f"{sum(n_bytes for _, n_bytes in found) / 1e9:,.4g}")
    return table
