"""Times the GEMMs of a training step without its other operations, and each group of operations in a full step."""

import argparse
from collections.abc import Callable, Collection
from typing import Any

import torch

from data.mds.row import IGNORED
from scripts.bench import common
from scripts.bench.gemms import GEMM, gemm_kinds
from scripts.bench.step_models import Batch
from train.models.config import ModelConfig
from train.models.precision import FORMATS, computed


def gemm_floors(
    config: ModelConfig, batch: Batch, args: argparse.Namespace, experts: Collection[str] = ("dense", "per expert")
) -> dict[str, Callable[[], float]]:
    """Return functions that run the GEMMs of one layer and of the head, and return seconds extrapolated to a full step.

    experts: "dense" is one GEMM over all assignments; "per expert" is one GEMM for each expert, each with its own
    matrices.
    """
    device = "cuda" if args.device == "gpu" else "cpu"
    dtype = FORMATS[computed(args.precision)].torch_dtype
    T, D, ffn = batch["input_ids"].numel(), config.d_model, config.ffn_config
    N, A, E = int((batch["labels"] != IGNORED).sum()), T * ffn.moe_top_k, ffn.moe_num_experts
    qkv = D + 2 * config.attn_config.kv_n_heads * config.head_dim
    others = [(T, D, qkv), (T, D, D), (T, D, E)]
    shapes_of = {"dense": [(A, D, ffn.ffn_hidden_size)] * 3, "per expert": [(A // E, D, ffn.ffn_hidden_size)] * 3 * E}
    floors = {}
    for kind, mm in gemm_kinds(torch.empty(0, device=device, dtype=dtype)).items():
        head = linear((N, D, config.vocab_size), device, dtype, mm)
        for name in experts:
            layer = [linear(shape, device, dtype, mm) for shape in others + shapes_of[name]]
            floors[f"GEMMs, {kind}, {name}"] = lambda layer=layer, head=head: (
                config.n_layers * timed(layer, args.device) + timed([head], args.device)
            )
    return floors


def linear(shape: tuple[int, int, int], device: str, dtype: torch.dtype, mm: GEMM) -> Callable[[], None]:
    """The three GEMMs of one weight matrix: the product with the input, and both gradients."""
    n, k, m = shape
    x, w, y = (torch.randn(s, device=device, dtype=dtype) for s in ((n, k), (m, k), (n, m)))
    out_y, out_x, out_w = torch.empty_like(y), torch.empty_like(x), torch.empty_like(w)

    def run() -> None:
        mm(x, w.t(), out_y)
        mm(y, w, out_x)
        mm(y.t(), x, out_w)

    return run


def timed(gemms: list[Callable[[], None]], device: str) -> float:
    start = common.now(device)
    for run in gemms:
        run()
    return common.now(device) - start


GROUPS = {
    "GEMMs": ("aten::mm", "aten::addmm"),
    "attention without projections": (
        "scaled_dot_product",
        "aten::bmm",
        "aten::baddbmm",
        "_softmax",
        "_Blocks",
    ),
    "custom autograd functions": ("_ExpertsGLU", "_ClipAndRotate"),
    "AdamW": ("_fused_adamw_",),
    "copies": ("copy_", "aten::cat"),
    "gathers, scatters, sorts": ("index", "gather", "scatter", "sort", "embedding", "topk"),
    "norms, exp, max, log": ("layer_norm", "logsumexp", "aten::exp", "aten::max", "aten::log"),
    "other elementwise": ("mul", "add", "silu", "clamp", "div", "sub", "neg", "sum", "fill", "zero", "pow"),
}


def profile(step: Callable[[], Any]) -> dict[str, float]:
    """Return the seconds of the fastest of three steps by group of operations. The seconds are self times (without
    nested operations), and include the overhead of the profiler."""
    tables = []
    for _ in range(3):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            step()
        seconds = dict.fromkeys([*GROUPS, "the rest"], 0.0)
        for event in profiler.key_averages():
            group = next((n for n, parts in GROUPS.items() if any(part in event.key for part in parts)), "the rest")
            if event.key.startswith("aten::add"):
                group = "GEMMs" if "addmm" in event.key else "other elementwise"
            seconds[group] += event.self_cpu_time_total / 1e6
        tables.append(seconds)
    return min(tables, key=lambda seconds: sum(seconds.values()))
