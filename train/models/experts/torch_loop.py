"""Experts computed one after the other, on any device: one GEMM per expert and matrix, with views of the stacked
weights.

Shapes: T tokens, K experts per token, A = T*K assignments sorted by expert, D d_model, F ffn_hidden_size, N assignments
of one expert.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from train.models.experts.assignment import Assignment
from train.models.experts.glu import combine
from train.models.experts.glu_function import experts_glu


def torch_experts(
    x_TD: Tensor, weights_TK: Tensor, w1: Tensor, v1: Tensor, w2: Tensor, assignment: Assignment, recompute: bool
) -> Tensor:
    # The only device synchronization: the number of tokens of each expert determines the sizes of the GEMMs.
    splits = assignment.counts_E.tolist()
    products_of = functools.partial(_LoopedProducts, assignment, splits)
    return experts_glu(products_of, recompute, weights_TK, x_TD, w1, v1, w2)


class _LoopedProducts:
    """LayerProducts that computes one expert after the other. Sums over a token's assignments are computed in at least
    fp32."""

    def __init__(
        self, assignment: Assignment, splits: list[int], tensors: Sequence[Tensor], needs: Sequence[bool]
    ) -> None:
        self.token_A, self.order_A, self.splits = assignment.token_A, assignment.order_A, splits
        self.x_TD, *self.weights = tensors
        self.needs_x, *self.needs = needs
        self.width = self.weights[0].shape[0] // len(splits)
        self.scratch = _Scratch(self.x_TD, max(splits))
        self.weights_N1: Sequence[Tensor] | None = None

    @functools.cached_property
    def sum_TD(self) -> Tensor:
        """The sum over each token's assignments: y in forward, dx in backward."""
        return torch.zeros_like(self.x_TD, dtype=torch.promote_types(self.x_TD.dtype, torch.float32))

    @functools.cached_property
    def dweights(self) -> list[Tensor | None]:
        return [torch.empty_like(w) if need else None for w, need in zip(self.weights, self.needs, strict=True)]

    @functools.cached_property
    def dweights_FD(self) -> list[tuple[Tensor | None, ...]]:
        """The weight gradients of each expert."""
        return list(zip(*_flat(self.splits, *self.dweights), strict=True))

    def parts(self, keep: bool) -> Iterable["_ExpertProducts"]:
        kept = [[None] * len(self.splits)] * 2
        if keep:
            kept = [self.x_TD.new_empty(len(self.order_A), self.width).split(self.splits) for _ in range(2)]
        views = *_rows(self.splits, self.token_A), *_flat(self.splits, *self.weights), *kept
        for number, part in enumerate(zip(*views, strict=True)):
            self.scratch.restart()
            yield _ExpertProducts(self, number, *part)

    def split_weights(self, weights_TK: Tensor) -> Sequence[Tensor]:
        """The router weights of the assignments, as one tensor [N, 1] for each expert."""
        if self.weights_N1 is None:
            self.weights_N1 = weights_TK.flatten()[self.order_A].unsqueeze(1).split(self.splits)
        return self.weights_N1

    def output(self) -> Tensor:
        return self.sum_TD.to(self.x_TD.dtype)

    def gradients(self) -> tuple[Tensor | None, ...]:
        return self.sum_TD.to(self.x_TD.dtype) if self.needs_x else None, *self.dweights


class _ExpertProducts:
    """Implements `Products` for the assignments of one expert."""

    def __init__(
        self,
        layer: _LoopedProducts,
        number: int,
        token_N: Tensor,
        w1_FD: Tensor,
        v1_FD: Tensor,
        w2_FD: Tensor,
        h1_NF: Tensor | None,
        h2_NF: Tensor | None,
    ) -> None:
        """h1 and h2: memory for the pre-activations, if they are kept."""
        self.layer, self.number, self.token_N, self.n = layer, number, token_N, token_N.shape[0]
        self.w1_FD, self.v1_FD, self.w2_FD, self.h1_NF, self.h2_NF = w1_FD, v1_FD, w2_FD, h1_NF, h2_NF
        self.x_ND: Tensor | None = None
        self.dy_ND: Tensor | None = None

    def empty_like(self, h_NF: Tensor) -> Tensor:
        return self._empty(h_NF.shape[1])

    def preactivations(self) -> tuple[Tensor, Tensor]:
        x_ND = self._gathered_x()
        h1_NF = self._empty(self.layer.width) if self.h1_NF is None else self.h1_NF
        h2_NF = self._empty(self.layer.width) if self.h2_NF is None else self.h2_NF
        return torch.mm(x_ND, self.w1_FD.t(), out=h1_NF), torch.mm(x_ND, self.v1_FD.t(), out=h2_NF)

    def add_output(self, act_NF: Tensor, weights_TK: Tensor) -> None:
        weights_N1 = self.layer.split_weights(weights_TK)[self.number]
        y_ND = torch.mm(act_NF, self.w2_FD, out=self._empty(self.w2_FD.shape[1]))
        self._add_to_tokens(y_ND.mul_(weights_N1))

    def activation_gradient(self, dy_TD: Tensor) -> Tensor:
        self.dy_ND = self._gather(dy_TD)
        return torch.mm(self.dy_ND, self.w2_FD.t(), out=self._empty(self.layer.width))

    def add_output_weight_gradient(self, act_NF: Tensor) -> None:
        dw2_FD = self.layer.dweights_FD[self.number][2]
        if dw2_FD is not None:
            assert self.dy_ND is not None
            torch.mm(act_NF.t(), self.dy_ND, out=dw2_FD)

    def add_input_gradients(self, dh1_NF: Tensor, dh2_NF: Tensor) -> None:
        if self.layer.needs_x:
            dx_ND = torch.mm(dh1_NF, self.w1_FD, out=self._empty(self.w1_FD.shape[1]))
            self._add_to_tokens(dx_ND.addmm_(dh2_NF, self.v1_FD))
        for dw_FD, dh_NF in zip(self.layer.dweights_FD[self.number], (dh1_NF, dh2_NF), strict=False):
            if dw_FD is not None:
                torch.mm(dh_NF.t(), self._gathered_x(), out=dw_FD)

    def _empty(self, width: int) -> Tensor:
        return self.layer.scratch.empty(self.n, width)

    def _gather(self, x_TD: Tensor) -> Tensor:
        return torch.index_select(x_TD, 0, self.token_N, out=self._empty(x_TD.shape[1]))

    def _gathered_x(self) -> Tensor:
        if self.x_ND is None:
            self.x_ND = self._gather(self.layer.x_TD)
        return self.x_ND

    def _add_to_tokens(self, y_ND: Tensor) -> None:
        self.layer.sum_TD.index_add_(0, self.token_N, y_ND.to(self.layer.sum_TD.dtype))


class _Scratch:
    """Memory that all experts reuse for their results. The memory stays in the CPU cache. Reusing it avoids calls of
    malloc, which are slow if the sizes change often."""

    def __init__(self, like: Tensor, most: int) -> None:
        self.like, self.most = like, most
        self.buffers: list[Tensor] = []
        self.used = 0

    def restart(self) -> None:
        """Make all buffers available again. Called before each expert. Every expert requests the same widths in the
        same order."""
        self.used = 0

    def empty(self, n: int, width: int) -> Tensor:
        if self.used == len(self.buffers):
            self.buffers.append(self.like.new_empty(self.most, width))
        self.used += 1
        return self.buffers[self.used - 1][:n]


class Looped:
    """Implements grouped.Grouped with one GEMM per expert, for experts with adapters."""

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
    """Split each tensor [A, ...], sorted by expert, into one part per expert."""
    return [tensor.split(splits) for tensor in tensors]


def _flat(splits: list[int], *weights: Tensor | None) -> list[Sequence[Any]]:
    """Split each tensor [E*F, D] into one [F, D] per expert. None becomes one None per expert."""
    return [[None] * len(splits) if w is None else w.unflatten(0, (len(splits), -1)).unbind() for w in weights]
