"""Which token goes to which expert, sorted by expert.

Shapes: T tokens, K experts a token, A = T*K assignments sorted by expert, E experts.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Assignment(NamedTuple):
    """Sorted by expert, and stable, so that the result does not depend on chance."""

    order_A: Tensor
    """Where each sorted assignment stands in [T, K] read row by row."""
    token_A: Tensor
    """The token of each sorted assignment."""
    expert_A: Tensor
    """The expert of each sorted assignment, never falling."""
    slot_TK: Tensor
    """Where the k-th choice of a token stands among the sorted assignments."""
    counts_E: Tensor


def assign(experts_TK: Tensor, n_experts: int) -> Assignment:
    T, K = experts_TK.shape
    expert_A, order_A = experts_TK.flatten().sort(stable=True)
    slot_A = torch.empty_like(order_A).index_copy_(0, order_A, torch.arange(T * K, device=order_A.device))
    # Counted by scattering ones: bincount on a GPU waits for the device to learn its size.
    counts_E = torch.zeros(n_experts, dtype=torch.int64, device=order_A.device)
    counts_E.scatter_add_(0, expert_A, torch.ones_like(expert_A))
    return Assignment(order_A, order_A // K, expert_A, slot_A.view(T, K), counts_E)
