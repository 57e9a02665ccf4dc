"""A loop over experts in plain torch, and choices of experts for tokens."""

from collections.abc import Callable

import torch
from torch import Tensor

from train.models.config import FFNConfig
from train.models.experts.assignment import Assignment


def routing(name: str, config: FFNConfig) -> tuple[int, Callable[[Tensor], Tensor]]:
    """Return a number of tokens, and a function that changes the router's scores."""
    E = config.moe_num_experts

    def skewed(scores: Tensor) -> Tensor:
        scores[:, 1] += 100
        return scores

    def idle(scores: Tensor) -> Tensor:
        return scores - 100 * (torch.arange(E) % 2)

    plain = {"random": 61, "one token": 1, "no token": 0}
    return (plain[name], lambda scores: scores) if name in plain else (45, {"skewed": skewed, "idle": idle}[name])


class LoopGrouped:
    """Grouped GEMMs in plain torch. They test the code that grouped_mm and megablocks share, without these
    libraries."""

    def __init__(self, assignment: Assignment) -> None:
        self.assignment, self.order_A = assignment, assignment.order_A
        self.splits = assignment.counts_E.tolist()

    def gather(self, x_TD: Tensor) -> Tensor:
        return x_TD[self.assignment.token_A]

    def combine(self, y_AD: Tensor, weights_TK: Tensor | None) -> Tensor:
        y_TKD = y_AD[self.assignment.slot_TK]
        return y_TKD.sum(1) if weights_TK is None else (y_TKD * weights_TK.unsqueeze(2)).sum(1)

    def rows_by_columns(self, x_AD: Tensor, w: Tensor) -> Tensor:
        pairs = zip(x_AD.split(self.splits), w.chunk(len(self.splits)), strict=True)
        return torch.cat([x @ w.t() for x, w in pairs])

    def rows_by_rows(self, h_AF: Tensor, w: Tensor) -> Tensor:
        return torch.cat([h @ w for h, w in zip(h_AF.split(self.splits), w.chunk(len(self.splits)), strict=True)])

    def weight_gradient(self, h_AF: Tensor, x_AD: Tensor) -> Tensor:
        return torch.cat([h.t() @ x for h, x in zip(h_AF.split(self.splits), x_AD.split(self.splits), strict=True)])
