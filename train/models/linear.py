"""nn.Linear without a bias, by the GEMMs of gemm.py where they are faster, elsewhere as it is.

Shapes: T tokens, K inputs, M outputs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from train.models.gemm import mm, uses_kernel
from train.models.nf4 import packed_linear


class Linear(nn.Linear):
    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.lora: nn.Module | None = None
        """Set by lora.add_lora: what is added to the result."""
        self.packed = False
        """Set by nf4.pack_parameters: the weight is in 4 bits."""

    def forward(self, input: Tensor) -> Tensor:
        if self.lora is None:
            return self._multiply(input)
        # The adapter first: selective checkpointing does not repeat the product that comes last.
        added = self.lora(input)
        return self._multiply(input) + added

    def _multiply(self, x_TK: Tensor) -> Tensor:
        weight_MK = self.weight
        if self.packed:
            return packed_linear(x_TK, weight_MK)
        fits = uses_kernel(weight_MK) and x_TK.dtype is torch.float32 and x_TK.dim() == 2
        if not fits or torch.is_autocast_enabled("cpu"):
            return F.linear(x_TK, weight_MK)
        return _Multiply.apply(_Keep.apply(x_TK, weight_MK), x_TK.detach(), weight_MK.detach())  # pyright: ignore[reportReturnType]


class _Keep(torch.autograd.Function):
    """Holds what the product's backward needs, before the product is computed and apart from it.

    So checkpointing, which stops computing again once the last saved tensor is there, does not repeat the product. What
    it returns has the product's shape and no memory.
    """

    @staticmethod
    def forward(ctx: Any, x_TK: Tensor, weight_MK: Tensor) -> Tensor:
        ctx.save_for_backward(x_TK, weight_MK)
        return x_TK.new_empty(1).expand(x_TK.shape[0], weight_MK.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x_TK, weight_MK), (dy_TM,) = ctx.saved_tensors, grad_outputs
        needs_x, needs_weight = ctx.needs_input_grad
        dx_TK = mm(dy_TM, weight_MK) if needs_x else None
        return dx_TK, mm(dy_TM.t(), x_TK) if needs_weight else None


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kept_TM: Tensor, x_TK: Tensor, weight_MK: Tensor) -> Tensor:
        return mm(x_TK, weight_MK.t())

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return grad_outputs[0], None, None
