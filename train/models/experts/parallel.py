"""Expert parallelism. Each rank of a group has some of the experts. Tokens are sent to the ranks that have their
experts, and the results are sent back.

Shapes: T tokens, K experts per token, A = T*K assignments sorted by expert, D d_model, E experts, P ranks of the group
(each has E/P consecutive experts), R assignments that a rank receives.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from train.models.experts.assignment import Assignment, assign
from train.models.experts.glu import combine

Compute = Callable[[Tensor, Tensor, Assignment], Tensor]
"""(x [T, D], weights [T, K], assignment) -> [T, D], the weighted sum over each token's experts."""


class ExpertParallel:
    """The group of ranks over which the experts of a layer are distributed.

    The gradient of an expert's weights is summed on the rank that has the expert, over the tokens of all P ranks. The
    sum is then averaged over the ranks that have the same experts; their number is the total number of ranks divided by
    P. `averaged` states whether gradients are averaged in this way. In this case, the gradient of the experts' output
    is divided by P, and the gradient of their input is multiplied by P, so that every gradient is the mean over all
    ranks.
    """

    def __init__(self, group: dist.ProcessGroup, *, averaged: bool) -> None:
        self.group, self.size, self.rank = group, group.size(), group.rank()
        self._factor = float(self.size) if averaged else 1.0

    def experts(self, n_experts: int) -> slice:
        """The experts of this rank."""
        mine = n_experts // self.size
        return slice(self.rank * mine, (self.rank + 1) * mine)

    def __call__(self, compute: Compute, x_TD: Tensor, weights_TK: Tensor, assignment: Assignment) -> Tensor:
        """Run compute(x, weights, assignment) on the ranks that have the experts. Every rank of the group must call
        this, even a rank that has no tokens. Synchronizes with the device once, to exchange the sizes."""
        counts_PE = assignment.counts_E.view(self.size, -1)
        received_PE = torch.empty_like(counts_PE)
        dist.all_to_all_single(received_PE, counts_PE, group=self.group)
        sent, received = torch.stack((counts_PE.sum(1), received_PE.sum(1))).tolist()
        there = _Exchange(self.group, sent, received, self._factor)
        back = _Exchange(self.group, received, sent, 1 / self._factor)

        x_RD = there(_Gather.apply(x_TD, assignment.token_A, assignment.slot_TK))
        weights_R1 = there(weights_TK.flatten().index_select(0, assignment.order_A).unsqueeze(1))
        # The assignments from each rank are already sorted by expert.
        E = received_PE.shape[1]
        experts_PE = torch.arange(E, device=received_PE.device).expand_as(received_PE)
        experts_R = experts_PE.flatten().repeat_interleave(received_PE.flatten(), output_size=sum(received))
        y_RD = compute(x_RD, weights_R1, assign(experts_R.unsqueeze(1), E))
        return _Combine.apply(back(y_RD), assignment.token_A, assignment.slot_TK)  # pyright: ignore[reportReturnType]


class _Exchange(NamedTuple):
    """An all-to-all of rows within a group."""

    group: dist.ProcessGroup
    sent: list[int]
    received: list[int]
    gradient_factor: float
    """The factor applied to the gradient."""

    def __call__(self, rows: Any) -> Tensor:
        return _AllToAll.apply(rows, self)  # pyright: ignore[reportReturnType]

    def run(self, rows_AX: Tensor) -> Tensor:
        rows_RX = rows_AX.new_empty(sum(self.received), *rows_AX.shape[1:])
        dist.all_to_all_single(rows_RX, rows_AX.contiguous(), self.received, self.sent, group=self.group)
        return rows_RX

    @property
    def reverse(self) -> "_Exchange":
        return self._replace(sent=self.received, received=self.sent)


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_AX: Tensor, exchange: _Exchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.run(rows_AX)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        exchange: _Exchange = ctx.exchange
        gradient_AX = exchange.reverse.run(grad_outputs[0])
        return (gradient_AX if exchange.gradient_factor == 1 else gradient_AX.mul_(exchange.gradient_factor)), None


class _Gather(torch.autograd.Function):
    """Computes [A, D]: the row of x for each assignment. The gradient is summed in a fixed order and in at least
    fp32."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, token_A: Tensor, slot_TK: Tensor) -> Tensor:
        ctx.save_for_backward(slot_TK)
        return x_TD.index_select(0, token_A)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (slot_TK,) = ctx.saved_tensors
        return combine(grad_outputs[0], slot_TK, None), None, None


class _Combine(torch.autograd.Function):
    """Computes [T, D]: for each token, the sum of y over its assignments."""

    @staticmethod
    def forward(ctx: Any, y_AD: Tensor, token_A: Tensor, slot_TK: Tensor) -> Tensor:
        # save_for_backward is not used, because activation checkpointing would then repeat the block up to this
        # operation, and send all results again.
        ctx.token_A = token_A
        return combine(y_AD, slot_TK, None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad_outputs[0].index_select(0, ctx.token_A), None, None
