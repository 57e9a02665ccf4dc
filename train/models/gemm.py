"""The GEMMs of experts, linear layers and the head: gemm.c's in fp32 on x86 CPUs that have AVX-512 and are not Intel's,
where there was a C compiler, and torch.mm elsewhere.

MKL, behind torch.mm, runs AVX2 code on processors that are not Intel's. gemm.c has not yet been measured on Intel's.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from train.models import kernels_cpu

_ops: Any = torch.ops
silu_backward: Any = _ops.aten.silu_backward
"""(gradient, input) -> gradient."""

_LEAST = 32
"""Rows, columns and depth from which on gemm.c is used: smaller products are not worth copying their operands."""

# An operator, so that profilers and dispatch modes see it.
_library = torch.library.Library("dropless", "DEF")
_library.define("gemm(Tensor a, Tensor b, Tensor(a!) out, bool add) -> ()")
_library.impl("gemm", kernels_cpu.gemm, "CPU")
_gemm: Any = _ops.dropless.gemm.default


def _is_intel() -> bool:
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


PREFERS_KERNEL = not _is_intel()
"""Whether gemm.c, and attention.c with it, is used where it can be; set by benches and tests."""


def uses_kernels() -> bool:
    """Whether gemm.c and attention.c compute what they can."""
    return PREFERS_KERNEL and kernels_cpu.has_gemm()


def uses_kernel(weights: Tensor) -> bool:
    """Whether products with these weights [F, D], unless they are small, are gemm.c's."""
    on = uses_kernels() and "gemm.c" not in kernels_cpu.switched_off
    return on and kernels_cpu.is_plain(weights) and min(weights.shape) >= _LEAST


def mm(a_MK: Tensor, b_KN: Tensor, out: Tensor | None = None, add: bool = False) -> Tensor:
    """a b, written to out where it is given, or added to it. Without gradients: for autograd Functions to call."""
    out_MN = a_MK.new_empty(a_MK.shape[0], b_KN.shape[1]) if out is None else out
    by_rows = out_MN.stride(1) == 1 and out_MN.stride(0) >= out_MN.shape[1] >= _LEAST <= out_MN.shape[0]
    if by_rows and uses_kernel(b_KN) and all(1 in x.stride() for x in (a_MK, b_KN)):
        _gemm(a_MK, b_KN, out_MN, add)
    elif add:
        out_MN.addmm_(a_MK, b_KN)
    else:
        torch.mm(a_MK, b_KN, out=out_MN)
    return out_MN
