"""Times the forward and backward passes of one MoE layer with each of our backends, of transformers' DBRX layer, of a
dense layer, and of a baseline that computes only the GEMMs.

All variants run in turn in every round, on the same tokens, which are drawn again for each round. Ratios are computed
per round. On a CPU, the CPU time of a single thread is measured, because other programs hardly affect this time. On a
GPU, CUDA events are used.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Keep scripts/ off sys.path, because scripts/evaluate.py would shadow the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scripts.bench import common
from scripts.bench.moe_variants import Variant, build_variants

# On a CPU, a small layer in fp32; on a GPU, a layer with the full width of DBRX in bf16.
DEFAULTS = {
    "cpu": {"d_model": 512, "ffn_hidden_size": 896, "tokens": 2048, "dtype": "float32"},
    "cuda": {"d_model": 6144, "ffn_hidden_size": 10752, "tokens": 8192, "dtype": "bfloat16"},
}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = common.make_parser(__doc__, moe_num_experts=16, moe_top_k=4)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    for name in ("tokens", "d_model", "ffn_hidden_size"):
        what = f"default: {DEFAULTS['cpu'][name]} on a CPU, {DEFAULTS['cuda'][name]} on a GPU"
        parser.add_argument(f"--{name}", type=int, help=what)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--rounds", type=int, default=9, help="number of measured rounds, at least 7; default: 9")
    parser.add_argument("--warmup", type=int, default=3, help="warm-up rounds, which are not measured; default: 3")
    args = parser.parse_args(argv)
    for name, value in DEFAULTS[args.device].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.rounds < 7:
        parser.error(f"--rounds is {args.rounds}, but it must be at least 7 for a meaningful median")
    if args.moe_top_k > args.moe_num_experts:
        parser.error(f"--moe_top_k is {args.moe_top_k}, but there are only {args.moe_num_experts} experts")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("error: --device is cuda, but torch finds no GPU: use --device cpu", file=sys.stderr)
        return 2
    common.prepare_process(threads=1)
    torch.manual_seed(0)
    variants, notes = build_variants(args)
    times = measure(args, variants)
    saved = {name: saved_bytes(args, variant) for name, variant in variants.items() if not name.startswith("GEMMs")}
    report = common.description(args) | {"notes": notes, "sides": summarise(args, times, saved)}
    show(report)
    common.write_json(args.json, report)
    return 0


def measure(args: argparse.Namespace, variants: dict[str, Variant]) -> dict[str, list[float]]:
    """Return the seconds of each variant in each measured round."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number, order in enumerate(common.rounds(variants, args.warmup + args.rounds)):
        x, dy = tokens(args), tokens(args)
        for name in order:
            seconds = seconds_of(args.device, variants[name], x, dy)
            if number >= args.warmup:
                times[name].append(seconds)
    return times


def seconds_of(device: str, variant: Variant, x: Tensor, dy: Tensor) -> float:
    if device == "cpu":
        began = common.now(device)
        variant(x, dy)
        return common.now(device) - began
    cuda: Any = torch.cuda
    begin, end = (cuda.Event(enable_timing=True) for _ in range(2))
    cuda.synchronize()
    begin.record()
    variant(x, dy)
    end.record()
    cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def tokens(args: argparse.Namespace) -> Tensor:
    return torch.randn(args.tokens, args.d_model, device=args.device, dtype=getattr(torch, args.dtype))


def saved_bytes(args: argparse.Namespace, variant: Variant) -> int:
    """Return the bytes kept between forward and backward, without the weights. Each storage is counted once."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter) and not (tensor._is_view() and is_weight(tensor._base)):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def is_weight(tensor: Any) -> bool:
        return isinstance(tensor, torch.nn.Parameter)

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        variant(tokens(args), tokens(args))
    return sum(kept.values())


def summarise(
    args: argparse.Namespace, times: dict[str, list[float]], saved: dict[str, int]
) -> dict[str, dict[str, Any]]:
    """Return, for each variant, the medians of the times and of the ratios over the rounds."""
    flops = 18 * args.tokens * args.moe_top_k * args.d_model * args.ffn_hidden_size
    floors = common.floors_of(times, {"torch.mm": "GEMMs, torch.mm", "best GEMMs": "GEMMs"})
    rows = {}
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        row: dict[str, Any] = {"seconds": seconds, "median_s": middle, "min_s": min(seconds), "max_s": max(seconds)}
        row["tflop_per_s"] = flops / middle / 1e12
        for floor, best in floors.items():
            row[f"share of the floor, {floor}"] = common.ratio(best, seconds)
        for other in ("transformers", "MegaBlocks' own layer", "ours, torch"):
            if other in times:
                row[f"speed over {other}"] = common.ratio(times[other], seconds)
        if name in saved:
            row["saved_bytes"] = saved[name]
            if "transformers" in saved:
                row["saved, share of transformers"] = saved[name] / saved["transformers"]
        rows[name] = row
    return rows


def show(report: dict[str, Any]) -> None:
    settings = " ".join(f"{name}={value}" for name, value in report["settings"].items())
    threads = ", one thread" if report["settings"]["device"] == "cpu" else ""
    print(f"MoE layer, forward and backward: {report['hardware']}{threads}, torch {report['torch']}\n{settings}")
    common.show_table([cells(name, row) for name, row in report["sides"].items()])
    for note in report["notes"]:
        print(note)


def cells(name: str, row: dict[str, Any]) -> dict[str, str]:
    return {
        "variant": name,
        "ms": common.median(row["seconds"], digits=1, scale=1e3),
        "min-max": common.spread(row["seconds"], digits=1, scale=1e3),
        "TFLOP/s": f"{row['tflop_per_s']:.3g}",
        "x torch.mm": f"{row['share of the floor, torch.mm']:.2f}",
        "x best GEMMs": f"{row['share of the floor, best GEMMs']:.2f}",
        "x transformers": number_or_blank(row.get("speed over transformers"), "{:.2f}"),
        "saved MiB": number_or_blank(row.get("saved_bytes"), "{:.1f}", 1 / common.MIB),
        "saved, x transformers": number_or_blank(row.get("saved, share of transformers"), "{:.2f}"),
    }


def number_or_blank(value: float | None, form: str, scale: float = 1.0) -> str:
    return "" if value is None else form.format(value * scale)


if __name__ == "__main__":
    sys.exit(main())
