"""The tables of scripts/plan.py: parameters, FLOPs, memory, traffic and time. Other modules compute the numbers."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields

from rich.console import Group
from rich.table import Table
from rich.text import Text

from data.base.sizes import format_bytes
from train.config.schema import TrainConfig
from train.models.config import ModelConfig
from train.models.flops import Flops, flops_per_token
from train.models.shapes import adapter_shapes, count_adapters, count_parameters, parameter_sizes
from train.planning.cluster.machines import Cluster, between_nodes
from train.planning.cluster.search import Candidate, Settings
from train.planning.cluster.step_time import Assumptions, StepTime, model_flops_utilization
from train.planning.peak import MemoryParts, memory_parts
from train.planning.traffic import Traffic

_PARTS = {
    "embedding": ("transformer.wte.",),
    "attention": (".attn.",),
    "router": (".router.",),
    "experts": (".experts.",),
    "norms": (".norm_1.", ".norm_2.", ".norm_f."),
    "head": ("lm_head.",),
}
_PREDICTED = ("memory", "per step", "tokens/s", "MFU", "bound by")
_FLOPS = ("forward", "backward", "recomputed")
_SECONDS = {
    "experts": "experts' GEMMs",
    "other_gemms": "other GEMMs",
    "attention": "attention scores",
    "elementwise": "elementwise operations",
    "inside": "exposed communication within a node",
    "between": "exposed communication between nodes",
    "optimizer": "clipping and optimizer",
    "offload": "transfer of activations to the host and back",
}


def parameters_table(config: TrainConfig) -> Group:
    """Total and active parameters of each part of the model."""
    model, sizes = config.model, parameter_sizes(config.model)
    table = _table("part", "total", "active")
    for part, marks in _PARTS.items():
        total = sum(size for name, size in sizes.items() if any(mark in name for mark in marks))
        table.add_row(part, f"{total:,}", f"{_active(model, part, total):,}")
    table.add_section()
    total, active = count_parameters(model)
    table.add_row("model" if config.lora is None else "model, frozen", f"{total:,}", f"{active:,}")
    if config.lora is not None:
        total, active = count_adapters(model, config.lora)
        number = len(adapter_shapes(model, config.lora)) // 2
        table.add_row(f"{number} adapters", f"{total:,}", f"{active:,}")
    return _titled("parameters", table)


def _active(model: ModelConfig, part: str, total: int) -> int:
    ffn = model.ffn_config
    return total * ffn.moe_top_k // ffn.moe_num_experts if part == "experts" else total


def flops_table(config: TrainConfig, flops: Sequence[Flops]) -> Group:
    """FLOPs per token and per step of each part of the model."""
    tokens = config.global_train_batch_size * config.max_seq_len
    title = f"FLOPs of GEMMs, and of attention over rows of {config.max_seq_len:,} tokens; a step has {tokens:,} tokens"
    table = _table("part", *_FLOPS, "per token", "per step")
    for each in flops:
        if each.total:
            table.add_row(*_counted(each, tokens))
    table.add_section()
    forward, backward, again = (sum(getattr(each, name) for each in flops) for name in _FLOPS)
    total = Flops(part="all", forward=forward, backward=backward, recomputed=again)
    table.add_row(*_counted(total, tokens))
    of_model = flops_per_token(config.model, config.max_seq_len, config.lora)
    table.add_row("model FLOPs (for MFU)", "", "", "", *_tokens(of_model, tokens))
    return _titled(title, table)


def _counted(flops: Flops, tokens: int) -> list[str]:
    return [flops.part, *(_short(getattr(flops, name)) for name in _FLOPS), *_tokens(flops.total, tokens)]


def _tokens(total: int, tokens: int) -> list[str]:
    return [_short(total), _short(total * tokens)]


def memory_table(
    parts: Mapping[str, MemoryParts], bounds: Mapping[str, float], have: float | None, ranks: int
) -> Group:
    """Memory by category, with a column for each device. bounds: the lower bounds, below which a run is rejected."""
    title = f"memory of each of {ranks:,} rank(s) at the peak of a step (predicted)"
    table = _table("part", *parts)
    for field in fields(MemoryParts):
        values = [getattr(each, field.name) for each in parts.values()]
        if any(values):
            table.add_row(field.name.replace("_", " "), *map(format_bytes, values))
    table.add_section()
    table.add_row("total", *(format_bytes(each.total) for each in parts.values()))
    table.add_row("lower bound", *map(format_bytes, bounds.values()))
    if have is not None:
        table.add_row("the GPU has", format_bytes(have, down=True))
    return _titled(title, table)


def traffic_table(sent: Sequence[Traffic], cluster: Cluster) -> Group:
    """Traffic by kind of collective, mesh dimension and link."""
    nodes = f"{cluster.nodes} node(s) with {cluster.gpus} GPU(s) each"
    title = f"traffic: GB (10^9 bytes) that a rank sends per step, on {nodes}"
    table = _table("kind", "over", "of ranks", "inside a node", "between nodes")
    for each in sent:
        far = between_nodes(each, cluster.gpus)
        table.add_row(each.kind, each.dim.name, f"{each.dim.size:,}", _gb(each.n_bytes - far), _gb(far))
    total, far = sum(each.n_bytes for each in sent), sum(between_nodes(each, cluster.gpus) for each in sent)
    table.add_section()
    table.add_row("all", "", "", _gb(total - far), _gb(far))
    return _titled(title, table)


def time_table(config: TrainConfig, cluster: Cluster, step: StepTime, batches: int | None) -> Group:
    """The predicted time of a step, and the values for the run that are computed from this time."""
    assert cluster.gpu is not None
    title = f"prediction for {cluster.ranks:,} x {cluster.gpu.name} (nothing here is measured)"
    table = _table("", "")
    for name, label in _SECONDS.items():
        if seconds := getattr(step, name):
            table.add_row(label, f"{_seconds(seconds)} ({seconds / step.total:.0%})")
    table.add_section()
    tokens = config.global_train_batch_size * config.max_seq_len
    table.add_row("a step", _seconds(step.total))
    table.add_row("communication overlapped with computation", _seconds(step.hidden))
    table.add_row("bound by", step.bound)
    table.add_row(
        "tokens/s, including padding",
        f"{tokens / step.total:,.0f} ({tokens / step.total / cluster.ranks:,.0f} per GPU)",
    )
    table.add_row("MFU", f"{model_flops_utilization(config, cluster, step.total):.1%}")
    if batches is None:
        table.add_row("the run", f"{config.max_duration}: use --data to determine the number of steps")
    else:
        hours = batches * step.total / 3600
        table.add_row(f"the run, {batches:,} steps", f"{hours:,.1f} hours, {hours * cluster.ranks:,.0f} GPU-hours")
    return _titled(title, table)


def assumptions_line(assumed: Assumptions) -> str:
    """The line that states the assumptions of the prediction."""
    return (
        f"assumed, not measured: {assumed.gemm:.0%} of peak TFLOPs in GEMMs, {assumed.experts:.0%} in the experts' "
        f"GEMMs and {assumed.scores:.0%} in attention, which computes the causal half; {assumed.memory:.0%} of the "
        f"memory bandwidth and {assumed.link:.0%} of the links' bandwidth; gathers and reductions overlap with "
        f"{assumed.overlap:.0%} of the computation; even load of the experts; no waiting for data, checkpoints or "
        "slower ranks"
    )


def changes_table(candidates: Iterable[Candidate], cluster: Cluster) -> Group:
    """The candidates, each with its changes to the config."""
    table = _table("changes", *_PREDICTED)
    for each in candidates:
        table.add_row("\n".join(each.changes), *_predicted(each, cluster))
    return _titled("the smallest changes with which the run fits (predicted)", table)


def search_table(candidates: Sequence[Candidate], cluster: Cluster) -> Group:
    """The candidates' settings, fastest first, and the overrides for the fastest one."""
    table = _table("replicas", "EP", "microbatch", "recompute", "moe_recompute", *_PREDICTED)
    for each in candidates:
        found = Settings.of(each.config, cluster.ranks)
        own = (found.replicas, found.expert_ranks, found.rows, found.recompute, str(found.moe_recompute).lower())
        table.add_row(*map(str, own), *_predicted(each, cluster))
    command = " ".join(candidates[0].changes) or "no changes"
    return Group(_titled("the fastest settings that fit (predicted)", table), f"the fastest: {command}")


def _predicted(candidate: Candidate, cluster: Cluster) -> list[str]:
    config, seconds = candidate.config, candidate.step.total
    return [
        format_bytes(memory_parts(config, cluster.ranks, gpu=True).total),
        _seconds(seconds),
        f"{config.global_train_batch_size * config.max_seq_len / seconds:,.0f}",
        f"{model_flops_utilization(config, cluster, seconds):.1%}",
        candidate.step.bound,
    ]


def _titled(title: str, table: Table) -> Group:
    """Return the table below its title. A title set on the table itself would be wrapped to the table's width."""
    return Group(Text(f"\n{title}", style="bold"), table)


def _table(*columns: str) -> Table:
    table = Table()
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table


def _short(number: float) -> str:
    """Format a number with a unit prefix: 3.29e12 becomes `3.29 T`."""
    power = min(max(int(math.log10(number)) // 3, 0), 7) if number else 0
    return f"{number / 1000**power:.3g}{' ' if power else ''}{('', 'k', 'M', 'G', 'T', 'P', 'E', 'Z')[power]}"


def _gb(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:,.3g}" if n_bytes < 1e11 else f"{n_bytes / 1e9:,.0f}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 0.1 else f"{1000 * seconds:.3g} ms"
