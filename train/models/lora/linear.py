"""nn.Linear without a bias, optionally with a 4-bit weight and an adapter."""

import torch.nn.functional as F
from torch import Tensor, nn

from train.models.lora.nf4 import packed_linear


class Linear(nn.Linear):
    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.lora: nn.Module | None = None
        """A module whose output is added to the result. Set by lora.adapters.add_lora."""
        self.packed = False
        """Whether the weight is stored in 4 bits. Set by lora.nf4.pack_parameters."""

    def forward(self, input: Tensor) -> Tensor:
        if self.lora is None:
            return self._multiply(input)
        # The adapter is computed first, because selective activation checkpointing does not repeat the last operation.
        added = self.lora(input)
        return self._multiply(input) + added

    def _multiply(self, x: Tensor) -> Tensor:
        return packed_linear(x, self.weight) if self.packed else F.linear(x, self.weight)
