"""The Triton kernels that glu.py uses. They read each input once, write each output once, and compute in fp32 for every
dtype.

This module can only be imported if Triton is installed. With TRITON_INTERPRET=1, the kernels run without a GPU.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024
# triton.jit is typed as Any, because kernels are launched as kernel[grid](...), with plain numbers for their
# constexprs.
_jit: Any = triton.jit


@_jit
def _glu_kernel(h1, h2, act, numel, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = index < numel
    a = tl.load(h1 + index, mask=there).to(tl.float32)
    b = tl.load(h2 + index, mask=there).to(tl.float32)
    tl.store(act + index, (a * tl.sigmoid(a) * b).to(act.dtype.element_ty), mask=there)


@_jit
def _glu_backward_kernel(dact, h1, h2, weights, dh1, dh2, act, dweights, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    weight = tl.load(weights + row).to(tl.float32)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        index = row * width + column
        there = column < width
        d = tl.load(dact + index, mask=there, other=0.0).to(tl.float32)
        a = tl.load(h1 + index, mask=there, other=0.0).to(tl.float32)
        b = tl.load(h2 + index, mask=there, other=0.0).to(tl.float32)
        gate = tl.sigmoid(a)
        silu = a * gate
        total += d * silu * b
        d = d * weight
        tl.store(dh1 + index, (d * b * (gate + silu * (1 - gate))).to(dh1.dtype.element_ty), mask=there)
        tl.store(dh2 + index, (d * silu).to(dh2.dtype.element_ty), mask=there)
        tl.store(act + index, (silu * b * weight).to(act.dtype.element_ty), mask=there)
    tl.store(dweights + row, tl.sum(total).to(dweights.dtype.element_ty))


@_jit
def _combine_kernel(y, slots, weights, out, width, K: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = column < width
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for k in range(K):
        slot = tl.load(slots + token * K + k)
        part = tl.load(y + slot * width + column, mask=there).to(tl.float32)
        if WEIGHTED:
            part = part * tl.load(weights + token * K + k).to(tl.float32)
        total += part
    tl.store(out + token * width + column, total.to(out.dtype.element_ty), mask=there)


def fused_glu(h1_AF: Tensor, h2_AF: Tensor, act_AF: Tensor) -> None:
    """Compute the activation from h1 and h2, and write it to act."""
    if act_AF.numel():
        _glu_kernel[(triton.cdiv(act_AF.numel(), _BLOCK),)](h1_AF, h2_AF, act_AF, act_AF.numel(), BLOCK=_BLOCK)


def fused_glu_backward(
    dact_AF: Tensor,
    h1_AF: Tensor,
    h2_AF: Tensor,
    weights_A: Tensor,
    dh2_AF: Tensor,
    act_AF: Tensor,
    dweights_A: Tensor,
) -> None:
    """Compute the results of glu.glu_backward. dh1 overwrites dact; the other results are written to the last three
    arguments."""
    A, width = h1_AF.shape
    if A:
        _glu_backward_kernel[(A,)](
            dact_AF, h1_AF, h2_AF, weights_A, dact_AF, dh2_AF, act_AF, dweights_A, width, BLOCK=_BLOCK
        )


def fused_combine(y_AD: Tensor, slot_TK: Tensor, weights_TK: Tensor | None) -> Tensor:
    """Sum the rows of y for each token: [T, D]. weights_TK: weights of the sum, or None."""
    T, K = slot_TK.shape
    width = y_AD.shape[1]
    out_TD = y_AD.new_empty(T, width)
    if T:
        weights = slot_TK if weights_TK is None else weights_TK
        grid = (T, triton.cdiv(width, _BLOCK))
        _combine_kernel[grid](y_AD, slot_TK, weights, out_TD, width, K=K, WEIGHTED=weights_TK is not None, BLOCK=_BLOCK)
    return out_TD
