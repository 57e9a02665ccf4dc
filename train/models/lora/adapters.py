"""Low-rank adapters (LoRA, Hu et al. 2021) on linear layers and on the experts' fused weights.

An adapter is a submodule of the module it adapts, so that FSDP2 shards it separately from the frozen base weights, and
in the adapter's own dtype. It adds alpha / r * B A to a weight W. The base weights keep their names. The adapter's
parameters are named `Wqkv.lora.lora_A` and `experts.mlp.lora.w1.lora_A`, and likewise `lora_B`.
Shapes: T tokens, K experts per token, D d_model, E experts, F ffn_hidden_size, R rank, N inputs, M outputs.
"""

import functools
import math
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.models.config import LoraConfig
from train.models.dbrx import DbrxForCausalLM
from train.models.experts.experts import ExpertsMLP
from train.models.experts.grouped import Grouped
from train.models.init import draw_blocks
from train.models.lora.experts import Options, Pair, lora_glu
from train.models.lora.linear import Linear
from train.models.lora.nf4 import unpack
from train.models.shapes import adapted_experts, pair_shapes


class LoraWeights(nn.Module):
    """The weights A and B of an adapter. A is [R, N], or [E*R, D] if each expert has its own A. B is [M, R]."""

    def __init__(self, shape: tuple[int, int], config: LoraConfig, n_experts: int = 1) -> None:
        super().__init__()
        A, B = pair_shapes(shape, config, n_experts)
        self.lora_A = nn.Parameter(torch.empty(A))
        self.lora_B = nn.Parameter(torch.empty(B))


class LoraLinear(LoraWeights):
    """The adapter of a linear layer: computes the term that is added to the layer's output."""

    def __init__(self, base: Linear, config: LoraConfig) -> None:
        super().__init__((base.out_features, base.in_features), config)
        self.scale, self.dropout = config.scale, config.dropout

    def forward(self, x_TN: Tensor) -> Tensor:
        low_TR = F.linear(F.dropout(x_TN, self.dropout, self.training), self.lora_A)
        return F.linear(self.scale * low_TR, self.lora_B)


class LoraExperts(nn.Module):
    """Computes the experts together with the adapters of w1, v1 and w2. Not all of these weights need to have an
    adapter.

    The base weights are arguments of forward, so that the whole computation runs within this module's forward, for
    which FSDP2 gathers the parameters of the adapters.
    """

    def __init__(self, base: ExpertsMLP, names: Iterable[str], config: LoraConfig) -> None:
        super().__init__()
        self.scale, self.dropout, self.per_expert = config.scale, config.dropout, config.per_expert
        self.packed, self.n_experts = config.base_dtype == "nf4", base.n_experts
        for name in sorted(names):
            self.add_module(name, LoraWeights(base.shape, config, base.n_experts))

    def forward(
        self,
        x_TD: Tensor,
        weights_TK: Tensor,
        w1: Tensor,
        v1: Tensor,
        w2: Tensor,
        grouped: Grouped,
        recompute: bool,
        experts: slice | None = None,
    ) -> Tensor:
        """experts: the experts that w1, v1 and w2 contain. None means all experts."""
        dropout = self.dropout if self.training else 0.0
        dropped_TD = F.dropout(x_TD, dropout) if dropout else x_TD
        w1_pair, v1_pair, w2_pair = (self._pair(name, x_TD.dtype, experts) for name in ("w1", "v1", "w2"))
        options = Options(self.scale, self.per_expert, dropout, recompute)
        if self.packed:
            options = options._replace(open_weight=functools.partial(unpack, dtype=x_TD.dtype))
        return lora_glu(x_TD, dropped_TD, weights_TK, (w1, v1, w2), (w1_pair, v1_pair, w2_pair), grouped, options)

    def _pair(self, name: str, dtype: torch.dtype, experts: slice | None) -> Pair | None:
        weights = self._modules.get(name)
        if weights is None:
            return None
        assert isinstance(weights, LoraWeights)
        A, B = weights.lora_A, weights.lora_B
        if experts is not None:
            A, B = self._rows_of(A, experts) if self.per_expert else A, self._rows_of(B, experts)
        return Pair(A.to(dtype), B.to(dtype))

    def _rows_of(self, weight: Tensor, experts: slice) -> Tensor:
        return weight.unflatten(0, (self.n_experts, -1))[experts].flatten(0, 1)


def add_lora(model: DbrxForCausalLM, config: LoraConfig, dtype: torch.dtype = torch.float32) -> None:
    """Freeze the model and add adapters. The caller must fill their values with draw_adapter_rows."""
    model.requires_grad_(False)
    experts = adapted_experts(config)
    for path, module in list(model.named_modules()):
        if isinstance(module, Linear) and path.rpartition(".")[2] in config.targets:
            module.lora = LoraLinear(module, config).to(dtype)
        elif isinstance(module, ExpertsMLP) and (experts or config.base_dtype == "nf4"):
            # LoraExperts is also used for 4-bit weights without adapters, because the other implementations would save
            # the unpacked weights for backward.
            module.lora = LoraExperts(module, experts, config).to(dtype)


def adapters(model: nn.Module) -> Iterator[LoraLinear | LoraExperts]:
    """Yield the adapters of a model, except LoraExperts modules without parameters."""
    found = (module for module in model.modules() if isinstance(module, LoraLinear | LoraExperts))
    return (module for module in found if any(True for _ in module.parameters()))


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return name.rpartition(".")[2] in ("lora_A", "lora_B")


def draw_adapter_rows(seed: int, name: str, shape: tuple[int, ...], start: int, stop: int) -> Tensor:
    """Rows [start, stop) of an adapter's initial values, on the CPU in fp32. As in PEFT, B is zero and A is uniform
    between -1 / sqrt(inputs) and 1 / sqrt(inputs), which is Kaiming uniform with a = sqrt(5)."""
    if name.endswith("lora_B"):
        return torch.zeros(stop - start, *shape[1:])
    bound = 1 / math.sqrt(shape[1])
    return draw_blocks(
        seed, name, shape, start, stop, lambda drawn, generator: drawn.uniform_(-bound, bound, generator=generator)
    )
