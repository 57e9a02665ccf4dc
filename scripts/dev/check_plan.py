"""Compares planned and simulated peak memory, traffic and FLOPs on random configurations."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.config.schema import TrainConfig

BASE = ROOT / "yamls" / "finetune" / "dbrx.yaml"
BOUND = 0.05
"""Largest allowed relative difference between the planned and the simulated peak."""
DRAWS = 12
POLICIES = ("none", "block", "selective")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    parser.add_argument("--draws", type=int, default=DRAWS, help=f"number of configurations (default: {DRAWS})")
    parser.add_argument("--json", type=Path, help="also write the rows of the table to this file")
    args = parser.parse_args(argv)

    from rich.console import Console
    from rich.table import Table

    rows = []
    for number, (overrides, ranks) in enumerate(draw(args.seed, args.draws)):
        rows.append(compare(overrides, ranks))
        print(f"{number + 1} of {args.draws}: {rows[-1]['difference']:+.2%}", file=sys.stderr)
    print(f"seed {args.seed}: peak memory per rank, planned (without the reserve) and simulated")
    table = Table()
    for column in ("configuration", "ranks", "planned GB", "simulated GB", "difference", "peak in", "traffic", "FLOPs"):
        table.add_column(column, justify="left" if column in ("configuration", "peak in") else "right")
    for row in rows:
        table.add_row(
            row["configuration"],
            f"{row['ranks']}",
            *(f"{row[name] / 1e9:,.3f}" for name in ("planned", "simulated")),
            f"{row['difference']:+.2%}",
            row["phase"],
            *(f"{row[name]:+.2%}" for name in ("traffic", "flops")),
        )
    Console(width=None if sys.stdout.isatty() else 170).print(table)
    worst = max((row["difference"] for row in rows), key=abs)
    print(f"largest difference of the peak memory:  {worst:+.2%} (bound: {BOUND:.0%})")
    if args.json is not None:
        args.json.write_text(json.dumps({"seed": args.seed, "worst": worst, "rows": rows}, indent=1) + "\n")
    return int(abs(worst) > BOUND)


def draw(seed: int, draws: int) -> Iterator[tuple[list[str], int]]:
    """Yield overrides of BASE and a number of ranks. Any 12 consecutive draws include every recompute policy, adapters,
    both sharding strategies, expert parallelism, 1 rank, 64 ranks, the 132B model and a small model."""
    rng = random.Random(seed)
    for number in range(draws):
        preset = ("132b", "tiny", "9b", "18b", "35b", "73b")[number % 6]
        ranks = (64, 1, 8, 4, 16, 32)[number % 6] if number < 6 else rng.choice((1, 2, 4, 8, 16, 32, 64))
        policy = POLICIES[(number + seed) % 3]
        length = rng.choice((2048, 4096, 8192)) if preset != "tiny" else rng.choice((1024, 2048, 4096))
        rows = rng.choice((1, 1, 2)) * rng.choice((1, 2))
        overrides = [
            f"model.preset={preset}",
            f"max_seq_len={length}",
            f"model.max_seq_len={max(length, 32768)}",
            f"global_train_batch_size={ranks * rows}",
            f"device_train_microbatch_size={rng.choice((1, rows))}",
            f"optimizer.name={rng.choice(('decoupled_lionw', 'adamw', 'decoupled_adamw'))}",
            f"model.ffn_config.moe_recompute={str(rng.random() < 0.3).lower()}",
            # A simulation takes longer with more layers, but its temporary memory hardly changes.
            f"model.n_layers={rng.choice((4, 8, 12))}" if preset in ("35b", "73b") else "model.name=dbrx",
        ]
        replicas = rng.choice((1, 1, 2)) if ranks > 1 else 1
        degrees = [degree for degree in (1, 2, 4, 8) if ranks // replicas % degree == 0]
        degree = max(degrees) if number % 6 == 2 and ranks > 1 else rng.choice(degrees)
        fsdp = f"activation_checkpointing: {policy}, expert_parallel_degree: {degree}"
        if replicas > 1:
            fsdp += f", sharding_strategy: HYBRID_SHARD, data_parallel_replicate_degree: {replicas}"
        overrides.append(f"fsdp_config={{{fsdp}}}")
        if number % 4 == 3:
            targets = rng.choice(("attn, experts", "attn, experts", "experts", "attn"))
            rest = f"base_dtype: {rng.choice(('bf16', 'bf16', 'fp32'))}, per_expert: {str(rng.random() < 0.3).lower()}"
            r = rng.choice((8, 16, 64)) if preset != "tiny" else 8
            overrides.append(f"lora={{r: {r}, alpha: 32, target_modules: [{targets}], {rest}}}")
        yield overrides, ranks


def compare(overrides: list[str], ranks: int) -> dict[str, Any]:
    from train.config.load import read_config
    from train.planning.peak import memory_parts
    from train.planning.traffic import traffic
    from train.simulation.simulate import simulate

    config = read_config(str(BASE), overrides)
    simulation = simulate(config, ranks)
    planned, simulated = memory_parts(config, ranks, gpu=True).allocated, simulation.peak.peak
    sent, found = Counter[str](), Counter[str]()
    for each in traffic(config, ranks):
        sent[each.kind] += each.n_bytes  # pyright: ignore[reportArgumentType]
    for each, n_bytes in simulation.traffic.items():
        found[each.kind] += n_bytes
    return {
        "configuration": _described(config),
        "overrides": overrides,
        "ranks": ranks,
        "planned": planned,
        "simulated": simulated,
        "difference": planned / simulated - 1,
        "phase": simulation.peak.name,
        "traffic": sent.total() / found.total() - 1 if found.total() > 1e6 else 0.0,
        "flops": _planned_flops(config, ranks) / simulation.flops - 1,
    }


def _planned_flops(config: "TrainConfig", ranks: int) -> float:
    from train.planning.cluster.step_time import run_flops

    tokens = config.global_train_batch_size // ranks * config.max_seq_len
    return float(sum(flops.total for flops in run_flops(config)) * tokens)


def _described(config: "TrainConfig") -> str:
    fsdp, lora, ffn = config.fsdp_config, config.lora, config.model.ffn_config
    assert fsdp is not None
    parts = [
        f"{config.model.preset}, {config.model.n_layers} layers, {config.max_seq_len}",
        f"{config.device_train_microbatch_size} of {config.global_train_batch_size} rows",
        str(fsdp.activation_checkpointing) + (" + moe_recompute" if ffn.moe_recompute else ""),
        f"ep {fsdp.expert_parallel_degree}" if fsdp.expert_parallel_degree > 1 else "",
        f"{fsdp.data_parallel_replicate_degree} replicas" if fsdp.data_parallel_replicate_degree else "",
        config.optimizer.name,
        f"LoRA {lora.r} {lora.base_dtype}{' per expert' if lora.per_expert else ''}" if lora is not None else "",
    ]
    return ", ".join(part for part in parts if part)


if __name__ == "__main__":
    sys.exit(main())
