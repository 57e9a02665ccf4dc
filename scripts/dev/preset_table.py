"""The tables of presets and configurations in README.md and docs/recipes.md, computed by the planner.

python scripts/dev/preset_table.py            # print the tables
python scripts/dev/preset_table.py --write    # write them between their markers in both pages
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Import modules only from the repository's root, because scripts/evaluate.py would hide the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.config.schema import TrainConfig
    from train.planning.cluster.machines import Cluster

PAGES = ("README.md", "docs/recipes.md")
GPU = "h100"
NODE = 8
TOKENS = 10**9
"""The number of tokens, including padding, for which GPU-hours are computed."""

SHIPPED = {
    "pretrain/dbrx.yaml": 512,
    "pretrain/dbrx_continued.yaml": 64,
    "pretrain/dbrx_9b.yaml": 16,
    "pretrain/dbrx_tiny_curriculum.yaml": 2,
    "finetune/dbrx.yaml": 64,
    "finetune/dbrx_lora.yaml": 8,
    "finetune/dbrx_qlora.yaml": 2,
    "finetune/dbrx_9b.yaml": 8,
    "finetune/dbrx_9b_lora.yaml": 1,
    "finetune/dbrx_tiny.yaml": 2,
    "finetune/dbrx_tiny_lora.yaml": 2,
}
"""The number of ranks for which each configuration in yamls/pretrain/ and yamls/finetune/ is designed."""
METHODS = {
    "full fine-tuning": "finetune/dbrx.yaml",
    "LoRA": "finetune/dbrx_lora.yaml",
    "QLoRA": "finetune/dbrx_qlora.yaml",
}
"""The columns of the preset table, each with a configuration. For each row of the table, the preset in the
configuration is replaced with the preset of the row."""
LONG = "max_seq_len=32768"
VARIANTS = (
    ("finetune/dbrx.yaml", "fsdp_config.expert_parallel_degree=8", 64),
    ("finetune/dbrx.yaml", "fsdp_config.expert_parallel_degree=16", 64),
    ("finetune/dbrx.yaml", "fsdp_config.expert_parallel_degree=8", 32),
    ("finetune/dbrx.yaml", f"{LONG} fsdp_config.expert_parallel_degree=8 model.ffn_config.moe_recompute=true", 64),
    ("finetune/dbrx_lora.yaml", LONG, 8),
    ("finetune/dbrx_qlora.yaml", LONG, 8),
    ("finetune/dbrx_9b.yaml", "device_train_microbatch_size=4 fsdp_config.activation_checkpointing=none", 8),
    ("finetune/dbrx_9b.yaml", LONG, 8),
    ("finetune/dbrx_9b_lora.yaml", "lora.base_dtype=nf4", 1),
    ("pretrain/dbrx_9b.yaml", "device_train_microbatch_size=4", 8),
)
"""Further configurations, with overrides and numbers of ranks, for which docs/recipes.md contains figures."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The prediction of the planner for a configuration on a number of GPUs."""

    ranks: int
    memory: float
    """Bytes per GPU, at the peak of a step."""
    mfu: float
    gpu_hours: float
    """GPU-hours for TOKENS tokens."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help=f"write the tables into {' and '.join(PAGES)}")
    args = parser.parse_args(argv)
    if args.write:
        for page in map(ROOT.joinpath, PAGES):
            page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        for name, table in TABLES.items():
            print(f"{name}\n\n{table()}\n")
    return 0


def filled(text: str, tables: Mapping[str, Callable[[], str]] | None = None) -> str:
    """Return the page with newly computed tables between their markers. tables: by default, TABLES."""
    tables = TABLES if tables is None else tables

    def replacement(match: re.Match[str]) -> str:
        return f"{match[1]}\n\n{tables[match[2]]()}\n\n{match[3]}"

    return re.sub(r"(<!-- table: (\w+) .*?-->).*?(<!-- end of table -->)", replacement, text, flags=re.DOTALL)


@cache
def preset_table() -> str:
    """Return the table with a row per preset: its parameters, and the smallest number of GPUs for each of METHODS."""
    from train.models.config import PRESETS
    from train.models.shapes import count_parameters

    columns = ["preset", "parameters", "active", *METHODS, "GPU-hours for 1 B tokens"]
    rows = []
    for preset in PRESETS:
        of_preset = ["finetune/dbrx_tiny.yaml"] if preset == "tiny" else METHODS.values()
        configs = [_config(path, f"model.preset={preset}") for path in of_preset]
        row = [f"`{preset}`", *map(_count, count_parameters(configs[0].model))]
        if preset == "tiny":
            row.append("any CPU")
        else:
            found = list(map(smallest, configs))
            row += [*map(_gpus, found), " / ".join(f"{each.gpu_hours:,.0f}" for each in found)]
        rows.append(row)
    return _markdown(columns, rows)


@cache
def configuration_table() -> str:
    """Return the table with a row per configuration in yamls/: the GPUs for which it is designed, their memory, and the
    predicted time."""
    columns = ["configuration", "designed for", "memory per rank", "tokens/s per GPU", "MFU", "1 B tokens"]
    rows = []
    for path, ranks in SHIPPED.items():
        config, on_gpu = _config(path), "tiny" not in path
        row = [f"[`{path}`](../yamls/{path})", f"{ranks} {'GPU' if on_gpu else 'CPU rank'}{'s' if ranks > 1 else ''}"]
        if on_gpu:
            row += [*_cells(prediction(config, ranks)), _gpus(smallest(config))]
        else:
            row.append(_gigabytes(_cpu_memory(config, ranks)))
        rows.append(row)
    return _markdown([*columns, "fewest GPUs"], rows)


@cache
def variant_table() -> str:
    """Return the table with a row per entry of VARIANTS."""
    columns = ["configuration", "overrides", "GPUs", "memory per GPU", "tokens/s per GPU", "MFU", "1 B tokens"]
    rows = []
    for path, overrides, ranks in VARIANTS:
        row = [f"`{path}`", f"`{overrides}`", str(ranks)]
        rows.append([*row, *_cells(prediction(_config(path, *overrides.split()), ranks))])
    return _markdown(columns, rows)


def _cells(found: Prediction) -> list[str]:
    hours = f"{found.gpu_hours / found.ranks:,.1f} h ({found.gpu_hours:,.0f} GPU-hours)"
    return [_gigabytes(found.memory), f"{TOKENS / found.gpu_hours / 3600:,.0f}", f"{found.mfu:.0%}", hours]


TABLES: Mapping[str, Callable[[], str]] = {
    "presets": preset_table,
    "configurations": configuration_table,
    "variants": variant_table,
}
"""The functions that compute the tables, by the names in the markers of the pages."""


def _config(path: str, *overrides: str) -> "TrainConfig":
    from train.config.load import read_config

    return read_config(str(ROOT / "yamls" / path), overrides)


def _cluster(ranks: int) -> "Cluster":
    from train.planning.cluster.machines import make_cluster

    return make_cluster(max(ranks // NODE, 1), min(ranks, NODE), GPU)


def prediction(config: "TrainConfig", ranks: int) -> Prediction:
    """Return the prediction. Raises ConfigError if the configuration does not support this number of ranks."""
    from train.config.ranks import check_world_size
    from train.planning.cluster.step_time import model_flops_utilization, predict, run_flops
    from train.planning.peak import memory_parts
    from train.planning.traffic import traffic

    check_world_size(config, ranks)
    cluster = _cluster(ranks)
    seconds = predict(config, cluster, run_flops(config), traffic(config, ranks)).total
    return Prediction(
        ranks=ranks,
        memory=memory_parts(config, ranks, gpu=True).total,
        mfu=model_flops_utilization(config, cluster, seconds),
        gpu_hours=TOKENS / (config.global_train_batch_size * config.max_seq_len) * seconds * ranks / 3600,
    )


def smallest(config: "TrainConfig") -> Prediction:
    """Return the prediction for the smallest number of GPUs (a power of two) on which the configuration fits. Raises
    ValueError if the configuration does not fit on any number of GPUs."""
    from data.base.errors import ConfigError

    gpu = _cluster(1).gpu
    assert gpu is not None
    for power in range(config.global_train_batch_size.bit_length()):
        try:
            found = prediction(config, 2**power)
        except ConfigError:
            continue
        if found.memory <= gpu.n_bytes:
            return found
    raise ValueError(f"{config.run_name} does not fit on any number of GPUs")


def _cpu_memory(config: "TrainConfig", ranks: int) -> float:
    from train.planning.peak import memory_parts

    return memory_parts(config, ranks, gpu=False).total


def _gpus(found: Prediction) -> str:
    return f"{found.ranks} x {_gigabytes(found.memory)}"


def _gigabytes(n_bytes: float) -> str:
    """Format a size in GB of 2^30 bytes."""
    size = n_bytes / 2**30
    return f"{size:,.0f} GB" if size >= 1 else f"{size:.2f} GB"


def _count(number: int) -> str:
    return f"{number / 1e9:.1f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table. Missing cells are shown as `-`."""
    full = [[*cells, *["-"] * (len(columns) - len(cells))] for cells in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [columns, ["---"] * len(columns), *full])


if __name__ == "__main__":
    sys.exit(main())
