"""Experts all at once, for libraries with grouped GEMMs: what to compute and to keep is here, the GEMMs are theirs.

Shapes: T tokens, K experts a token, A = T*K assignments sorted by expert, D d_model, E experts, F ffn_hidden_size.
"""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from train.models.experts.glu import glu, glu_backward


class Grouped(Protocol):
    """The GEMMs of one layer's experts, and the way of the tokens to them and back."""

    order_A: Tensor
    """Where each sorted assignment stands in [T, K] read row by row."""

    def gather(self, x_TD: Tensor) -> Tensor:
        """[A, D]: the token of each assignment."""
        ...

    def combine(self, y_AD: Tensor, weights_TK: Tensor | None) -> Tensor:
        """[T, D]: the sum over each token's assignments, weighted where there are weights."""
        ...

    def rows_by_columns(self, x_AD: Tensor, w: Tensor) -> Tensor:
        """[A, F]: x w_e^T."""
        ...

    def rows_by_rows(self, h_AF: Tensor, w: Tensor) -> Tensor:
        """[A, D]: h w_e."""
        ...

    def weight_gradient(self, h_AF: Tensor, x_AD: Tensor) -> Tensor:
        """[E*F, D]: h_e^T x_e, zero for an expert without tokens."""
        ...


def grouped_glu(
    x_TD: Tensor, weights_TK: Tensor, w1: Tensor, v1: Tensor, w2: Tensor, grouped: Grouped, recompute: bool
) -> Tensor:
    if not x_TD.shape[0]:
        # Kernels cannot be launched for nothing, but zero gradients have to flow all the same.
        return x_TD * weights_TK.sum() + 0 * (w1.sum() + v1.sum() + w2.sum())
    return _GroupedGLU.apply(x_TD, weights_TK, w1, v1, w2, grouped, recompute)  # pyright: ignore[reportReturnType]


class _GroupedGLU(torch.autograd.Function):
    """sum over k of weight * w2_e^T (silu(w1_e x) * (v1_e x)).

    Saved for backward: x and the two pre-activations; with recompute x alone.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        weights_TK: Tensor,
        w1: Tensor,
        v1: Tensor,
        w2: Tensor,
        grouped: Grouped,
        recompute: bool,
    ) -> Tensor:
        x_AD = grouped.gather(x_TD)
        h1_AF, h2_AF = grouped.rows_by_columns(x_AD, w1), grouped.rows_by_columns(x_AD, v1)
        ctx.save_for_backward(x_TD, weights_TK, w1, v1, w2, *(() if recompute else (h1_AF, h2_AF)))
        ctx.grouped = grouped
        return grouped.combine(grouped.rows_by_rows(glu(h1_AF, h2_AF), w2), weights_TK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_TD, weights_TK, w1, v1, w2, *kept = ctx.saved_tensors
        (dy_TD,) = grad_outputs
        needs_x, needs_weights, needs_w1, needs_v1, needs_w2 = ctx.needs_input_grad[:5]
        grouped: Grouped = ctx.grouped
        x_AD = grouped.gather(x_TD) if needs_w1 or needs_v1 or not kept else None
        h1_AF, h2_AF = kept or (grouped.rows_by_columns(_there(x_AD), w) for w in (w1, v1))
        dy_AD = grouped.gather(dy_TD.contiguous())
        weights_A = weights_TK.flatten()[grouped.order_A]
        dact_AF = grouped.rows_by_columns(dy_AD, w2)
        dh1_AF, dh2_AF, act_AF, dweights_A = glu_backward(dact_AF, h1_AF, h2_AF, weights_A)
        dw2 = grouped.weight_gradient(act_AF, dy_AD) if needs_w2 else None
        del dact_AF, act_AF, dy_AD, h1_AF, h2_AF, kept
        dw1 = grouped.weight_gradient(dh1_AF, _there(x_AD)) if needs_w1 else None
        dv1 = grouped.weight_gradient(dh2_AF, _there(x_AD)) if needs_v1 else None
        dx_TD = dweights_TK = None
        if needs_x:
            dx_TD = grouped.combine(grouped.rows_by_rows(dh1_AF, w1), None)
            dx_TD += grouped.combine(grouped.rows_by_rows(dh2_AF, v1), None)
        if needs_weights:
            dweights_TK = torch.empty_like(dweights_A).index_copy_(0, grouped.order_A, dweights_A)
            dweights_TK = dweights_TK.view_as(weights_TK).to(weights_TK.dtype)
        return dx_TD, dweights_TK, dw1, dv1, dw2, None, None


def _there(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
