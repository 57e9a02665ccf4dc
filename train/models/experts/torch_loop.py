"""Experts one after the other, on any device: one GEMM per expert and matrix, on views of the flat weights.

Shapes: T tokens, K experts a token, A = T*K assignments sorted by expert, D d_model, F ffn_hidden_size; N assignments
of one expert.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from train.models.experts.assignment import Assignment
from train.models.experts.glu import combine, glu, glu_backward


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
        most, width = max(splits), w1.shape[0] // len(splits)
        x_all, y_all, act_all = (x_TD.new_empty(most, m) for m in (x_TD.shape[1], x_TD.shape[1], width))
        if recompute:
            h_alls = ([h_all[:n] for n in splits] for h_all in (x_TD.new_empty(most, width) for _ in range(2)))
        else:
            h_alls = (x_TD.new_empty(sum(splits), width).split(splits) for _ in range(2))
        kept: list[Tensor] = []
        parts = zip(*_rows(splits, assignment.token_A, weights_A), *h_alls, *_flat(splits, w1, v1, w2), strict=True)
        for token_N, weights_N, h1_NF, h2_NF, w1_FD, v1_FD, w2_FD in parts:
            n = token_N.shape[0]
            x_ND = torch.index_select(x_TD, 0, token_N, out=x_all[:n])
            torch.mm(x_ND, w1_FD.t(), out=h1_NF)
            torch.mm(x_ND, v1_FD.t(), out=h2_NF)
            y_ND = torch.mm(glu(h1_NF, h2_NF, act_all[:n]), w2_FD, out=y_all[:n])
            y_TD.index_add_(0, token_N, y_ND.mul_(weights_N.unsqueeze(1)).to(sums))
            if not recompute:
                kept += (h1_NF, h2_NF)
        ctx.save_for_backward(x_TD, weights_A, w1, v1, w2, *kept)
        ctx.assignment, ctx.splits, ctx.shape_TK = assignment, splits, weights_TK.shape
        return y_TD.to(x_TD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_TD, weights_A, w1, v1, w2, *kept = ctx.saved_tensors
        (dy_TD,) = grad_outputs
        needs_x, needs_weights, *needs = ctx.needs_input_grad[:5]
        token_A, order_A, splits = ctx.assignment.token_A, ctx.assignment.order_A, ctx.splits
        sums = torch.promote_types(x_TD.dtype, torch.float32)
        dx_TD = torch.zeros_like(x_TD, dtype=sums) if needs_x else None
        dweights_A = torch.empty_like(weights_A)
        dw1, dv1, dw2 = (torch.empty_like(w) if need else None for w, need in zip((w1, v1, w2), needs, strict=True))
        most, width = max(splits), w1.shape[0] // len(splits)
        x_all, dy_all, dx_all = (x_TD.new_empty(most, x_TD.shape[1]) for _ in range(3))
        dact_all, dh2_all, act_all = (x_TD.new_empty(most, width) for _ in range(3))
        h_alls = [] if kept else [x_TD.new_empty(most, width) for _ in range(2)]
        parts = zip(*_rows(splits, token_A, weights_A, dweights_A), *_flat(splits, w1, v1, w2), strict=True)
        gradients = zip(*_flat(splits, dw1, dv1, dw2), strict=True)
        for e, (part, (dw1_FD, dv1_FD, dw2_FD)) in enumerate(zip(parts, gradients, strict=True)):
            token_N, weights_N, dweights_N, w1_FD, v1_FD, w2_FD = part
            n = token_N.shape[0]
            x_ND = x_all[:n]
            if not kept or dw1 is not None or dv1 is not None:
                torch.index_select(x_TD, 0, token_N, out=x_ND)
            h1_NF, h2_NF = kept[2 * e : 2 * e + 2] or (
                torch.mm(x_ND, w_FD.t(), out=h_all[:n]) for w_FD, h_all in zip((w1_FD, v1_FD), h_alls, strict=True)
            )
            dy_ND = torch.index_select(dy_TD, 0, token_N, out=dy_all[:n])
            dact_NF = torch.mm(dy_ND, w2_FD.t(), out=dact_all[:n])
            dh1_NF, dh2_NF, act_NF, products_N = glu_backward(
                dact_NF, h1_NF, h2_NF, weights_N, (dh2_all[:n], act_all[:n])
            )
            dweights_N.copy_(products_N)
            if dw2_FD is not None:
                torch.mm(act_NF.t(), dy_ND, out=dw2_FD)
            if dx_TD is not None:
                dx_ND = torch.mm(dh1_NF, w1_FD, out=dx_all[:n]).addmm_(dh2_NF, v1_FD)
                dx_TD.index_add_(0, token_N, dx_ND.to(sums))
            for dw_FD, dh_NF in ((dw1_FD, dh1_NF), (dv1_FD, dh2_NF)):
                if dw_FD is not None:
                    torch.mm(dh_NF.t(), x_ND, out=dw_FD)
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
            torch.mm(x_ND, w_FD.t(), out=y_NF)
        return y_AF

    def rows_by_rows(self, h_AF: Tensor, w: Tensor) -> Tensor:
        y_AD = h_AF.new_empty(h_AF.shape[0], w.shape[1])
        for h_NF, y_ND, w_FD in zip(*_rows(self.splits, h_AF, y_AD), *_flat(self.splits, w), strict=True):
            torch.mm(h_NF, w_FD, out=y_ND)
        return y_AD

    def weight_gradient(self, h_AF: Tensor, x_AD: Tensor) -> Tensor:
        dw = h_AF.new_empty(len(self.splits) * h_AF.shape[1], x_AD.shape[1])
        for h_NF, x_ND, dw_FD in zip(*_rows(self.splits, h_AF, x_AD), *_flat(self.splits, dw), strict=True):
            torch.mm(h_NF.t(), x_ND, out=dw_FD)
        return dw


def _rows(splits: list[int], *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Of each tensor [A, ...], sorted by expert, the experts' parts."""
    return [tensor.split(splits) for tensor in tensors]


def _flat(splits: list[int], *weights: Tensor | None) -> list[Sequence[Any]]:
    """Of each tensor [E*F, D] the experts' [F, D]; of None as many."""
    return [[None] * len(splits) if w is None else w.unflatten(0, (len(splits), -1)).unbind() for w in weights]
