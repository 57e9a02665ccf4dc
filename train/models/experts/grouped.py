"""All experts computed together, for libraries with grouped GEMMs.

Shapes: T tokens, K experts per token, A = T*K assignments sorted by expert, D d_model, E experts, F ffn_hidden_size.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from train.models.experts.glu_function import experts_glu


class Grouped(Protocol):
    """The GEMMs of one layer's experts, and the operations that move tokens to the experts and back."""

    order_A: Tensor
    """The index of each sorted assignment in the flattened tensor [T, K]."""

    def gather(self, x_TD: Tensor) -> Tensor:
        """Return [A, D]: the row of x for each assignment."""
        ...

    def combine(self, y_AD: Tensor, weights_TK: Tensor | None) -> Tensor:
        """Return [T, D]: for each token, the sum of y over its assignments. weights_TK: weights of the sum, or None."""
        ...

    def rows_by_columns(self, x_AD: Tensor, w: Tensor) -> Tensor:
        """Return [A, F]: x w_e^T, where e is the expert of each assignment."""
        ...

    def rows_by_rows(self, h_AF: Tensor, w: Tensor) -> Tensor:
        """Return [A, D]: h w_e, where e is the expert of each assignment."""
        ...

    def weight_gradient(self, h_AF: Tensor, x_AD: Tensor) -> Tensor:
        """Return [E*F, D]: h_e^T x_e. The rows of an expert without tokens are zero."""
        ...


def grouped_glu(
    x_TD: Tensor, weights_TK: Tensor, w1: Tensor, v1: Tensor, w2: Tensor, grouped: Grouped, recompute: bool
) -> Tensor:
    return experts_glu(functools.partial(_GroupedProducts, grouped), recompute, weights_TK, x_TD, w1, v1, w2)


class _GroupedProducts:
    """Implements both LayerProducts and Products, because all assignments are a single part."""

    def __init__(self, grouped: Grouped, tensors: Sequence[Tensor], needs: Sequence[bool]) -> None:
        self.grouped, self.order_A, self.splits = grouped, grouped.order_A, [len(grouped.order_A)]
        self.x_TD, self.w1, self.v1, self.w2 = tensors
        self.needs_x, self.needs_w1, self.needs_v1, self.needs_w2 = needs
        self.x_AD: Tensor | None = None
        self.dy_AD: Tensor | None = None
        self.y_TD = self.dx_TD = self.dw1 = self.dv1 = self.dw2 = None

    def parts(self, keep: bool) -> Iterable["_GroupedProducts"]:
        return (self,)

    def empty_like(self, h_AF: Tensor) -> Tensor:
        return torch.empty_like(h_AF)

    def preactivations(self) -> tuple[Tensor, Tensor]:
        x_AD = self._gathered_x()
        return self.grouped.rows_by_columns(x_AD, self.w1), self.grouped.rows_by_columns(x_AD, self.v1)

    def add_output(self, act_AF: Tensor, weights_TK: Tensor) -> None:
        self.y_TD = self.grouped.combine(self.grouped.rows_by_rows(act_AF, self.w2), weights_TK)

    def output(self) -> Tensor:
        assert self.y_TD is not None
        return self.y_TD

    def activation_gradient(self, dy_TD: Tensor) -> Tensor:
        self.dy_AD = self.grouped.gather(dy_TD)
        return self.grouped.rows_by_columns(self.dy_AD, self.w2)

    def add_output_weight_gradient(self, act_AF: Tensor) -> None:
        dy_AD, self.dy_AD = self.dy_AD, None
        if self.needs_w2:
            assert dy_AD is not None
            self.dw2 = self.grouped.weight_gradient(act_AF, dy_AD)

    def add_input_gradients(self, dh1_AF: Tensor, dh2_AF: Tensor) -> None:
        if self.needs_w1:
            self.dw1 = self.grouped.weight_gradient(dh1_AF, self._gathered_x())
        if self.needs_v1:
            self.dv1 = self.grouped.weight_gradient(dh2_AF, self._gathered_x())
        if self.needs_x:
            self.dx_TD = self.grouped.combine(self.grouped.rows_by_rows(dh1_AF, self.w1), None)
            self.dx_TD += self.grouped.combine(self.grouped.rows_by_rows(dh2_AF, self.v1), None)

    def gradients(self) -> tuple[Tensor | None, ...]:
        return self.dx_TD, self.dw1, self.dv1, self.dw2

    def _gathered_x(self) -> Tensor:
        if self.x_AD is None:
            self.x_AD = self.grouped.gather(self.x_TD)
        return self.x_AD
