"""The assignment of tokens to experts, sorted by expert.

Shapes: T tokens, K experts per token, A = T*K assignments sorted by expert, E experts.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Assignment(NamedTuple):
    """Assignments sorted by expert. The sort is stable, so that the result is deterministic."""

    order_A: Tensor
    """The index of each sorted assignment in the flattened tensor [T, K]."""
    token_A: Tensor
    """The token of each sorted assignment."""
    expert_A: Tensor
    """The expert of each sorted assignment, in ascending order."""
    slot_TK: Tensor
    """The index of each token's k-th choice among the sorted assignments."""
    counts_E: Tensor


def assign(experts_TK: Tensor, n_experts: int) -> Assignment:
    T, K = experts_TK.shape
    expert_A, order_A = experts_TK.flatten().sort(stable=True)
    slot_A = torch.empty_like(order_A).index_copy_(0, order_A, torch.arange(T * K, device=order_A.device))
    # scatter_add is used, because bincount synchronizes with a GPU to determine its output size.
    counts_E = torch.zeros(n_experts, dtype=torch.int64, device=order_A.device)
    counts_E.scatter_add_(0, expert_A, torch.ones_like(expert_A))
    return Assignment(order_A, order_A // K, expert_A, slot_A.view(T, K), counts_E)
