"""The GEMMs of one expert. On x86 CPUs that are not Intel's they are oneDNN's in fp32, elsewhere torch.mm.

MKL, behind torch.mm, runs AVX2 code on processors that are not Intel's; oneDNN, which PyTorch otherwise keeps for lower
precisions, has code for AVX-512 on all of them. On Intel's both are as fast, but MKL writes where it is told to.
oneDNN makes code for each new shape, which takes milliseconds. So rows are padded with zeros to few different numbers,
and GEMMs too small to earn that back stay with torch.mm.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_ops: Any = torch.ops
silu_backward: Any = _ops.aten.silu_backward
"""(gradient, input) -> gradient."""

_LEAST_WEIGHTS = 1 << 16
_HAS_ONEDNN = (
    torch.backends.mkldnn.is_available()
    and hasattr(_ops.mkldnn, "_linear_pointwise")
    and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
)


def _is_intel() -> bool:
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


_MKL_IS_AS_FAST = _is_intel()


def uses_onednn(weights: Tensor) -> bool:
    """Whether GEMMs with these weights [F, D] are oneDNN's."""
    return not _MKL_IS_AS_FAST and can_use_onednn(weights)


def can_use_onednn(weights: Tensor) -> bool:
    """Whether oneDNN has a GEMM for these weights [F, D] that can earn its making; torch.backends.mkldnn.flags can
    forbid it."""
    return (
        _HAS_ONEDNN
        and weights.device.type == "cpu"
        and weights.dtype is torch.float32
        and weights.numel() >= _LEAST_WEIGHTS
        and torch._C._get_mkldnn_enabled()
    )


def padded(n_rows: int, weights: Tensor) -> int:
    """How many rows to compute for n_rows: under 1/32 more (at least to a multiple of 16), or no more with torch.mm."""
    if not uses_onednn(weights):
        return n_rows
    step = max(16, 1 << max(0, n_rows.bit_length() - 6))
    return -(-n_rows // step) * step


def onednn(x_NK: Tensor, w_MK: Tensor) -> Tensor:
    """x w^T, [N, M], of oneDNN whatever uses_onednn says."""
    return _ops.mkldnn._linear_pointwise(x_NK, w_MK, None, "none", [], "")


def rows_by_columns(x_ND: Tensor, w_FD: Tensor, out: Tensor | None = None) -> Tensor:
    """x w^T, [N, F]. torch.mm writes into out where it is given; oneDNN cannot, and out is left alone."""
    return onednn(x_ND, w_FD) if uses_onednn(w_FD) else torch.mm(x_ND, w_FD.t(), out=out)


def rows_by_rows(
    h_NF: Tensor, w_FD: Tensor, h2_NF: Tensor | None = None, w2_FD: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """h w, [N, D]; with a second pair, h w + h2 w2. out as for rows_by_columns."""
    if not uses_onednn(w_FD):
        y_ND = torch.mm(h_NF, w_FD, out=out)
        return y_ND if h2_NF is None or w2_FD is None else y_ND.addmm_(h2_NF, w2_FD)
    y_ND = onednn(h_NF, w_FD.t())
    if h2_NF is None or w2_FD is None:
        return y_ND
    return _ops.mkldnn._linear_pointwise.binary(h2_NF, y_ND, w2_FD.t(), None, "add")


def weight_gradient(h_NF: Tensor, x_ND: Tensor, out_FD: Tensor) -> None:
    """out = h^T x."""
    if uses_onednn(out_FD) and h_NF.shape[0]:
        out_FD.copy_(onednn(h_NF.t(), x_ND.t()))
    else:
        torch.mm(h_NF.t(), x_ND, out=out_FD)
