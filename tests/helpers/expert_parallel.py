"""Build models on meshes with expert parallelism, for tests that compare them with a model on one rank."""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from train.config.schema import FSDPConfig
from train.models.config import LoraConfig
from train.models.experts.assignment import Assignment
from train.models.experts.experts import ExpertsMLP
from train.models.experts.parallel import Compute, ExpertParallel
from train.models.moe import Router

EP2, EP4 = FSDPConfig(expert_parallel_degree=2), FSDPConfig(expert_parallel_degree=4)
HYBRID = FSDPConfig(sharding_strategy="HYBRID_SHARD", data_parallel_replicate_degree=2)
HYBRID_EP2 = FSDPConfig(sharding_strategy="HYBRID_SHARD", data_parallel_replicate_degree=2, expert_parallel_degree=2)
MESHES = {"EP 2": (2, EP2), "EP 4": (4, EP4), "EP 2 x 2 shards": (4, EP2), "2 replicas of EP 2": (4, HYBRID_EP2)}
"""Number of ranks and config by name."""

LORA = {
    "shared A": LoraConfig(r=3, alpha=5.0, target_modules=["attn", "experts", "router"], base_dtype="fp32"),
    "A per expert": LoraConfig(
        r=3, alpha=5.0, target_modules=["attn", "experts", "router"], base_dtype="fp32", per_expert=True
    ),
    "over nf4": LoraConfig(r=3, alpha=5.0, target_modules=["attn", "experts", "router"], base_dtype="nf4"),
}

Mutant = Literal["without the factor", "detached router"]
"""Simulated bugs that do not change the loss: expert gradients that are not averaged over all ranks, and routing
weights whose gradient is not returned by the ranks that have the experts."""


def draw_adapters(model: nn.Module) -> None:
    """Fill lora_B. With its initial zeros, neither lora_A nor the order of experts would matter."""
    for name, param in model.named_parameters():
        if name.endswith("lora_B"):
            drawn = torch.randn(param.shape, generator=torch.Generator().manual_seed(1)).to(param.dtype) / 10
            with torch.no_grad():
                sharded = isinstance(param, DTensor)
                param.copy_(distribute_tensor(drawn, param.device_mesh, param.placements) if sharded else drawn)


def route_to_first(model: nn.Module) -> None:
    """Send all tokens to the first expert and therefore to the ranks that have it."""
    for module in model.modules():
        if isinstance(module, Router):
            module.register_forward_hook(lambda module, args, out: out._replace(experts_TK=out.experts_TK * 0))


def mutate(model: nn.Module, mutant: Mutant) -> None:
    for module in model.modules():
        if isinstance(module, ExpertsMLP) and module.parallel is not None:
            group = module.parallel.group
            if mutant == "without the factor":
                module.parallel = ExpertParallel(group, averaged=False)
            else:
                module.parallel = _Detached(group, averaged=True)


class _Detached(ExpertParallel):
    def __call__(self, compute: Compute, x_TD: Tensor, weights_TK: Tensor, assignment: Assignment) -> Tensor:
        return super().__call__(compute, x_TD, weights_TK.detach(), assignment)


def whole(tensor: Tensor | None) -> Tensor:
    """Return a copy of the full tensor on every rank."""
    assert tensor is not None, "a gradient is missing"
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest difference of any tensor, relative to its largest value; NaN if a value is not finite."""
    assert found.keys() == expected.keys()
    return float(torch.tensor([*_differences(found, expected)]).max())


def _differences(found: dict[str, Tensor], expected: dict[str, Tensor]) -> Iterator[float]:
    for key, value in expected.items():
        if torch.equal(*(tensor.flatten().view(torch.uint8) for tensor in (found[key], value))):
            yield 0.0  # bytes with two 4-bit values may be NaN when they are read as numbers
        else:
            yield float((found[key] - value).abs().max() / value.abs().max().clamp(min=1e-30))
