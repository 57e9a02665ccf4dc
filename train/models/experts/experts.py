"""The experts: every token is processed by its selected experts, and no token is dropped.

`ffn_config.moe_impl` selects the implementation; parameters, results and gradients are the same for all.
Shapes: T tokens, K experts per token, D d_model, E experts, F ffn_hidden_size.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from train.models.config import FFNConfig
from train.models.experts.assignment import Assignment, assign
from train.models.experts.grouped import Grouped
from train.models.experts.grouped_mm import TorchGrouped, grouped_mm_experts, why_not_grouped_mm
from train.models.experts.megablocks import MegaBlocks, RoutedShape, megablocks_experts, why_not_megablocks
from train.models.experts.parallel import ExpertParallel
from train.models.experts.torch_loop import Looped, torch_experts

__all__ = [
    "GROUPED",
    "MOE_IMPLS",
    "Assignment",
    "Experts",
    "ExpertsMLP",
    "assign",
    "passed_over_moe_impls",
    "resolve_moe_impl",
]

ExpertsFunction = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Assignment, bool], Tensor]

MOE_IMPLS: dict[str, ExpertsFunction] = {
    "torch": torch_experts,
    "grouped_mm": grouped_mm_experts,
    "megablocks": megablocks_experts,
}
"""The arguments of each function are, in this order: x [T, D], weights [T, K], and w1, v1 and w2 [E*F, D], all of the
same dtype; the assignment; and whether to recompute the pre-activations in backward."""

GROUPED: dict[str, Callable[[Assignment], Grouped]] = {
    "torch": Looped,
    "grouped_mm": TorchGrouped,
    "megablocks": MegaBlocks,
}
"""The GEMMs of each implementation, for experts with adapters."""

_WHY_NOT: dict[str, Callable[[torch.device, torch.dtype | None, RoutedShape | None], str | None]] = {
    "torch": lambda device, dtype, shape: None,
    "grouped_mm": lambda device, dtype, shape: why_not_grouped_mm(device, dtype),
    "megablocks": why_not_megablocks,
}


_PREFERRED_ON_CUDA = ("megablocks", "grouped_mm")
"""The implementations that `auto` selects on CUDA, in order of preference. On other devices, or if neither
implementation can be used, `auto` selects torch."""


def passed_over_moe_impls(
    device: torch.device, dtype: torch.dtype | None = None, shape: RoutedShape | None = None
) -> dict[str, str]:
    """The implementations that `auto` prefers on this device but cannot use, each mapped to the reason, in order of
    preference."""
    reasons: dict[str, str] = {}
    for impl in _PREFERRED_ON_CUDA if device.type == "cuda" else ():
        why = _WHY_NOT[impl](device, dtype, shape)
        if why is None:
            break
        reasons[impl] = why
    return reasons


def resolve_moe_impl(
    moe_impl: str, device: torch.device | str, dtype: torch.dtype | None = None, shape: RoutedShape | None = None
) -> str:
    """Return the key of MOE_IMPLS to use on this device, with this dtype and shape (T, K, D). A dtype or shape that is
    None is not checked.

    Raises ValueError with the key and the reason if the requested implementation is not available.
    """
    device = torch.device(device)
    if moe_impl == "auto":
        preferred = _PREFERRED_ON_CUDA if device.type == "cuda" else ()
        return (*preferred, "torch")[len(passed_over_moe_impls(device, dtype, shape))]
    if moe_impl not in MOE_IMPLS:
        raise ValueError(f"ffn_config.moe_impl: expected one of auto, {', '.join(MOE_IMPLS)}, got {moe_impl!r}")
    if why := _WHY_NOT[moe_impl](device, dtype, shape):
        raise ValueError(f"ffn_config.moe_impl is {moe_impl}, but {why}; auto selects an available implementation")
    return moe_impl


class ExpertsMLP(nn.Module):
    """The weights of all experts, stacked as in MegaBlocks and Hugging Face's DBRX: expert e has rows [e*F,
    (e+1)*F)."""

    def __init__(self, d_model: int, config: FFNConfig) -> None:
        super().__init__()
        self.moe_impl, self.moe_recompute = config.moe_impl, config.moe_recompute
        self.n_experts = config.moe_num_experts
        self.shape = shape = (config.moe_num_experts * config.ffn_hidden_size, d_model)
        self.w1 = nn.Parameter(torch.empty(shape))
        self.v1 = nn.Parameter(torch.empty(shape))
        self.w2 = nn.Parameter(torch.empty(shape))
        self.lora: nn.Module | None = None
        """Computes the experts together with their adapters. Set by lora.adapters.add_lora."""
        self.packed = False
        """Whether the weights are stored in 4 bits. Set by lora.nf4.pack_parameters."""
        self.parallel: ExpertParallel | None = None
        """Set by train/distributed if the weights are DTensors and this rank has only the rows of its experts."""

    def forward(self, x_TD: Tensor, weights_TK: Tensor, assignment: Assignment) -> Tensor:
        device = x_TD.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_TD.dtype
        # The weights are cast here, inside autograd, so that gradients have the dtype of the parameters.
        x_TD, weights_TK = x_TD.to(dtype), weights_TK.to(dtype)
        weights = [_local(w) if self.packed else _local(w).to(dtype) for w in (self.w1, self.v1, self.w2)]
        compute = functools.partial(self._compute, weights)
        with torch.autocast(device, enabled=False):
            if self.parallel is not None:
                return self.parallel(compute, x_TD, weights_TK, assignment)
            return compute(x_TD, weights_TK, assignment)

    def _compute(self, weights: list[Tensor], x_TD: Tensor, weights_TK: Tensor, assignment: Assignment) -> Tensor:
        w1, v1, w2 = weights
        shape = (weights_TK.shape[0], weights_TK.shape[1], x_TD.shape[1])
        moe_impl = resolve_moe_impl(self.moe_impl, x_TD.device, x_TD.dtype, shape)
        if self.lora is not None:
            mine = self.parallel.experts(self.n_experts) if self.parallel is not None else None
            return self.lora(x_TD, weights_TK, w1, v1, w2, GROUPED[moe_impl](assignment), self.moe_recompute, mine)
        return MOE_IMPLS[moe_impl](x_TD, weights_TK, w1, v1, w2, assignment, self.moe_recompute)


def _local(weight: Tensor) -> Tensor:
    return weight.to_local() if isinstance(weight, DTensor) else weight


class Experts(nn.Module):
    """A container, so that the weights have the same names as in DBRX checkpoints: `ffn.experts.mlp.w1`."""

    def __init__(self, d_model: int, config: FFNConfig) -> None:
        super().__init__()
        self.mlp = ExpertsMLP(d_model, config)

    def forward(self, x_TD: Tensor, weights_TK: Tensor, assignment: Assignment) -> Tensor:
        return self.mlp(x_TD, weights_TK, assignment)
