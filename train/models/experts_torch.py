"""Experts one after the other, on any device: one GEMM per expert and matrix, on views of the flat weights.

Shapes: T tokens, K experts a token, A = T*K assignments sorted by expert, D d_model, F ffn_hidden_size; N assignments
of one expert, with the rows of zeros that gemm.padded asks for.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from train.models.assignment import Assignment
from train.models.gemm import padded, rows_by_columns, rows_by_rows, weight_gradient
from train.models.glu import combine, glu, glu_backward


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

    What one expert computes is written to the same memory as the next one's (`_all`), which stays in the cache; and
    malloc would search long for sizes that always differ.
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
        rows, width = [padded(n, w1) for n in splits], w1.shape[0] // len(splits)
        x_all, y_all, act_all = (x_TD.new_empty(max(rows), m) for m in (x_TD.shape[1], x_TD.shape[1], width))
        if recompute:
            h_alls = ([h_all[:n] for n in rows] for h_all in (x_TD.new_empty(max(rows), width) for _ in range(2)))
        else:
            h_alls = (x_TD.new_empty(sum(rows), width).split(rows) for _ in range(2))
        kept: list[Tensor] = []
        parts = zip(*_rows(splits, assignment.token_A, weights_A), *h_alls, *_flat(splits, w1, v1, w2), strict=True)
        for token_N, weights_N, h1_NF, h2_NF, w1_FD, v1_FD, w2_FD in parts:
            n, n_padded = token_N.shape[0], h1_NF.shape[0]
            x_ND = _gather(x_TD, token_N, x_all[:n_padded])
            h1_NF = rows_by_columns(x_ND, w1_FD, out=h1_NF)
            h2_NF = rows_by_columns(x_ND, v1_FD, out=h2_NF)
            y_ND = rows_by_rows(glu(h1_NF, h2_NF, act_all[:n_padded]), w2_FD, out=y_all[:n_padded])[:n]
            y_TD.index_add_(0, token_N, y_ND.mul_(weights_N.unsqueeze(1)).to(sums))
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
        token_A, order_A, splits = ctx.assignment.token_A, ctx.assignment.order_A, ctx.splits
        sums = torch.promote_types(x_TD.dtype, torch.float32)
        dx_TD = torch.zeros_like(x_TD, dtype=sums) if needs_x else None
        dweights_A = torch.empty_like(weights_A)
        dw1, dv1, dw2 = (torch.empty_like(w) if need else None for w, need in zip((w1, v1, w2), needs, strict=True))
        most, width = max(padded(n, w1) for n in splits), w1.shape[0] // len(splits)
        x_all, dy_all, dx_all = (x_TD.new_empty(most, x_TD.shape[1]) for _ in range(3))
        dact_all, dh2_all, act_all = (x_TD.new_empty(most, width) for _ in range(3))
        h_alls = [] if kept else [x_TD.new_empty(most, width) for _ in range(2)]
        parts = zip(*_rows(splits, token_A, weights_A, dweights_A), *_flat(splits, w1, v1, w2), strict=True)
        gradients = zip(*_flat(splits, dw1, dv1, dw2), strict=True)
        for e, (part, (dw1_FD, dv1_FD, dw2_FD)) in enumerate(zip(parts, gradients, strict=True)):
            token_N, weights_N, dweights_N, w1_FD, v1_FD, w2_FD = part
            n, n_padded = token_N.shape[0], padded(token_N.shape[0], w1_FD)
            x_ND = x_all[:n_padded]
            if not kept or dw1 is not None or dv1 is not None:
                _gather(x_TD, token_N, x_ND)
            h1_NF, h2_NF = kept[2 * e : 2 * e + 2] or (
                rows_by_columns(x_ND, w_FD, out=h_all[:n_padded])
                for w_FD, h_all in zip((w1_FD, v1_FD), h_alls, strict=True)
            )
            dy_ND = _gather(dy_TD, token_N, dy_all[:n_padded])
            dact_NF = rows_by_columns(dy_ND, w2_FD, out=dact_all[:n_padded])
            padded_N = weights_N if n == n_padded else F.pad(weights_N, (0, n_padded - n))
            dh1_NF, dh2_NF, act_NF, products_N = glu_backward(
                dact_NF, h1_NF, h2_NF, padded_N, (dh2_all[:n_padded], act_all[:n_padded])
            )
            dweights_N.copy_(products_N[:n])
            if dw2_FD is not None:
                weight_gradient(act_NF, dy_ND, out_FD=dw2_FD)
            if dx_TD is not None:
                dx_ND = rows_by_rows(dh1_NF, w1_FD, dh2_NF, v1_FD, out=dx_all[:n_padded])
                dx_TD.index_add_(0, token_N, dx_ND[:n].to(sums))
            for dw_FD, dh_NF in ((dw1_FD, dh1_NF), (dv1_FD, dh2_NF)):
                if dw_FD is not None:
                    weight_gradient(dh_NF, x_ND, out_FD=dw_FD)
        dx = dx_TD.to(x_TD.dtype) if dx_TD is not None else None
        dweights_TK = None
        if needs_weights:
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
        for x_ND, y_NF, w_FD in zip(*_rows(self.splits, x_AD, y_AF), *_flat(self.splits, w), strict=True):
            y_NF.copy_(rows_by_columns(_pad(x_ND, w_FD), w_FD)[: y_NF.shape[0]])
        return y_AF

    def rows_by_rows(self, h_AF: Tensor, w: Tensor) -> Tensor:
        y_AD = h_AF.new_empty(h_AF.shape[0], w.shape[1])
        for h_NF, y_ND, w_FD in zip(*_rows(self.splits, h_AF, y_AD), *_flat(self.splits, w), strict=True):
            y_ND.copy_(rows_by_rows(_pad(h_NF, w_FD), w_FD)[: y_ND.shape[0]])
        return y_AD

    def weight_gradient(self, h_AF: Tensor, x_AD: Tensor) -> Tensor:
        dw = h_AF.new_empty(len(self.splits) * h_AF.shape[1], x_AD.shape[1])
        for h_NF, x_ND, dw_FD in zip(*_rows(self.splits, h_AF, x_AD), *_flat(self.splits, dw), strict=True):
            weight_gradient(_pad(h_NF, dw_FD), _pad(x_ND, dw_FD), out_FD=dw_FD)
        return dw


def _rows(splits: list[int], *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Of each tensor [A, ...], sorted by expert, the experts' parts."""
    return [tensor.split(splits) for tensor in tensors]


def _flat(splits: list[int], *weights: Tensor | None) -> list[Sequence[Any]]:
    """Of each tensor [E*F, D] the experts' [F, D]; of None as many."""
    return [[None] * len(splits) if w is None else w.unflatten(0, (len(splits), -1)).unbind() for w in weights]


def _pad(x_NM: Tensor, weights: Tensor) -> Tensor:
    """One expert's rows, then zeros up to the number of rows that its GEMMs want."""
    n = padded(x_NM.shape[0], weights)
    return x_NM if n == x_NM.shape[0] else F.pad(x_NM, (0, 0, 0, n - x_NM.shape[0]))


def _gather(x_TD: Tensor, token_N: Tensor, out_ND: Tensor) -> Tensor:
    """One expert's rows of x, then zeros."""
    n = token_N.shape[0]
    torch.index_select(x_TD, 0, token_N, out=out_ND[:n])
    if n < out_ND.shape[0]:
        out_ND[n:].zero_()
    return out_ND
