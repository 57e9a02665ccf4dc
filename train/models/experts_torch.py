"""Experts one after the other, on any device: one GEMM per expert and matrix, on views of the flat weights.

Shapes: T tokens, K experts a token, A = T*K assignments sorted by expert, D d_model, F ffn_hidden_size; N assignments
of one expert, with the rows of zeros that gemm.padded asks for.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from train.models.assignment import Assignment
from train.models.gemm import padded, rows_by_columns, rows_by_rows, silu_backward, weight_gradient
from train.models.glu import combine


def torch_experts(
    x_TD: Tensor, weights_TK: Tensor, w1: Tensor, v1: Tensor, w2: Tensor, assignment: Assignment, recompute: bool
) -> Tensor:
    # The one wait for the device: the experts' shares decide the sizes of the GEMMs.
    splits = assignment.counts_E.tolist()
    return _LoopedGLU.apply(x_TD, weights_TK, w1, v1, w2, assignment, splits, recompute)  # pyright: ignore[reportReturnType]


class _LoopedGLU(torch.autograd.Function):
    """sum over k of weight * w2_e^T (silu(w1_e x) * (v1_e x)).

    Saved for backward: x and the two pre-activations of each expert; with recompute x alone. The activation, the
    experts' outputs and the gathered x are not saved: a token's weight gets its gradient from the activation's.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        weights_TK: Tensor,
        w1: Tensor,
        v1: Tensor,
        w2: Tensor,
        assignment: Assignment,
        splits: list[int],
        recompute: bool,
    ) -> Tensor:
        weights_A = weights_TK.flatten()[assignment.order_A]
        sums = torch.promote_types(x_TD.dtype, torch.float32)
        y_TD = torch.zeros_like(x_TD, dtype=sums)
        kept: list[Tensor] = []
        for rows, flat in _segments(splits, w1.shape[0] // len(splits)):
            token_N, n = assignment.token_A[rows], rows.stop - rows.start
            x_ND = _gather(x_TD, token_N, w1[flat])
            h1_NF, h2_NF = rows_by_columns(x_ND, w1[flat]), rows_by_columns(x_ND, v1[flat])
            y_ND = rows_by_rows(F.silu(h1_NF).mul_(h2_NF), w2[flat])[:n]
            y_TD.index_add_(0, token_N, y_ND.mul_(weights_A[rows].unsqueeze(1)).to(sums))
            if not recompute:
                kept += (h1_NF, h2_NF)
        ctx.save_for_backward(x_TD, weights_A, w1, v1, w2, *kept)
        ctx.assignment, ctx.splits, ctx.shape_TK = assignment, splits, weights_TK.shape
        return y_TD.to(x_TD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, weights_A, w1, v1, w2, *kept = ctx.saved_tensors
        (dy_TD,) = grad_outputs
        needs_x, needs_weights, *needs = ctx.needs_input_grad[:5]
        token_A, order_A = ctx.assignment.token_A, ctx.assignment.order_A
        sums = torch.promote_types(x_TD.dtype, torch.float32)
        dx_TD = torch.zeros_like(x_TD, dtype=sums) if needs_x else None
        dweights_A = torch.empty_like(weights_A) if needs_weights else None
        dw1, dv1, dw2 = (torch.empty_like(w) if need else None for w, need in zip((w1, v1, w2), needs, strict=True))
        for e, (rows, flat) in enumerate(_segments(ctx.splits, w1.shape[0] // len(ctx.splits))):
            token_N, n, weights_N1 = token_A[rows], rows.stop - rows.start, weights_A[rows].unsqueeze(1)
            x_ND = _gather(x_TD, token_N, w1[flat]) if not kept or dw1 is not None or dv1 is not None else None
            if kept:
                h1_NF, h2_NF = kept[2 * e : 2 * e + 2]
            else:
                assert x_ND is not None
                h1_NF, h2_NF = rows_by_columns(x_ND, w1[flat]), rows_by_columns(x_ND, v1[flat])
            dy_ND = _gather(dy_TD, token_N, w1[flat])
            dact_NF = rows_by_columns(dy_ND, w2[flat])
            silu_NF = F.silu(h1_NF)
            if dw2 is not None or dweights_A is not None:
                act_NF = silu_NF * h2_NF
                if dweights_A is not None:
                    torch.sum(act_NF[:n] * dact_NF[:n], dim=1, out=dweights_A[rows])
                if dw2 is not None:
                    dy_ND[:n].mul_(weights_N1)
                    weight_gradient(act_NF, dy_ND, out_FD=dw2[flat])
            dact_NF[:n].mul_(weights_N1)
            dh2_NF = silu_NF.mul_(dact_NF)
            dh1_NF = silu_backward(dact_NF.mul_(h2_NF), h1_NF)
            if dx_TD is not None:
                dx_TD.index_add_(0, token_N, rows_by_rows(dh1_NF, w1[flat], dh2_NF, v1[flat])[:n].to(sums))
            for dw, dh_NF in ((dw1, dh1_NF), (dv1, dh2_NF)):
                if dw is not None:
                    assert x_ND is not None
                    weight_gradient(dh_NF, x_ND, out_FD=dw[flat])
        dx = dx_TD.to(x_TD.dtype) if dx_TD is not None else None
        dweights_TK = None
        if dweights_A is not None:
            dweights_TK = torch.empty_like(dweights_A).index_copy_(0, order_A, dweights_A).view(ctx.shape_TK)
        return dx, dweights_TK, dw1, dv1, dw2, None, None, None


class Looped:
    """The GEMMs of grouped.Grouped one expert after the other; what has no function of its own above runs on them."""

    def __init__(self, assignment: Assignment) -> None:
        self.token_A, self.order_A, self.slot_TK = assignment.token_A, assignment.order_A, assignment.slot_TK
        self.splits = assignment.counts_E.tolist()

    def gather(self, x_TD: Tensor) -> Tensor:
        return x_TD.index_select(0, self.token_A)

    def combine(self, y_AD: Tensor, weights_TK: Tensor | None) -> Tensor:
        return combine(y_AD, self.slot_TK, weights_TK)

    def rows_by_columns(self, x_AD: Tensor, w: Tensor) -> Tensor:
        y_AF = x_AD.new_empty(x_AD.shape[0], w.shape[0] // len(self.splits))
        for rows, flat in _segments(self.splits, y_AF.shape[1]):
            y_AF[rows] = rows_by_columns(_pad(x_AD[rows], w[flat]), w[flat])[: rows.stop - rows.start]
        return y_AF

    def rows_by_rows(self, h_AF: Tensor, w: Tensor) -> Tensor:
        y_AD = h_AF.new_empty(h_AF.shape[0], w.shape[1])
        for rows, flat in _segments(self.splits, h_AF.shape[1]):
            y_AD[rows] = rows_by_rows(_pad(h_AF[rows], w[flat]), w[flat])[: rows.stop - rows.start]
        return y_AD

    def weight_gradient(self, h_AF: Tensor, x_AD: Tensor) -> Tensor:
        dw = h_AF.new_empty(len(self.splits) * h_AF.shape[1], x_AD.shape[1])
        for rows, flat in _segments(self.splits, h_AF.shape[1]):
            weight_gradient(_pad(h_AF[rows], dw[flat]), _pad(x_AD[rows], dw[flat]), out_FD=dw[flat])
        return dw


def _segments(splits: list[int], width: int) -> list[tuple[slice, slice]]:
    """For each expert its slice of the sorted assignments and its slice of the flat weights."""
    segments, start = [], 0
    for expert, count in enumerate(splits):
        segments.append((slice(start, start + count), slice(expert * width, (expert + 1) * width)))
        start += count
    return segments


def _pad(x_NM: Tensor, weights: Tensor) -> Tensor:
    """One expert's rows, then zeros up to the number of rows that its GEMMs want."""
    n = padded(x_NM.shape[0], weights)
    return x_NM if n == x_NM.shape[0] else F.pad(x_NM, (0, 0, 0, n - x_NM.shape[0]))


def _gather(x_TD: Tensor, token_N: Tensor, weights: Tensor) -> Tensor:
    """One expert's rows of x, then zeros up to the number of rows that its GEMMs want."""
    n = token_N.shape[0]
    x_ND = x_TD.new_empty(padded(n, weights), x_TD.shape[1])
    torch.index_select(x_TD, 0, token_N, out=x_ND[:n])
    x_ND[n:].zero_()
    return x_ND
