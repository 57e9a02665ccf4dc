"""oneDNN's GEMM, which torch keeps for lower precisions: for benches to measure against."""

from typing import Any

import torch
from torch import Tensor

_ops: Any = torch.ops
_AVAILABLE = (
    torch.backends.mkldnn.is_available()
    and hasattr(_ops.mkldnn, "_linear_pointwise")
    and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
)


def can_use_onednn(weights: Tensor) -> bool:
    return _AVAILABLE and weights.device.type == "cpu" and weights.dtype is torch.float32


def onednn(x_NK: Tensor, w_MK: Tensor) -> Tensor:
    """x w^T, [N, M]."""
    return _ops.mkldnn._linear_pointwise(x_NK, w_MK, None, "none", [], "")
