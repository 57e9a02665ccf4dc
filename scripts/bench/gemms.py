"""The available GEMM implementations. The fastest one is the baseline of a benchmark."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_ops: Any = torch.ops

GEMM = Callable[[Tensor, Tensor, Tensor], Any]
"""A GEMM is called with (a, b, out) and writes the product a @ b to out. oneDNN ignores out and allocates a new
tensor."""


def gemm_kinds(like: Tensor) -> dict[str, GEMM]:
    """The GEMM implementations for the device and dtype of `like`, by name."""
    kinds: dict[str, GEMM] = {"torch.mm": lambda a, b, out: torch.mm(a, b, out=out)}
    if like.device.type == "cpu" and like.dtype is torch.float32 and _has_onednn():
        kinds["oneDNN"] = lambda a, b, out: _ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")
    return kinds


def _has_onednn() -> bool:
    """Whether oneDNN's fp32 GEMM can be called: torch provides this GEMM only for its own compiler, and only on some
    processors."""
    built = torch.backends.mkldnn.is_available() and hasattr(_ops.mkldnn, "_linear_pointwise")
    return built and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
