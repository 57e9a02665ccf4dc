"""Experts computed with torch's grouped GEMM, which has been public since torch 2.10. In earlier versions, the function
is called torch._grouped_mm."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from train.models.experts.assignment import Assignment
from train.models.experts.glu import combine
from train.models.experts.grouped import grouped_glu

_grouped_mm: Callable[..., Tensor] | None = getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)


def why_not_grouped_mm(device: torch.device, dtype: torch.dtype | None) -> str | None:
    """The reason why the grouped GEMM cannot be used, or None."""
    if _grouped_mm is None:
        return f"this torch ({torch.__version__}) has no grouped GEMM; install torch 2.10 or newer"
    if dtype not in (None, torch.bfloat16, torch.float16, torch.float32):
        return f"torch's grouped GEMM does not support {dtype}"
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) < (8, 0):
            return "torch's grouped GEMM requires a GPU with compute capability 8.0 or higher"
        if dtype not in (None, torch.bfloat16):
            return f"torch's grouped GEMM on a GPU supports only bfloat16, not {dtype}"
    return None


def grouped_mm_experts(
    x_TD: Tensor, weights_TK: Tensor, w1: Tensor, v1: Tensor, w2: Tensor, assignment: Assignment, recompute: bool
) -> Tensor:
    return grouped_glu(x_TD, weights_TK, w1, v1, w2, TorchGrouped(assignment), recompute)


class TorchGrouped:
    """Implements Grouped. No device synchronization is needed, because the kernel reads the end of each expert's tokens
    from device memory."""

    def __init__(self, assignment: Assignment) -> None:
        self.token_A, self.order_A, self.slot_TK = assignment.token_A, assignment.order_A, assignment.slot_TK
        self.n_experts = assignment.counts_E.shape[0]
        self.ends_E = assignment.counts_E.cumsum(0, dtype=torch.int32)

    def gather(self, x_TD: Tensor) -> Tensor:
        return x_TD.index_select(0, self.token_A)

    def combine(self, y_AD: Tensor, weights_TK: Tensor | None) -> Tensor:
        return combine(y_AD, self.slot_TK, weights_TK)

    def rows_by_columns(self, x_AD: Tensor, w: Tensor) -> Tensor:
        return self._mm(x_AD, w.unflatten(0, (self.n_experts, -1)).transpose(1, 2))

    def rows_by_rows(self, h_AF: Tensor, w: Tensor) -> Tensor:
        return self._mm(h_AF, w.unflatten(0, (self.n_experts, -1)))

    def weight_gradient(self, h_AF: Tensor, x_AD: Tensor) -> Tensor:
        return self._mm(h_AF.t(), x_AD).flatten(0, 1)

    def _mm(self, a: Tensor, b: Tensor) -> Tensor:
        assert _grouped_mm is not None, "why_not_grouped_mm checks this"
        return _grouped_mm(a, b, offs=self.ends_E)
