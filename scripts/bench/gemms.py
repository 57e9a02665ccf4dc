"""The available GEMM implementations, so that benches compare with the fastest."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_ops: Any = torch.ops

GEMM = Callable[[Tensor, Tensor, Tensor], Any]
"""(a, b, out): a b, written to out; oneDNN's makes a new tensor instead."""


def gemm_kinds(like: Tensor) -> dict[str, GEMM]:
    """By name, those for tensors on this device and in this dtype."""
    kinds: dict[str, GEMM] = {"torch.mm": lambda a, b, out: torch.mm(a, b, out=out)}
    if like.device.type == "cpu" and like.dtype is torch.float32 and _has_onednn():
        kinds["oneDNN"] = lambda a, b, out: _ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")
    return kinds


def _has_onednn() -> bool:
    """torch keeps oneDNN's fp32 GEMM for what its compiler makes, and for the processors that it is built for."""
    built = torch.backends.mkldnn.is_available() and hasattr(_ops.mkldnn, "_linear_pointwise")
    return built and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
