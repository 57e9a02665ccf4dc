"""Times one MoE layer, forward and backward: our backends, transformers' DBRX layer, a dense layer, and the bare GEMMs.

All sides run in turn in every round, on the same fresh tokens, and ratios are taken within a round. On a CPU one thread
computes and its own CPU time is measured, which other programs on the machine hardly change; on a GPU, events.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[1]
# On a CPU a small layer in fp32; on a GPU the true width of DBRX in bf16.
DEFAULTS = {
    "cpu": {"d_model": 512, "ffn_hidden_size": 896, "tokens": 2048, "dtype": "float32"},
    "cuda": {"d_model": 6144, "ffn_hidden_size": 10752, "tokens": 8192, "dtype": "bfloat16"},
}
Side = Callable[["torch.Tensor", "torch.Tensor"], Any]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--tokens", type=int, help="default: 2048 on a CPU, 8192 on a GPU")
    parser.add_argument("--d_model", type=int, help="default: 512 on a CPU, 6144 on a GPU")
    parser.add_argument("--ffn_hidden_size", type=int, help="default: 896 on a CPU, 10752 on a GPU")
    parser.add_argument("--moe_num_experts", type=int, default=16, help="default: 16")
    parser.add_argument("--moe_top_k", type=int, default=4, help="default: 4")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--rounds", type=int, default=9, help="at least 7; default: 9")
    parser.add_argument("--warmup", type=int, default=3, help="rounds before those that count; default: 3")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    args = parser.parse_args(argv)
    for name, value in DEFAULTS[args.device].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.rounds < 7:
        parser.error(f"--rounds is {args.rounds}, but a median of fewer than 7 says little")
    if args.moe_top_k > args.moe_num_experts:
        parser.error(f"--moe_top_k is {args.moe_top_k}, but there are only {args.moe_num_experts} experts")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        print("error: --device is cuda, but torch sees no GPU", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.device == "cpu":
        from train.hardware.allocator import keep_freed_memory

        # As train/run/trainer.py does; it serves all sides.
        keep_freed_memory()
    sides, notes = build_sides(args)
    times = measure(args, sides)
    saved = {name: saved_bytes(args, side) for name, side in sides.items() if not name.startswith("GEMMs")}
    report = summarise(args, times, saved, notes)
    show(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def build_sides(args: argparse.Namespace) -> tuple[dict[str, Side], list[str]]:
    """What is compared, all with the same weights, and what could not be."""
    import torch

    from train.models.experts.experts import MOE_IMPLS, resolve_moe_impl

    sides: dict[str, Side] = {}
    notes: list[str] = []
    dtype = getattr(torch, args.dtype)
    reference = our_layer(args, "torch")
    for param in reference.parameters():
        torch.nn.init.normal_(param, std=0.02)
    weights = reference.state_dict()
    for moe_impl in MOE_IMPLS:
        try:
            resolve_moe_impl(moe_impl, args.device, dtype)
        except ValueError as error:
            notes.append(f"not measured: {error}")
            continue
        for recompute in (False, True):
            layer = our_layer(args, moe_impl, recompute)
            layer.load_state_dict(weights, assign=True)
            sides[f"ours, {moe_impl}" + ", recompute" * recompute] = layer_side(layer)
    sides["ours, torch"] = layer_side(reference)
    for part, experts in ((1 / 2, "half of all tokens to one expert"), (1.0, "all tokens to one expert")):
        sides[f"ours, torch, {experts}"] = skewed_side(args, reference, part)
    add_transformers(args, sides, notes, weights)
    add_megablocks(args, sides, notes, weights)
    sides["dense layer of equal active FLOPs"] = dense_side(args)
    add_gemms(args, sides)
    return sides, notes


def our_layer(args: argparse.Namespace, moe_impl: str, recompute: bool = False) -> Any:
    import torch

    from train.models.config import FFNConfig, ModelConfig
    from train.models.moe import MoE

    ffn = FFNConfig(
        ffn_hidden_size=args.ffn_hidden_size,
        moe_num_experts=args.moe_num_experts,
        moe_top_k=args.moe_top_k,
        moe_impl=moe_impl,  # type: ignore[arg-type]
        moe_recompute=recompute,
    )
    heads = max(8, args.d_model // 128)
    with torch.device(args.device):
        layer = MoE(ModelConfig(d_model=args.d_model, n_heads=heads, ffn_config=ffn))
    return layer.to(getattr(torch, args.dtype))


def layer_side(layer: Any, batched: bool = False) -> Side:
    """Forward and backward of a module whose first result is [T, D] (batched: [1, T, D])."""

    def side(x: "torch.Tensor", dy: "torch.Tensor") -> Any:
        for param in layer.parameters():
            param.grad = None
        x = x.detach().requires_grad_()
        y = layer(x.unsqueeze(0) if batched else x)
        y = y if hasattr(y, "backward") else y[0]
        y.reshape(dy.shape).backward(dy)
        return y

    return side


def skewed_side(args: argparse.Namespace, layer: Any, part: float) -> Side:
    """The first expert is made the choice of a part of the tokens, whose other choices stay as random as before.

    By logits that leave the others' weights small but normal numbers: Intel's CPUs compute with denormals 100 times
    more slowly, and no router gives them.
    """
    import torch

    tokens = torch.arange(args.tokens, device=args.device) < part * args.tokens

    def push(module: Any, inputs: Any, logits: "torch.Tensor") -> "torch.Tensor":
        logits = logits.clone()
        logits[:, 0] = torch.where(tokens, 20.0, -20.0).to(logits.dtype)
        return logits

    run = layer_side(layer)

    def side(x: "torch.Tensor", dy: "torch.Tensor") -> Any:
        with_hook = layer.router.layer.register_forward_hook(push)
        try:
            return run(x, dy)
        finally:
            with_hook.remove()

    return side


def add_transformers(args: argparse.Namespace, sides: dict[str, Side], notes: list[str], weights: dict) -> None:
    import torch

    try:
        import transformers
        from transformers.models.dbrx.modeling_dbrx import DbrxFFN
    except ImportError as error:
        notes.append(f"not measured: transformers' layer ({error})")
        return
    ffn_config: Any = {
        "ffn_hidden_size": args.ffn_hidden_size,
        "moe_num_experts": args.moe_num_experts,
        "moe_top_k": args.moe_top_k,
        "moe_normalize_expert_weights": 1.0,
    }
    with torch.device(args.device):
        layer = DbrxFFN(transformers.DbrxConfig(d_model=args.d_model, ffn_config=ffn_config))
    layer.to(getattr(torch, args.dtype)).load_state_dict(weights, assign=True)
    sides["transformers"] = layer_side(layer, batched=True)
    notes.append(f"transformers {transformers.__version__}")


def add_megablocks(args: argparse.Namespace, sides: dict[str, Side], notes: list[str], weights: dict) -> None:
    """MegaBlocks' own layer, with its router."""
    import torch

    try:
        from megablocks.layers.arguments import Arguments  # pyright: ignore[reportMissingImports]
        from megablocks.layers.dmoe import dMoE  # pyright: ignore[reportMissingImports]

        layer = dMoE(
            Arguments(
                hidden_size=args.d_model,
                ffn_hidden_size=args.ffn_hidden_size,
                bias=False,
                return_bias=False,
                activation_fn=torch.nn.functional.silu,
                moe_num_experts=args.moe_num_experts,
                moe_top_k=args.moe_top_k,
                moe_normalize_expert_weights=1,
                moe_loss_weight=0.0,
                memory_optimized_mlp=True,
                mlp_type="glu",
                mlp_impl="grouped",
                fp16=False,
                bf16=args.dtype == "bfloat16",
                device=torch.device(args.device),
            )
        )
        layer.load_state_dict(weights, assign=True)
    except Exception as error:
        notes.append(f"not measured: MegaBlocks' own layer ({type(error).__name__}: {error})")
        return
    run = layer_side(layer, batched=True)

    def side(x: "torch.Tensor", dy: "torch.Tensor") -> Any:
        from megablocks.layers.moe import clear_load_balancing_loss  # pyright: ignore[reportMissingImports]

        clear_load_balancing_loss()
        return run(x, dy)

    sides["MegaBlocks' own layer"] = side


def dense_side(args: argparse.Namespace) -> Side:
    """A GLU as wide as the experts of one token together."""
    import torch

    class DenseGLU(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            D, width = args.d_model, args.moe_top_k * args.ffn_hidden_size
            self.w1, self.v1 = (torch.nn.Linear(D, width, bias=False) for _ in range(2))
            self.w2 = torch.nn.Linear(width, D, bias=False)

        def forward(self, x: "torch.Tensor") -> "torch.Tensor":
            return self.w2(torch.nn.functional.silu(self.w1(x)) * self.v1(x))

    with torch.device(args.device):
        layer = DenseGLU()
    return layer_side(layer.to(getattr(torch, args.dtype)))


def add_gemms(args: argparse.Namespace, sides: dict[str, Side]) -> None:
    """The nine GEMMs of a layer and nothing else: as if there were one expert, and with equal shares for each."""
    import torch

    from train.gemms import gemm_kinds

    A, D, F = args.tokens * args.moe_top_k, args.d_model, args.ffn_hidden_size
    made: Any = {"device": args.device, "dtype": getattr(torch, args.dtype)}
    x, h, w = torch.randn(A, D, **made), torch.randn(A, F, **made), torch.randn(args.moe_num_experts * F, D, **made)
    out_F, out_D, out_w = torch.empty_like(h), torch.empty_like(x), torch.empty_like(w)

    def by(mm: Callable[..., Any], n_experts: int) -> Side:
        def side(*inputs: Any) -> None:
            rows = A // n_experts
            for e in range(n_experts):
                part, flat = slice(e * rows, (e + 1) * rows), slice(e * F, (e + 1) * F)
                for _matrix in range(3):
                    mm(x[part], w[flat].t(), out_F[part])
                    mm(h[part], w[flat], out_D[part])
                    mm(h[part].t(), x[part], out_w[flat])

        return side

    for n_experts, what in ((1, "dense"), (args.moe_num_experts, "one expert after the other")):
        for kind, mm in gemm_kinds(w).items():
            sides[f"GEMMs, {kind}, {what}"] = by(mm, n_experts)


def measure(args: argparse.Namespace, sides: dict[str, Side]) -> dict[str, list[float]]:
    """Seconds of each side in each round; the sides' order turns, so that none always follows the same one."""
    import torch

    times: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    cuda: Any = torch.cuda
    for number in range(args.warmup + args.rounds):
        x, dy = tokens(args), tokens(args)
        start = number % len(names)
        for name in names[start:] + names[:start]:
            if args.device == "cuda":
                begin, end = (cuda.Event(enable_timing=True) for _ in range(2))
                cuda.synchronize()
                begin.record()
                sides[name](x, dy)
                end.record()
                cuda.synchronize()
                seconds = begin.elapsed_time(end) / 1e3
            else:
                began = time.process_time()
                sides[name](x, dy)
                seconds = time.process_time() - began
            if number >= args.warmup:
                times[name].append(seconds)
    return times


def tokens(args: argparse.Namespace) -> "torch.Tensor":
    import torch

    return torch.randn(args.tokens, args.d_model, device=args.device, dtype=getattr(torch, args.dtype))


def saved_bytes(args: argparse.Namespace, side: Side) -> int:
    """What is kept between forward and backward: each storage once, the weights not counted."""
    import torch

    kept: dict[int, int] = {}

    def keep(tensor: "torch.Tensor") -> "torch.Tensor":
        if not isinstance(tensor, torch.nn.Parameter) and not (tensor._is_view() and is_weight(tensor._base)):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def is_weight(tensor: Any) -> bool:
        return isinstance(tensor, torch.nn.Parameter)

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        side(tokens(args), tokens(args))
    return sum(kept.values())


def summarise(
    args: argparse.Namespace, times: dict[str, list[float]], saved: dict[str, int], notes: list[str]
) -> dict[str, Any]:
    """Medians over rounds, and medians of each round's ratios."""
    import torch

    flops = 18 * args.tokens * args.moe_top_k * args.d_model * args.ffn_hidden_size
    floors = {
        "torch.mm": [name for name in times if name.startswith("GEMMs, torch.mm")],
        "best GEMMs": [name for name in times if name.startswith("GEMMs")],
    }
    per_round = {
        floor: [min(row) for row in zip(*(times[n] for n in names), strict=True)] for floor, names in floors.items()
    }
    rows = {}
    for name, seconds in times.items():
        row: dict[str, Any] = {
            "seconds": seconds,
            "median_s": statistics.median(seconds),
            "min_s": min(seconds),
            "max_s": max(seconds),
            "tflop_per_s": flops / statistics.median(seconds) / 1e12,
        }
        for floor, best in per_round.items():
            row[f"share of the floor, {floor}"] = ratio(best, seconds)
        for other in ("transformers", "MegaBlocks' own layer", "ours, torch"):
            if other in times:
                row[f"speed over {other}"] = ratio(times[other], seconds)
        if name in saved:
            row["saved_bytes"] = saved[name]
            if "transformers" in saved:
                row["saved, share of transformers"] = saved[name] / saved["transformers"]
        rows[name] = row
    hardware = torch.cuda.get_device_name() if args.device == "cuda" else f"{cpu_name()}, one thread"
    settings = {name: value for name, value in vars(args).items() if name != "json"}
    return {"settings": settings, "hardware": hardware, "torch": torch.__version__, "notes": notes, "sides": rows}


def ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    settings = " ".join(f"{name}={value}" for name, value in report["settings"].items())
    table = Table(title=f"MoE layer, forward and backward: {report['hardware']}, torch {report['torch']}\n{settings}")
    columns = (
        "ms",
        "min-max",
        "TFLOP/s",
        "of torch.mm's floor",
        "of the best GEMMs",
        "x transformers",
        "saved MiB",
        "of transformers",
    )
    table.add_column("side")
    for column in columns:
        table.add_column(column, justify="right")
    for name, row in report["sides"].items():
        table.add_row(
            name,
            f"{row['median_s'] * 1e3:.1f}",
            f"{row['min_s'] * 1e3:.1f}-{row['max_s'] * 1e3:.1f}",
            f"{row['tflop_per_s']:.3g}",
            f"{row['share of the floor, torch.mm']:.2f}",
            f"{row['share of the floor, best GEMMs']:.2f}",
            told(row.get("speed over transformers"), "{:.2f}"),
            told(row.get("saved_bytes"), "{:.1f}", 2**-20),
            told(row.get("saved, share of transformers"), "{:.2f}"),
        )
    console = Console(width=max(150, Console().width))
    console.print(table)
    for note in report["notes"]:
        console.print(note, markup=False, highlight=False)


def told(value: float | None, form: str, scale: float = 1.0) -> str:
    return "" if value is None else form.format(value * scale)


if __name__ == "__main__":
    sys.exit(main())
